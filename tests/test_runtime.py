"""FP16 on a CPU is real: autocast computes in half and an enabled scaler scales; the environment changes nothing.

And a run folder is made, taken up or refused as `run.resume` and `run.overwrite` say.
"""

import logging
import random

import numpy as np
import pytest
import torch
from torch import nn

from train.precision import Device, PrecisionSettings, resolve_precision
from train.runtime import build_accelerator, configure_logging, open_run_dir, seed_everything


def _build(mode, **options):
    settings = PrecisionSettings(mode, **options)
    return build_accelerator(resolve_precision(settings, Device("cpu", "cpu")), settings)


def _dtypes_through(accelerator):
    """Return the dtypes out of a Linear, of its weight and of its gradient in a prepared model."""
    seen = []
    inner = nn.Linear(4, 4)
    inner.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    model = accelerator.prepare(nn.Sequential(inner))
    model(torch.ones(2, 4)).float().sum().backward()
    return seen[0], inner.weight.dtype, inner.weight.grad.dtype


@pytest.mark.parametrize(
    ("mode", "computed"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_a_linear_computes_in_what_was_asked_and_keeps_fp32_masters(fresh_accelerate, mode, computed):
    assert _dtypes_through(_build(mode)) == (computed, torch.float32, torch.float32)


def test_fp16_has_an_enabled_scaler_with_our_numbers(fresh_accelerate):
    scaler = _build("fp16", init_scale=512.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=7).scaler
    assert type(scaler) is torch.amp.GradScaler
    assert scaler.is_enabled()
    assert scaler.scale(torch.ones(())).item() == 512.0
    found = scaler.get_scale(), scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()
    assert found == (512.0, 3.0, 0.25, 7)


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_other_modes_have_no_scaler(fresh_accelerate, mode):
    assert _build(mode).scaler is None


@pytest.mark.parametrize("said", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("mode", ["fp32", "fp16", "bf16"])
def test_the_environment_changes_nothing(fresh_accelerate, monkeypatch, mode, said):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    accelerator = _build(mode)
    assert accelerator.mixed_precision == {"fp32": "no"}.get(mode, mode)
    expected = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[mode]
    assert _dtypes_through(accelerator)[0] is expected
    assert (accelerator.scaler is not None) == (mode == "fp16")


def test_a_process_that_finds_no_others_though_it_should_does_not_train_alone(fresh_accelerate, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2 .*start several processes with accelerate launch"):
        _build("fp32")


def test_accumulation_from_the_environment_never_reaches_the_gradient(fresh_accelerate, monkeypatch):
    """Accelerate takes its own count from there; ours is in `train.step`, which divides by label tokens alone."""
    from conftest import fake_batch, tiny_whisper

    from train.loss import TrainingObjective
    from train.step import Updater

    def gradient_norm():
        accelerator = _build("fp32")
        objective = accelerator.prepare(TrainingObjective(tiny_whisper()))
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.0)
        updater = Updater(objective, optimizer, accelerator, max_grad_norm=0.0)
        return updater.update([fake_batch(2, seed=0), fake_batch(2, seed=1)], lr=0.0).grad_norm

    plain = gradient_norm()
    fresh_accelerate()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert gradient_norm() == plain


@pytest.mark.parametrize("cached", [True, False])
def test_the_autocast_cache_follows_the_option(fresh_accelerate, cached):
    settings = PrecisionSettings("bf16")
    accelerator = build_accelerator(resolve_precision(settings, Device("cpu", "cpu")), settings, cache_autocast=cached)
    with accelerator.autocast():
        assert torch.is_autocast_cache_enabled() is cached


def test_one_seed_gives_one_draw_everywhere():
    def draw():
        return random.random(), float(np.random.random()), float(torch.rand(()))

    seed_everything(3)
    first = draw()
    assert draw() != first
    seed_everything(3)
    assert draw() == first


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    path = open_run_dir(tmp_path / "a" / "b", resume="auto", overwrite=False)
    assert path.is_dir()
    assert list(path.iterdir()) == []  # the probe for writing is gone


def test_an_empty_folder_is_taken(tmp_path):
    assert open_run_dir(tmp_path, resume="never", overwrite=False) == tmp_path


@pytest.fixture
def used(tmp_path):
    """A folder with a run in it."""
    folder = tmp_path / "used"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


def test_a_used_folder_is_taken_up_by_auto(used):
    open_run_dir(used, resume="auto", overwrite=False)
    assert (used / "metrics.jsonl").is_file()


def test_a_used_folder_is_refused_by_never(used):
    with pytest.raises(ValueError, match=r"holds a run; name another one, or add run\.overwrite=true"):
        open_run_dir(used, resume="never", overwrite=False)
    assert (used / "metrics.jsonl").is_file()


def test_overwrite_empties_a_run(used):
    open_run_dir(used, resume="never", overwrite=True)
    assert list(used.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_with_other_things_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files, and no config\.yaml"):
        open_run_dir(tmp_path, resume="auto", overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_that_was_killed_before_it_wrote_its_settings_is_begun_again(tmp_path, resume):
    for name in (".lock", ".writable", "train.log"):
        (tmp_path / name).write_text("")
    assert open_run_dir(tmp_path, resume=resume, overwrite=False) == tmp_path
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds other files"):
        open_run_dir(tmp_path, resume=resume, overwrite=False)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        open_run_dir(tmp_path / "file", resume="auto", overwrite=True)


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"cannot write into run\.dir="):
        open_run_dir(tmp_path / "file" / "below", resume="auto", overwrite=False)


def test_only_rank_zero_speaks_and_writes(tmp_path, kept_logging):
    configure_logging(tmp_path, is_main=False)
    assert logging.getLogger().handlers == []
    configure_logging(tmp_path, is_main=True)
    logging.getLogger("train.somewhere").info("a line with %d", 7)
    assert "INFO train.somewhere: a line with 7" in (tmp_path / "train.log").read_text()
