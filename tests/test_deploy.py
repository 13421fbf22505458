"""The unit and the Dockerfile name files and keys that exist, and run without root. Nothing here builds an image."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import tomllib

import pytest

from scripts.serve import build_settings
from scripts.settings import compose_config, verify_overrides
from serve.gate import OPEN_ROUTES
from tests.conftest import PROJECT

DEPLOY = PROJECT / "serve" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


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
    user = dict(lines)["USER"]
    assert f"useradd --system --uid {user} " in DOCKERFILE
    assert max(i for i, name in enumerate(names) if name in ("RUN", "COPY")) < names.index("USER")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert user not in ("root", "0")
    assert "API_KEY=" not in DOCKERFILE  # a key never becomes part of an image


def test_what_the_image_copies_is_in_git_and_holds_every_package_that_it_installs():
    if shutil.which("git") is None or not (PROJECT / ".git").exists():
        pytest.skip("this is no checkout of git")
    copied = [source for name, rest in _instructions() if name == "COPY" for source in rest.split()[:-1]]
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--", *copied], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for source in copied:
        assert any(path == source or path.startswith(f"{source}/") for path in tracked), source
    packages = {name.partition(".")[0] for name in PYPROJECT["tool"]["setuptools"]["packages"]}
    assert packages <= set(copied)
    assert {PYPROJECT["project"]["readme"], *PYPROJECT["project"]["license-files"]} <= set(copied)
    # What is installed imports nothing of ours that stays behind.
    ours = {path.name for path in PROJECT.iterdir() if (path / "__init__.py").is_file()}
    found = set()
    for path in (PROJECT / path for path in tracked if path.endswith(".py")):
        found |= set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), flags=re.M))
    assert found & ours <= set(copied)


def test_the_image_installs_extras_that_there_are_with_what_the_runtimes_need():
    (given,) = re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE)
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(given.split(",")) <= extras.keys()
    names = {re.match(r"[\w-]+", line)[0] for extra in given.split(",") for line in extras[extra]}
    assert names >= {"fastapi", "uvicorn", "gradio", "python-multipart", "ctranslate2", "onnxruntime", "onnxscript"}


def test_the_image_listens_keeps_and_is_asked_where_it_says():
    lines = dict(_instructions())
    overrides = re.findall(r'"([^"]+=[^"]+)"', lines["ENTRYPOINT"])
    serve = build_settings(compose_config("serve", overrides)).serve
    assert serve.host == "0.0.0.0" and str(serve.port) == lines["EXPOSE"] and serve.dir == lines["VOLUME"]
    assert f"chown mezzavoce {serve.dir}" in DOCKERFILE
    (asked,) = re.findall(r"http://127\.0\.0\.1:\d+/\w+", lines["HEALTHCHECK"])
    assert asked == f"http://127.0.0.1:{serve.port}{OPEN_ROUTES[0]}"
    assert lines["ENTRYPOINT"].startswith("[") and lines["CMD"].startswith("[")  # a shell would keep SIGTERM to itself
    (stop_s,) = re.findall(r"docker run .*--stop-timeout (\d+)", DOCKERFILE)
    assert int(stop_s) > serve.drain_s
