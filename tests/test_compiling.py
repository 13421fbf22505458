"""Compiled layers give the eager gradient: through torch's own graphs always, and through inductor where it works here.

Traps that would show: a backward under autocast, a graph that bakes in the first length, names that change.
"""

import shutil

import pytest
import torch
from conftest import fake_batch, tiny_whisper

from train.adapters import enable_checkpointing
from train.compiling import compile_layers
from train.loss import TrainingObjective

BOUNDS = {None: 1e-5, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _kept_switches():
    functorch, dynamo = torch._functorch.config, torch._dynamo.config
    before = getattr(functorch, "backward_pass_autocast", None), dynamo.recompile_limit
    yield
    torch._dynamo.reset()
    if before[0] is not None:
        functorch.backward_pass_autocast = before[0]
    dynamo.recompile_limit = before[1]


# two windows, and texts of two lengths
SIZES = ((3, 100), (2, 60))


def _gradient(dtype, *, backend=None, checkpointing=False, sizes=SIZES):
    whisper = tiny_whisper().train()
    whisper.config.use_cache = False
    if checkpointing:
        enable_checkpointing(whisper)
    if backend is not None:
        compile_layers(whisper, backend=backend)
    objective = TrainingObjective(whisper)
    for num_clips, num_frames in sizes:
        batch = fake_batch(num_clips, num_frames=num_frames)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = objective(batch.input_features, batch.decoder_input_ids, batch.labels)
        (loss * 256.0 / batch.num_label_tokens).backward()
    return torch.cat([p.grad.flatten() for p in whisper.parameters() if p.requires_grad])


@pytest.mark.parametrize("dtype", BOUNDS, ids=["fp32", "fp16"])
def test_compiled_layers_give_the_eager_gradient(dtype):
    eager = _gradient(dtype)
    compiled = _gradient(dtype, backend="aot_eager")
    assert torch._functorch.config.backward_pass_autocast == "off"
    assert float((compiled - eager).norm() / eager.norm()) <= BOUNDS[dtype]


def test_a_checkpoint_around_a_compiled_layer():
    eager = _gradient(None)
    compiled = _gradient(None, backend="aot_eager", checkpointing=True)
    assert float((compiled - eager).norm() / eager.norm()) <= BOUNDS[None]


def test_names_and_weights_stay():
    whisper = tiny_whisper()
    before = {name: p.detach().clone() for name, p in whisper.state_dict().items()}
    compile_layers(whisper, backend="eager")
    after = whisper.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU, and there is no g++")
def test_inductor_gives_the_eager_gradient():
    eager = _gradient(None, sizes=SIZES[:1])
    compiled = _gradient(None, backend="inductor", sizes=SIZES[:1])
    assert float((compiled - eager).norm() / eager.norm()) <= BOUNDS[None]
