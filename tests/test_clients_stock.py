"""The transformers pipeline and faster-whisper hear what ours hears, and refuse what they decode otherwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data.sources import Source
from infer.clients.client import ClientRequest, run_client
from infer.decoding import DecodeSettings
from infer.export.ctranslate2 import convert_to_ctranslate2

pytest.importorskip("faster_whisper", reason="the extra `runtimes` is not installed")


def ask(client: str, folder: Path, corpus: Path, **changes: object):
    decoding = dataclasses.asdict(DecodeSettings(max_new_tokens=12, **changes))
    source = dataclasses.asdict(Source(str(corpus)))
    return run_client(ClientRequest(client, str(folder), (source,), decoding, num_threads=1, latency_clips=1))


def test_both_hear_what_ours_hears(artefact_dir: Path, corpus: Path, tmp_path: Path):
    ours = ask("mezzavoce", artefact_dir, corpus)
    assert len(set(ours["texts"].values())) > 1
    converted = convert_to_ctranslate2(artefact_dir, tmp_path / "ct2")
    for client, folder in (("transformers", artefact_dir), ("faster_whisper", converted)):
        theirs = ask(client, folder, corpus)
        assert theirs["texts"] == ours["texts"], client
        assert theirs["languages"] == ours["languages"], client
        assert theirs["rtfx"] > 0
        assert theirs["weights_bytes"] > 0


def test_settings_that_mean_another_search_are_refused(artefact_dir: Path, corpus: Path):
    with pytest.raises(ValueError, match=r"decoding\.no_speech_threshold=0\.6"):
        ask("transformers", artefact_dir, corpus, no_speech_threshold=0.6)
