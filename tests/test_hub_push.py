"""A stand-in hub receives the artefact's own files, private, with the token of the environment; and nothing else.

The stand-in speaks the hub's protocol over HTTP on this machine; `huggingface_hub` itself talks to it.
"""

from __future__ import annotations

import base64
import http.server
import json
import threading
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from infer.export.card import write_card
from infer.export.hub import ALLOWED, HubSettings, choose_files, push_folder, without_paths

SECRET = "hf_abcdefghijklmnop"
SETTINGS = HubSettings(push=True, repo="org/whisper-de")


class StandIn(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, and keeps what it was told."""

    told: list[dict[str, Any]]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append({"path": self.path, "token": self.headers.get("Authorization"), "body": body})
        answer: dict[str, Any]
        if self.refuses:
            return self._answer({"error": f"no access with {SECRET}"}, 403)
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/org/whisper-de", "name": "org/whisper-de"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        else:
            answer = {"success": True, "commitOid": "c" * 40, "hookOutput": ""}
            answer["commitUrl"] = f"http://{self.headers['Host']}/org/whisper-de/commit/{'c' * 40}"
        return self._answer(answer, 200)

    def _answer(self, answer: dict[str, Any], status: int) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine: its address, and what it was told."""
    handler = type("Handler", (StandIn,), {"told": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artefact among much that must never leave this machine."""
    made = tmp_path / "export"
    files = {
        "config.json": "{}",
        "tokenizer.json": "{}",
        "model.safetensors": "weights",
        "mezzavoce.json": json.dumps(
            {"run": "de", "source": {"path": "/home/me/base"}, "test": ["/data/x/test.jsonl"]}
        ),
        "ctranslate2/model.bin": "converted",
        "predictions.jsonl": "what they said",
        "audio/clip.wav": "RIFF",
        "clip.flac": "fLaC",
        "train.log": "log",
        ".env": f"HF_TOKEN={SECRET}",
        ".cache/config.json": "{}",
        "rejected/model.safetensors": "bad",
        "a/b/config.json": "too deep",
        "notes.txt": "mine",
    }
    for name, text in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (tmp_path / "outside.json").write_text("{}")
    (made / "special_tokens_map.json").symlink_to(tmp_path / "outside.json")
    write_card(made)
    return made


def _committed(told: list[dict[str, Any]]) -> dict[str, bytes]:
    (commit,) = [request for request in told if "/commit/" in request["path"]]
    lines = [json.loads(line) for line in commit["body"].splitlines()]
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }


def test_only_files_on_the_list_arrive_and_they_arrive_whole(hub, folder):
    endpoint, handler = hub
    done = push_folder(folder, SETTINGS, endpoint=endpoint)
    files = _committed(handler.told)
    assert (
        set(files)
        == set(done.files)
        == {
            *(
                "README.md",
                "config.json",
                "tokenizer.json",
                "model.safetensors",
                "mezzavoce.json",
                "ctranslate2/model.bin",
            )
        }
    )
    assert files["model.safetensors"] == b"weights"
    assert {"predictions.jsonl", "audio/clip.wav", ".env", "special_tokens_map.json"} <= set(done.kept_back)
    assert (done.repo, done.commit) == ("org/whisper-de", "c" * 40)


def test_no_request_holds_a_secret_a_path_of_this_machine_or_speech(hub, folder):
    endpoint, handler = hub
    push_folder(folder, SETTINGS, endpoint=endpoint)
    bodies = b"".join(request["body"] for request in handler.told) + b"".join(_committed(handler.told).values())
    for forbidden in (SECRET, "/home/me", "/data/x", "what they said", "RIFF", "fLaC"):
        assert forbidden.encode() not in bodies
    assert {request["token"] for request in handler.told} == {f"Bearer {SECRET}"}
    record = json.loads(_committed(handler.told)["mezzavoce.json"])
    assert record == {"run": "de", "source": {"path": "base"}, "test": ["test.jsonl"]}


def test_the_repository_is_private_unless_asked_otherwise(hub, folder):
    endpoint, handler = hub
    push_folder(folder, SETTINGS, endpoint=endpoint)
    push_folder(folder, HubSettings(push=True, repo="org/whisper-de", public=True), endpoint=endpoint)
    made = [json.loads(request["body"]) for request in handler.told if request["path"] == "/api/repos/create"]
    is_private = [one.get("private", one.get("visibility") == "private") for one in made]
    assert is_private == [True, False]


def test_a_text_with_a_secret_stops_everything_before_a_request(hub, folder):
    endpoint, handler = hub
    (folder / "README.md").write_text(f"my token is {SECRET}")
    with pytest.raises(ValueError, match=r"README\.md holds a secret"):
        push_folder(folder, SETTINGS, endpoint=endpoint)
    assert handler.told == []


def test_a_refusal_is_one_line_without_the_token(hub, folder):
    endpoint, handler = hub
    handler.refuses = True
    with pytest.raises(RuntimeError, match="the hub refused org/whisper-de") as caught:
        push_folder(folder, SETTINGS, endpoint=endpoint)
    assert SECRET not in str(caught.value)


def test_without_token_or_name_it_says_what_to_type(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(PermissionError, match="export HF_TOKEN"):
        push_folder(folder, SETTINGS)
    with pytest.raises(ValueError, match=r"hub\.repo=ORG/NAME"):
        HubSettings(push=True)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no artefact"):
        push_folder(tmp_path / "empty", SETTINGS)


def test_nothing_on_the_list_is_audio_text_of_speech_or_a_checkpoint(folder):
    for name in (
        "a.wav",
        "a.ogg",
        "a.mp3",
        "predictions.jsonl",
        "metrics.jsonl",
        "optimizer.safetensors",
        "config.yaml",
    ):
        (folder / name).write_text("x")
    taken, kept = choose_files(folder)
    assert not {path.suffix for path in taken} & {".wav", ".ogg", ".mp3", ".flac", ".jsonl", ".yaml", ".log"}
    assert Path("optimizer.safetensors") in kept
    assert "*" not in ALLOWED


def test_paths_are_cut_at_any_depth():
    found = without_paths({"a": ["/x/y", "~/z", "org/name", 3], "b": {"c": "/deep/est"}})
    assert found == {"a": ["y", "z", "org/name", 3], "b": {"c": "est"}}
