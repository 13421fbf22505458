"""What autograd keeps for the backward of a Whisper, tensor by tensor, from shapes.

Each line below is one tensor that a forward saves; the tests hold their sum against PyTorch's own account, taken with
`torch.autograd.graph.saved_tensors_hooks` over fake tensors. All figures are bytes of one clip.

Shapes: `S` encoder positions, `T` label positions, `D` width, `H` heads, `M` mel bins, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.memory.workload import Workload

FLOAT_BYTES = 4
LOGIT_BYTES = {2: 14, 4: 12}
"""Of one logit on the plain way, at the worst moment, by the bytes of what computes: FP16 logits, their FP32 copy, FP32
log-softmax, FP32 and FP16 gradients; without the half ones in FP32."""
CHUNK_LOGIT_BYTES = {2: 12, 4: 12}
"""The same of a logit in a chunk (see `train.loss`)."""


@dataclass(frozen=True)
class Stage:
    """A stretch of the forward whose backward frees what it kept; bytes of one clip."""

    name: str
    """`stem`, `encoder`, `encoder_norm`, `decoder`, `decoder_norm`, ...; the parameters of a stage are found by it."""
    kept: int
    """From the forward until its own backward."""
    working: int
    """Only while its backward runs: what is recomputed, and the gradients that flow through it."""


def stages_of(work: Workload) -> list[Stage]:
    """Return the stages of a forward in their order, without the projection to the vocabulary."""
    config = work.config
    rows, width = work.num_positions, work.width
    stages: list[Stage] = []
    if work.encoder_learns:
        stages.append(Stage("stem", _stem(work), work.compute_bytes * 2 * work.num_frames * width))
        layer = _encoder_layer(work)
        stages += _layers("encoder", layer, config.encoder_layers, work, rows, work.encoder_ffn)
        stages.append(Stage("encoder_norm", _norm(work, rows), 0))
    # The encoder's output: every cross-attention reads it, and recomputed layers hold on to it.
    has_recomputed = work.checkpoint_every_layers > 0
    shared = _output_bytes(work) if has_recomputed or not work.is_autocast else 0
    shared += work.compute_bytes if _is_lowered(work) else 0  # one copy for all layers
    stages.append(Stage("encoder_output", shared * rows * width, FLOAT_BYTES * rows * width))
    layer = _decoder_layer(work)
    stages += _layers("decoder", layer, config.decoder_layers, work, work.label_tokens, work.decoder_ffn)
    stages.append(Stage("decoder_norm", _norm(work, work.label_tokens), 0))
    return stages


def kept_by_head(work: Workload) -> int:
    """Return what the loss keeps of one clip: its inputs, and on the plain way the log-softmax."""
    inputs = work.compute_bytes * work.label_tokens * work.width if _learns(work) else 0
    return inputs + (0 if is_chunked(work) else FLOAT_BYTES * work.label_tokens * work.vocabulary)


def logits_bytes(work: Workload) -> int:
    """Return what the logits of a micro-batch need at the worst moment, with the copies of the projection."""
    vocabulary, width = work.vocabulary, work.width
    num_tokens = work.label_tokens * work.micro_batch_size
    if is_chunked(work):
        logits = CHUNK_LOGIT_BYTES[work.compute_bytes] * work.loss_chunk_tokens * vocabulary
    else:
        logits = LOGIT_BYTES[work.compute_bytes] * num_tokens * vocabulary
    # The gradient of the projection in FP32, and where it was made in half precision.
    gradient = (FLOAT_BYTES + work.compute_bytes) * vocabulary * width if _learns(work) else 0
    cast = work.compute_bytes * vocabulary * width if is_chunked(work) and work.is_autocast and _learns(work) else 0
    return logits + gradient + cast


def is_chunked(work: Workload) -> bool:
    """Return whether the label tokens of a micro-batch are more than one chunk."""
    return 0 < work.loss_chunk_tokens < work.label_tokens * work.micro_batch_size


def _learns(work: Workload) -> bool:
    """Say whether the model's own weights learn, in the decoder at least."""
    return work.finetune.name != "lora"


def _layers(name: str, whole: int, count: int, work: Workload, rows: int, ffn: int) -> list[Stage]:
    width, compute = work.width, work.compute_bytes
    # The gradient of the stream in FP32 and as the last matmul takes it, and of one side of the feed-forward.
    flowing = rows * (width * (FLOAT_BYTES + compute) + compute * ffn)
    border = 0 if work.checkpoint_offload else work.stream_bytes * rows * width
    every = work.checkpoint_every_layers
    stages = [
        Stage(f"{name}.{i}", border, whole + flowing)
        if every and i % every == 0
        else Stage(f"{name}.{i}", whole, flowing)
        for i in range(count)
    ]
    if stages and not every and not _learns(work):
        # No gradient enters the first norm: nothing before the first adapter learns.
        stages[0] = Stage(f"{name}.0", whole - _norm(work, rows), flowing)
    return stages


