"""Whisper's layers compiled one by one: fewer and larger kernels, in a graph for each window length.

Layer by layer, since all layers of a stack are alike: one graph serves them all, and checkpoints stay around it. The
encoder's shapes are static, because windows have few lengths; the decoder's are not, because texts have many.
"""

from __future__ import annotations

import torch

from infer.encoder import WindowedWhisper

MAX_GRAPHS = 64  # of one kind of layer: window lengths times sizes of a micro-batch; torch gives up at 8


def compile_layers(whisper: WindowedWhisper, *, backend: str = "inductor") -> None:
    """Compile every layer where it stands; names and weights stay, and nothing is compiled before its first use.

    Args:
        whisper: the model that trains.
        backend: of `torch.compile`.
    """
    # Else a compiled backward runs under the autocast of its forward: FP16 sums where eager ones are FP32, which
    # overflow in silence.
    torch._functorch.config.backward_pass_autocast = "off"
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    for layer in whisper.model.encoder.layers:
        layer.compile(dynamic=False, backend=backend)
    for layer in whisper.model.decoder.layers:
        layer.compile(dynamic=True, backend=backend)
