"""The unit and the Dockerfile name files and keys that exist, and run without root. Nothing here builds an image."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess

import pytest

from scripts.serve import build_settings
from scripts.settings import compose_config, verify_overrides
from tests.conftest import PROJECT

DEPLOY = PROJECT / "serve" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def _unit():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "mezzavoce.service")
    return parser


def _instructions():
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def test_both_start_the_script_with_keys_that_it_knows():
    start = _unit()["Service"]["ExecStart"].split()
    entry = [
        *re.findall(r'"([^"]+)"', dict(_instructions())["ENTRYPOINT"]),
        *re.findall(r'"([^"]+)"', DOCKERFILE.split("CMD")[-1]),
    ]
    for command in (start, entry):
        position = command.index("scripts/serve.py")
        overrides = command[position + 1 :]
        verify_overrides("serve", overrides)
        assert build_settings(compose_config("serve", overrides)).artefact
    assert (PROJECT / "scripts" / "serve.py").is_file()


def test_the_unit_stops_the_service_as_it_wants_to_be_stopped():
    service = _unit()["Service"]
    assert service["KillMode"] == "mixed"
    drain_s = build_settings(compose_config("serve")).serve.drain_s
    assert int(service["TimeoutStopSec"]) > drain_s
    assert service["User"] not in ("root", "0")


def test_systemd_finds_no_fault_in_the_unit(tmp_path):
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("systemd-analyze is not installed")
    text = (
        (DEPLOY / "mezzavoce.service")
        .read_text()
        .replace("/opt/mezzavoce/.venv/bin/python", shutil.which("true") or "")
    )
    unit = tmp_path / "mezzavoce.service"
    unit.write_text(text)
    checked = subprocess.run([checker, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    ours = [line for line in checked.stderr.splitlines() if "mezzavoce.service" in line]
    assert not [line for line in ours if "Unknown" in line or "Failed to parse" in line or "ignoring" in line], ours


def test_the_image_copies_what_is_there_and_runs_without_root():
    lines = _instructions()
    names = [line[0] for line in lines]
    assert names[0] in ("ARG", "FROM") and set(names) <= {
        *(
            "FROM",
            "ARG",
            "ENV",
            "WORKDIR",
            "COPY",
            "RUN",
            "USER",
            "VOLUME",
            "EXPOSE",
            "HEALTHCHECK",
            "ENTRYPOINT",
            "CMD",
        ),
    }
    for name, rest in lines:
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((PROJECT / source).exists() for source in sources), rest
            ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
            assert all(f"!{source}" in ignored for source in sources), rest
        if name == "FROM":
            assert ":" in rest and not rest.endswith(":latest")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert dict(lines)["USER"] not in ("root", "0")
    assert "API_KEY=" not in DOCKERFILE  # a key never becomes part of an image