def _stem(work: Workload) -> int:
    """The two convolutions: their inputs, and the inputs of the two GELUs."""
    if not _learns(work):
        return 0  # no gradient reaches them
    width, frames = work.width, work.num_frames
    elements = int(work.config.num_mel_bins) * frames + 2 * width * frames + width * frames // 2
    return work.compute_bytes * elements


def _output_bytes(work: Workload) -> int:
    """Bytes of an element that a layer norm gives out: FP32 under autocast on CUDA, else that of the stream."""
    return FLOAT_BYTES if work.is_autocast and work.device == "cuda" else work.stream_bytes


def _norm(work: Workload, rows: int) -> int:
    """A layer norm keeps its input, on CUDA in FP32, and two statistics a row."""
    return rows * (_output_bytes(work) * work.width + 2 * FLOAT_BYTES)


def _encoder_layer(work: Workload) -> int:
    config, rows = work.config, work.num_positions
    attention = _attention(work, rows, rows, int(config.encoder_attention_heads))
    kept = 2 * _norm(work, rows) + _inputs(work, rows, ("q_proj", "k_proj", "v_proj")) + attention
    if work.precision == "fp16" and work.stream_bytes == 2:
        kept += 2 * rows * work.width  # the clamp of an FP16 stream keeps its input
    return kept + _feed_forward(work, rows, work.encoder_ffn) + 2 * _dropout(work, rows)


def _decoder_layer(work: Workload) -> int:
    config, rows, positions = work.config, work.label_tokens, work.num_positions
    heads = int(config.decoder_attention_heads)
    kept = 3 * _norm(work, rows) + _inputs(work, rows, ("q_proj", "k_proj", "v_proj"))
    kept += _attention(work, rows, rows, heads)
    kept += _inputs(work, rows, ("q_proj",)) + _inputs(work, positions, ("k_proj", "v_proj"), is_shared=True)
    kept += _attention(work, rows, positions, heads)
    return kept + _feed_forward(work, rows, work.decoder_ffn) + 3 * _dropout(work, rows)


def _attention(work: Workload, rows: int, positions: int, heads: int) -> int:
    """Query, key, value, result and log-sums of the fused kernel; the projection takes the result as it lies."""
    width, compute = work.width, work.compute_bytes
    kept = compute * width * (2 * rows + 2 * positions) + FLOAT_BYTES * heads * rows
    return kept if _learns(work) else kept + _half_inputs(work, rows, width, "out_proj")


def _feed_forward(work: Workload, rows: int, ffn: int) -> int:
    kept = _inputs(work, rows, ("fc1",)) + work.compute_bytes * rows * ffn  # the GELU's input
    return kept + _half_inputs(work, rows, ffn, "fc2")


def _inputs(work: Workload, rows: int, names: tuple[str, ...], *, is_shared: bool = False) -> int:
    """What projections of a norm's output keep of it.

    They share one copy under autocast (see `infer.attention`), and without it the norm's output. A frozen projection
    needs none, but its adapter does, and reads it through FP32.

    Args:
        work: the training.
        rows: positions.
        names: the projections.
        is_shared: the norm's output is counted elsewhere.
    """
    compute, width = work.compute_bytes, work.width
    if _learns(work):
        return 0 if is_shared else compute * rows * width
    adapted = [name for name in names if name in work.finetune.target_modules]
    copies = len(adapted) if work.is_autocast or work.stream_bytes != FLOAT_BYTES else min(1, len(adapted))
    copies = 0 if is_shared and not work.is_autocast else copies
    return copies * compute * rows * width + len(adapted) * _ranks(work, rows)


def _is_lowered(work: Workload) -> bool:
    """Say whether autocast copies the output of a layer norm for the projections behind it."""
    return work.is_autocast and _output_bytes(work) != work.compute_bytes


def _half_inputs(work: Workload, rows: int, width: int, name: str) -> int:
    """What a projection keeps of an input that is half already: the tensor itself, or a copy for its adapter."""
    if _learns(work):
        return work.compute_bytes * rows * width
    if name in work.finetune.target_modules:
        return work.compute_bytes * rows * width + _ranks(work, rows)
    return 0


def _ranks(work: Workload, rows: int) -> int:
    """The narrow tensor between the two matrices of an adapter, and the mask of its dropout."""
    mask = rows * work.width if work.finetune.dropout > 0 else 0
    return work.compute_bytes * rows * work.finetune.rank + mask


def _dropout(work: Workload, rows: int) -> int:
    """The mask of a dropout, a byte an element."""
    return rows * work.width if work.config.dropout > 0 else 0
