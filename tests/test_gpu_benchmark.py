"""The program for the GPU runs here at toy size, part by part, with the packages missing that a bare machine lacks."""

import json
import os
import subprocess
import sys

import pytest
from conftest import PROJECT

BLOCKED = """
import json, sys

NAMES = ("datasets", "hydra", "omegaconf", "jiwer", "evaluate", "wandb", "soundfile", "soxr", "av", "pyarrow")


class Hiding:
    def __init__(self, inner):
        self.inner = inner

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in NAMES else self.inner.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.inner, name)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from benchmarks import gpu

parts = [name for name in gpu.PARTS if name != "compiled"]
print("FOUND" + json.dumps([gpu.MISSING, gpu.run_parts(parts, gpu.TOY)]))
"""


@pytest.fixture(scope="module")
def found():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, done.stderr[-3000:]
    missing, figures = json.loads(lines[0].removeprefix("FOUND"))
    assert set(missing) >= {"av", "datasets", "jiwer", "soundfile", "wandb"}
    return figures


def test_no_part_fails(found):
    assert {name: figures["error"] for name, figures in found.items() if "error" in figures} == {}


def test_overflows_follow_the_oracle_and_gradients_the_reference(found):
    for kind in ("plain_adamw", "fused_adamw"):
        assert set(found["overflow"][kind]["disagreements"].values()) == {0}
        for precision, bound in (("fp32", 1e-5), ("fp16", 2e-2), ("bf16", 1e-1)):
            assert max(found["gradient"][kind][precision].values()) <= bound


def test_speeds_are_measured_side_by_side(found):
    for name in ("speed_30s", "speed_sentences"):
        assert found[name]["ratio"]["lowest"] > 0
        assert 0 < found[name]["mfu"] < 2
    assert found["speed_30s"]["windows_s"] == [30.0]
    assert max(found["speed_sentences"]["windows_s"]) < 30


def test_a_run_repeats_itself_and_the_cache_changes_nothing(found):
    assert found["repeat"]["fp16"]["is_equal"]
    assert found["repeat"]["bf16"]["is_equal"]
    assert found["cache"]["largest_relative_difference_of_losses"] <= 1e-6
