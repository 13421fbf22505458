"""`scripts/serve.py` turns its configuration into a service, and `scripts/serve.sh` runs one in the background."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from scripts import serve
from scripts.settings import SettingsError, compose_config
from serve.settings import ServeSettings
from tests.conftest import PROJECT
from train.precision import Device, PrecisionSettings

SCRIPT = PROJECT / "scripts" / "serve.sh"
VOLTA, PASCAL = Device("cuda", "V100", is_volta=True), Device("cuda", "GTX 1080")
AMPERE, CPU = Device("cuda", "A10", is_volta=True, is_ampere=True), Device("cpu", "cpu")


def _settings(*overrides):
    return serve.build_settings(compose_config("serve", overrides))


def test_yaml_gives_every_key_and_the_defaults_are_those_of_the_package():
    given = compose_config("serve")["serve"]
    assert given.keys() == {field.name for field in dataclasses.fields(ServeSettings)}
    assert _settings().serve == ServeSettings()


def test_without_an_artefact_the_demo_is_served(monkeypatch, tmp_path):
    (spec,) = serve.find_models(_settings())
    assert spec.path in serve.DEMO and spec.name in ("demo", "base")
    monkeypatch.setattr(serve, "DEMO", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="make demo"):
        serve.find_models(_settings())


def test_names_are_those_of_the_runs_and_differ():
    specs = serve.find_models(_settings("artefact=[runs/a/export,runs/b/export,other/b]", "runtime=ctranslate2"))
    assert [spec.name for spec in specs] == ["a", "b", "b-2"]
    assert {spec.runtime for spec in specs} == {"ctranslate2"}
    each = serve.find_models(_settings("artefact=[a,b]", "runtime=[torch,ctranslate2]"))
    assert [spec.runtime for spec in each] == ["torch", "ctranslate2"]


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CPU, "auto"),
        ("auto", VOLTA, "auto"),
        ("auto", AMPERE, "auto"),
        ("auto", PASCAL, "fp32"),
        ("fp16", CPU, "fp16"),
        ("fp16", VOLTA, "fp16"),
        ("bf16", AMPERE, "bf16"),
        ("fp32", PASCAL, "fp32"),
    ],
)
def test_arithmetic_is_what_the_device_can(name, device, expected):
    assert serve.choose_compute(PrecisionSettings(name), device)[0] == expected


def test_an_old_card_says_what_works_and_falls_back_where_that_is_asked_for():
    for name, device, works in (("fp16", PASCAL, "fp32"), ("bf16", VOLTA, "fp16")):
        with pytest.raises(RuntimeError, match=f"use precision={works}"):
            serve.choose_compute(PrecisionSettings(name), device)
        compute, reason = serve.choose_compute(PrecisionSettings(name, fallback=True), device)
        assert compute == works and "instead of" in reason


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["runtime=tensorrt"], "must be one of torch, ctranslate2"),
        (["artefact=[a,b,c]", "runtime=[torch,ctranslate2]"], "one each"),
        (["profiles=[]"], "profiles="),
        (["serve.max_batch=0"], "serve.max_batch=0"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        _settings(*overrides)


def test_profiles_are_those_of_the_configuration():
    profiles = serve.load_profiles(("greedy", "beam5", "longform"))
    assert (profiles["beam5"].num_beams, len(profiles["longform"].temperature)) == (5, 6)
    with pytest.raises(SettingsError, match="must be among beam5, greedy"):
        serve.load_profiles(("best",))


def _shell(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, "MEZZAVOCE_SERVE_DIR": str(folder), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_service_in_the_background_starts_tells_and_stops(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    assert _shell(tmp_path, "status").returncode == 3
    options = (f"serve.port={port}", "serve.page=false", "serve.workers=1", "serve.decoders=1", "profiles=[greedy]")
    left = tmp_path / "uploads" / "999999999"  # of a service that was killed; no process has so high a number
    left.mkdir(parents=True)
    started = _shell(tmp_path, "start", f"artefact={PROJECT}/data/demo/base", *options)
    try:
        assert started.returncode == 0, started.stderr
        assert f"http://127.0.0.1:{port}" in started.stdout
        assert not left.exists()
        status = _shell(tmp_path, "status")
        assert status.returncode == 0
        assert '"ready"' in status.stdout and "max_recordings" in status.stdout and "last errors:" in status.stdout
        assert _shell(tmp_path, "start").returncode == 1  # it runs already
        assert httpx.get(f"http://127.0.0.1:{port}/health").json()["state"] == "ready"
    finally:
        stopped = _shell(tmp_path, "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert _shell(tmp_path, "stop").stdout == "it does not run\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")
    assert "self-test: " in (tmp_path / "serve.log").read_text()


def test_a_command_that_is_none_shows_those_that_are(tmp_path):
    for arguments in ((), ("restart",)):
        shown = _shell(tmp_path, *arguments)
        assert shown.returncode == 2
        assert all(f"scripts/serve.sh {name}" in shown.stderr for name in ("start", "status", "logs", "stop"))


def test_the_shell_script_is_well_formed():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True).returncode == 0
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    assert subprocess.run([checker, str(SCRIPT)], capture_output=True).returncode == 0
