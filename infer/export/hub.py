"""To the Hugging Face hub: an artefact's own files and no others, private unless asked otherwise.

What may go is listed by name. Audio, predictions, logs and checkpoints are not on the list; nor is what holds a secret
of this machine's environment.
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from data.redaction import redact
from infer.artefact import RECORD_NAME

TOKEN_NAME = "HF_TOKEN"
ALLOWED = (
    *("README.md", RECORD_NAME, "gate.md"),
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "normalizer.json", "vocabulary.json", "shared_vocabulary.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *("model.bin", "*.onnx", "*.onnx.data", "*.onnx_data", "ggml-*.bin", "whisper*.pt", "model.pt"),
)
"""Names that may be pushed, in the folder and one below it; all else stays."""
TEXTS = (".json", ".md", ".txt")
LARGEST_TEXT = 64 * 2**20  # bytes that are searched for secrets
REPO_SHAPE = "ORG/NAME"


@dataclass(frozen=True)
class HubSettings:
    """The `hub` group."""

    push: bool = False
    repo: str | None = None
    """`ORG/NAME`."""
    public: bool = False
    revision: str | None = None
    """Branch; None is the main one."""
    license: str | None = None
    """For the card, as the hub knows it, such as `apache-2.0`."""

    def __post_init__(self) -> None:
        if self.push and (self.repo is None or self.repo.count("/") != 1):
            raise ValueError(f"hub.repo={self.repo} must be {REPO_SHAPE}; type hub.push=true hub.repo={REPO_SHAPE}")


@dataclass(frozen=True)
class Push:
    """What went to the hub."""

    repo: str
    files: tuple[str, ...]
    kept_back: tuple[str, ...]
    """Names that are not on the list."""
    commit: str


def choose_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder that may be pushed, and those that may not, both relative to it.

    Links are never followed: one could point at anything.
    """
    taken: list[Path] = []
    kept: list[Path] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() and not path.is_symlink():
            continue
        is_near = len(name.parts) <= 2 and not any(part.startswith((".", "rejected")) for part in name.parts)
        is_listed = any(fnmatch.fnmatchcase(name.name, pattern) for pattern in ALLOWED)
        is_plain = path.is_file() and not path.is_symlink()
        (taken if is_near and is_listed and is_plain else kept).append(name)
    return taken, kept


def push_folder(folder: Path, settings: HubSettings, *, endpoint: str | None = None) -> Push:
    """Push an artefact.

    Args:
        folder: the artefact, with the other formats in folders below it, if any.
        settings: where to.
        endpoint: of another hub; None takes that of the environment.

    Raises:
        ValueError: if nothing may be pushed, or a file holds a secret.
        PermissionError: if there is no token.
        RuntimeError: if the hub refuses.
    """
    assert settings.repo is not None, "checked by the settings"
    token = os.environ.get(TOKEN_NAME)
    if not token:
        raise PermissionError(f"hub.push=true needs a token with write access; type export {TOKEN_NAME}=hf_...")
    taken, kept = choose_files(folder)
    if Path("config.json") not in taken:
        raise ValueError(f"{folder} is no artefact: it has no config.json; export first")
    operations = [CommitOperationAdd(name.as_posix(), _content(folder, name)) for name in taken]
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(settings.repo, private=not settings.public, exist_ok=True, repo_type="model")
        done = api.create_commit(
            settings.repo,
            operations,
            commit_message="Artefact from Mezzavoce",
            revision=settings.revision,
            repo_type="model",
        )
    except (HfHubHTTPError, OSError) as e:
        raise RuntimeError(f"the hub refused {settings.repo}: {redact(str(e)).splitlines()[0]}") from None
    return Push(
        settings.repo,
        tuple(name.as_posix() for name in taken),
        tuple(name.as_posix() for name in kept),
        str(done.oid),
    )


def _content(folder: Path, name: Path) -> str | io.BytesIO:
    """Return a path, or for texts what is left of them without this machine's paths.

    Raises:
        ValueError: if a text holds a secret.
    """
    file = folder / name
    if file.suffix not in TEXTS or file.stat().st_size > LARGEST_TEXT:
        return str(file)
    text = file.read_text(encoding="utf-8")
    if redact(text) != text:
        raise ValueError(f"{file} holds a secret of the environment; nothing was pushed: take it out")
    if name.name == RECORD_NAME:
        text = json.dumps(without_paths(json.loads(text)), ensure_ascii=False, indent=2) + "\n"
    return io.BytesIO(text.encode("utf-8"))


def without_paths(value: Any) -> Any:
    """Return plain values with every absolute path cut to its last part: the machine is nobody's business."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~")) and "\n" not in value:
        return Path(value).name
    return value
