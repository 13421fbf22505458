"""What each `precision=` stores, computes and scales on each kind of device, and that no half-stored weight can learn.

The table is written out by hand; devices are fakes, so Volta and Ampere are tested anywhere.
"""

import pytest
import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from train.model import ModelSettings, load_model
from train.precision import (
    MODES,
    Device,
    PrecisionSettings,
    apply_matmul_precision,
    inspect_device,
    resolve_precision,
    verify_trainable_dtype,
)

CPU = Device("cpu", "cpu")
CPU_BF16 = Device("cpu", "cpu", has_fast_bf16=True)
PASCAL = Device("cuda", "Tesla P100")
VOLTA = Device("cuda", "Tesla V100", is_volta=True)
AMPERE = Device("cuda", "RTX 4090", is_volta=True, is_ampere=True)
DEVICES = {"cpu": CPU, "cpu_bf16": CPU_BF16, "pascal": PASCAL, "volta": VOLTA, "ampere": AMPERE}

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ANSWERS = {  # mode -> stored, computes, Accelerate's name, scaled
    "fp32": (F32, F32, "no", False),
    "tf32": (F32, F32, "no", False),
    "fp16": (F32, F16, "fp16", True),
    "bf16": (F32, BF16, "bf16", False),
    "bf16_pure": (BF16, BF16, "no", False),
}
POSSIBLE = {
    "cpu": {"fp32", "fp16", "bf16", "bf16_pure"},
    "cpu_bf16": {"fp32", "fp16", "bf16", "bf16_pure"},
    "pascal": {"fp32"},
    "volta": {"fp32", "fp16"},
    "ampere": set(MODES),
}
AUTO = {"cpu": "fp32", "cpu_bf16": "bf16", "pascal": "fp32", "volta": "fp16", "ampere": "bf16"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_on_every_device(device, mode):
    settings = PrecisionSettings(mode)
    if mode in POSSIBLE[device]:
        precision = resolve_precision(settings, DEVICES[device])
        found = (precision.param_dtype, precision.compute_dtype, precision.accelerate, precision.uses_scaler)
        assert precision.mode == mode
        assert found == ANSWERS[mode]
        assert precision.reason == "asked for"
    else:
        with pytest.raises(RuntimeError) as caught:
            resolve_precision(settings, DEVICES[device])
        message = str(caught.value)
        assert f"precision={mode} needs" in message
        assert f"found {DEVICES[device].name}" in message
        named = message.split("use precision=")[1].split(",")[0]
        assert named in POSSIBLE[device]  # what the message advises works here
        assert resolve_precision(PrecisionSettings(named), DEVICES[device]).mode == named


@pytest.mark.parametrize("device", DEVICES)
def test_auto_takes_what_works_and_says_why(device):
    precision = resolve_precision(PrecisionSettings("auto"), DEVICES[device])
    assert precision.mode == AUTO[device]
    assert len(precision.reason) > 10
    assert DEVICES[device].kind == "cpu" or DEVICES[device].name in precision.reason


def test_fallback_takes_the_advised_mode_and_says_so():
    precision = resolve_precision(PrecisionSettings("bf16", fallback=True), VOLTA)
    assert precision.mode == "fp16"
    assert "instead of bf16, which needs an Ampere or newer GPU, found Tesla V100" in precision.reason
    line = precision.describe(65536.0)
    assert "instead of bf16" in line


def test_fallback_changes_nothing_where_the_mode_works():
    assert resolve_precision(PrecisionSettings("bf16", fallback=True), AMPERE).reason == "asked for"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("fp32", "precision=fp32: weights stored in FP32, matmuls in strict FP32, loss scale none; asked for"),
        ("tf32", "precision=tf32: weights stored in FP32, matmuls in TF32, loss scale none; asked for"),
        ("fp16", "precision=fp16: weights stored in FP32, matmuls in FP16, loss scale dynamic from 1024; asked for"),
        ("bf16", "precision=bf16: weights stored in FP32, matmuls in BF16, loss scale none; asked for"),
        ("bf16_pure", "precision=bf16_pure: weights stored in BF16, matmuls in BF16, loss scale none; asked for"),
    ],
)
def test_describe_is_one_line_with_all_four_facts(mode, expected):
    assert resolve_precision(PrecisionSettings(mode), AMPERE).describe(1024.0) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "fp8"},
        {"init_scale": 0.0},
        {"growth_factor": 1.0},
        {"backoff_factor": 1.0},
        {"backoff_factor": 0.0},
        {"growth_interval": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="precision"):
        PrecisionSettings(**wrong)


def test_this_machine_is_a_device_that_can_do_fp32():
    device = inspect_device(torch.device("cpu"))
    assert device.kind == "cpu"
    assert resolve_precision(PrecisionSettings("fp32"), device).mode == "fp32"


@pytest.fixture
def kept_tf32():
    """Put torch's process-wide switches back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_fp16_reduced_precision_reduction
    yield
    matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_fp16_reduced_precision_reduction = before


@pytest.mark.parametrize(("mode", "allowed"), [("fp32", False), ("tf32", True), ("fp16", True), ("bf16", True)])
def test_only_fp32_is_strict_convolutions_too(mode, allowed, kept_tf32):
    torch.backends.cuda.matmul.allow_tf32 = not allowed
    torch.backends.cudnn.allow_tf32 = not allowed
    apply_matmul_precision(resolve_precision(PrecisionSettings(mode), AMPERE))
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_parameters_of_the_wrong_dtype_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    verify_trainable_dtype(model.named_parameters(), F32)
    model[1].half()
    model[2].to(BF16).requires_grad_(False)  # frozen: may be stored in anything
    with pytest.raises(RuntimeError) as caught:
        verify_trainable_dtype(model.named_parameters(), F32)
    message = str(caught.value)
    assert "2 trainable parameters" in message
    assert "1.weight (float16), 1.bias (float16)" in message
    assert "2.weight" not in message
    assert "0.weight" not in message
    assert "dtype=torch.float32" in message


def test_many_wrong_parameters_are_counted():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))).half()
    with pytest.raises(RuntimeError, match=r"8 trainable .* and 3 more; load"):
        verify_trainable_dtype(model.named_parameters(), F32)


def test_a_half_checkpoint_is_caught_as_transformers_loads_it_and_never_met_as_we_do(whisper, tokenizer, tmp_path):
    """Transformers 5 keeps the dtype of the file; a fused optimiser would then train FP16 weights in silence."""
    whisper.half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    as_stored = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert as_stored.dtype is F16  # the trap is still there
    with pytest.raises(RuntimeError, match=r"model\.encoder\.conv1\.weight \(float16\)"):
        verify_trainable_dtype(as_stored.named_parameters(), F32)
    ours = load_model(ModelSettings("local", path=str(tmp_path))).whisper
    verify_trainable_dtype(ours.named_parameters(), F32)
    assert {p.dtype for p in ours.parameters()} == {F32}
