"""Does accumulation change the gradient? One update of 16 clips as 1x16, 2x8 and 4x4, ours and Hugging Face's Trainer.

    python -m benchmarks.accumulation

The clips have unequal label lengths, as speech has. Ours runs the real `Updater` in FP32 and in FP16 AMP on a small
Whisper; the reference is the same model's gradient of the mean loss over all label tokens of the 16 clips, in float64.
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, WhisperConfig
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.environment import write_result
from data.batches import SpeechBatch, collate
from data.labels import Labels
from infer.encoder import WindowedWhisper, encode
from train.loss import TrainingObjective
from train.optim import OptimizerSettings, build_optimizer
from train.precision import PrecisionSettings, inspect_device, resolve_precision
from train.runtime import build_accelerator
from train.step import Updater

SPLITS = ((16, 1), (8, 2), (4, 4))  # micro-batch size, accumulation
NUM_FRAMES = 100
VOCABULARY = 200


def build_whisper() -> WindowedWhisper:
    """Build a Whisper of two and two layers from fixed random weights."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=80,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=NUM_FRAMES // 2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WindowedWhisper(config)


def build_clips() -> tuple[list[Tensor], list[Labels]]:
    """Build 16 clips with 3 to 40 label tokens."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(80, NUM_FRAMES, generator=generator) for _ in range(16)]
    lengths = torch.randint(3, 41, (16,), generator=generator).tolist()
    labels = []
    for length in lengths:
        ids = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
        labels.append(Labels((3, *ids[:-1]), tuple(ids)))
    return features, labels


def split_batches(size: int) -> list[SpeechBatch]:
    """Cut the clips into micro-batches, each padded to its own longest label."""
    features, labels = build_clips()
    return [
        collate(features[i : i + size], labels[i : i + size], clips=range(i, i + size), audio_s=float(size), pad_id=0)
        for i in range(0, 16, size)
    ]


def reference_gradient() -> Tensor:
    """Return the gradient in float64 of the mean over all label tokens, one clip at a time."""
    whisper = build_whisper().double()
    features, labels = build_clips()
    num_tokens = sum(item.num_label_tokens for item in labels)
    for feature, item in zip(features, labels, strict=True):
        hidden = encode(whisper.model.encoder, feature[None].double())
        logits = whisper(
            decoder_input_ids=torch.tensor([item.decoder_input_ids]),
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            use_cache=False,
        ).logits
        nll = -logits.log_softmax(-1)[0].gather(1, torch.tensor(item.labels)[:, None]).sum()
        (nll / num_tokens).backward()
    return flat_gradient(whisper)


def flat_gradient(whisper: WindowedWhisper) -> Tensor:
    """Join all gradients into one vector, float64."""
    gradients = [p.grad for _, p in sorted(whisper.named_parameters()) if p.grad is not None]
    return torch.cat([gradient.double().flatten().cpu() for gradient in gradients])


def make_optimizer(kind: str, whisper: WindowedWhisper) -> torch.optim.Optimizer:
    """Build `fused_adamw` and `adamw_8bit` as training does, and `plain_adamw` without any kernel of its own."""
    if kind == "plain_adamw":
        parameters = [p for p in whisper.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=1e-3, fused=False, foreach=False)
    name = "adamw" if kind == "fused_adamw" else kind
    return build_optimizer(OptimizerSettings(name, lr=1e-3), whisper.named_parameters())


def our_gradient(
    precision_name: str, micro_batch_size: int, *, kind: str = "fused_adamw", device: str = "cpu"
) -> tuple[Tensor, float]:
    """Return gradient and loss of one update by our code, the gradient on the host."""
    AcceleratorState._reset_state(True)
    settings = PrecisionSettings(precision_name, init_scale=1024.0)
    precision = resolve_precision(settings, inspect_device(torch.device(device)))
    accelerator: Accelerator = build_accelerator(precision, settings)
    whisper = build_whisper()
    objective = accelerator.prepare(TrainingObjective(whisper))
    optimizer = make_optimizer(kind, whisper)
    seen: list[Tensor] = []  # unscaled, before the weights move
    optimizer.register_step_pre_hook(lambda *_: seen.append(flat_gradient(whisper)))
    updater = Updater(objective, optimizer, accelerator, max_grad_norm=0.0)
    result = updater.update(split_batches(micro_batch_size), lr=0.0)
    return seen[0], result.loss


def hugging_face_norm(micro_batch_size: int, accumulation: int) -> tuple[float, float]:
    """Return gradient norm and logged loss of one update by `Seq2SeqTrainer`."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    features, labels = build_clips()
    longest = max(len(item.labels) for item in labels)
    padded = [list(item.labels) + [-100] * (longest - len(item.labels)) for item in labels]
    rows = [{"input_features": f, "labels": torch.tensor(p)} for f, p in zip(features, padded, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=0.0,
            logging_steps=1,
            report_to=[],
            max_grad_norm=1e9,
            use_cpu=True,
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        trainer = Seq2SeqTrainer(
            model=copy.deepcopy(build_whisper()),
            args=arguments,
            train_dataset=rows,
            data_collator=lambda batch: {key: torch.stack([row[key] for row in batch]) for key in batch[0]},
        )
        trainer.train()
        log = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    return float(log["grad_norm"]), float(log["loss"])


def main() -> None:
    """Measure and write `results/accumulation.json`."""
    reference = reference_gradient()
    figures: dict[str, Any] = {"clips": 16, "reference_norm": float(reference.norm())}
    for precision in ("fp32", "fp16"):
        gradients = {}
        for size, accumulation in SPLITS:
            gradient, loss = our_gradient(precision, size)
            gradients[f"{accumulation}x{size}"] = (gradient, loss)
        whole = gradients["1x16"][0]
        figures[precision] = {
            name: {
                "loss": loss,
                "norm": float(gradient.norm()),
                "relative_difference_to_1x16": float((gradient - whole).norm() / whole.norm()),
                "relative_difference_to_float64": float((gradient - reference).norm() / reference.norm()),
            }
            for name, (gradient, loss) in gradients.items()
        }
    figures["hugging_face_trainer"] = {}
    for size, accumulation in SPLITS:
        norm, loss = hugging_face_norm(size, accumulation)
        figures["hugging_face_trainer"][f"{accumulation}x{size}"] = {
            "loss": loss,
            "norm": norm,
            "norm_over_reference": norm / float(reference.norm()),
        }
    for name in ("fp32", "fp16", "hugging_face_trainer"):
        for split, values in figures[name].items():
            print(name, split, {key: float(f"{value:.3g}") for key, value in values.items()})
    write_result("accumulation", figures)


if __name__ == "__main__":
    main()
