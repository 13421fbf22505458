"""openai-whisper, `whisper.decode`, each clip one window of 30 s."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data.audio import Waveform
from infer.clients.client import Client, ClientRequest, Heard
from infer.decoding import DecodeSettings
from infer.export.openai import load_alignment_heads, load_suppressed
from infer.plain_search import verify_plain_search


@cache
def use_ranks(file: str, num_languages: int) -> Any:
    """Return the tokenizer's encoding over the ranks of a file, as `whisper.tokenizer.get_encoding` builds its own.

    Args:
        file: `NAME.tiktoken`, from `convert_to_openai`.
        num_languages: of the model.
    """
    import base64

    import tiktoken
    from whisper import tokenizer

    own = tokenizer.get_encoding.__wrapped__("multilingual", num_languages)
    lines = (line.split() for line in Path(file).read_text(encoding="ascii").splitlines())
    return tiktoken.Encoding(
        name=Path(file).name,
        explicit_n_vocab=own.n_vocab,
        pat_str=own._pat_str,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens=own._special_tokens,
    )


class OpenAIWhisperClient:
    """A `.pt` in openai-whisper."""

    def __init__(self, file: Path, settings: DecodeSettings) -> None:
        """Load the file.

        Args:
            file: from `convert_to_openai`; its ranks, where it has any, lie beside it.
            settings: greedy or beams.

        Raises:
            ValueError: for settings that are not offered.
        """
        import whisper

        verify_plain_search(settings, "openai-whisper")
        self._whisper = whisper
        self._model = whisper.load_model(str(file), device="cpu")
        heads = load_alignment_heads(file)
        if heads is not None:
            self._model.set_alignment_heads(heads)
        ranks = file.with_suffix(".tiktoken")
        if ranks.is_file():
            _replace_tokenizer(ranks)
        self._settings = settings
        self._suppressed = load_suppressed(file)
        self.weights_bytes = sum(p.numel() * p.element_size() for p in self._model.parameters())
        self.version = f"openai-whisper {version('openai-whisper')}"

    def transcribe(self, waveform: Waveform) -> Heard:
        """Return what one clip says."""
        padded = self._whisper.pad_or_trim(torch.from_numpy(waveform.copy()))
        mel = self._whisper.log_mel_spectrogram(padded, n_mels=self._model.dims.n_mels)
        settings = self._settings
        options = self._whisper.DecodingOptions(
            task=settings.task,
            language=None if settings.language == "auto" else settings.language,
            temperature=0.0,
            beam_size=settings.num_beams if settings.num_beams > 1 else None,
            sample_len=settings.max_new_tokens,
            suppress_tokens=list(self._suppressed) or None,  # with a list it adds the control tokens by itself
            suppress_blank=False,
            without_timestamps=True,
            fp16=False,
        )
        found = self._whisper.decode(self._model, mel, options)
        return Heard(found.text.strip(), found.language if settings.language == "auto" else None)


def _replace_tokenizer(ranks: Path) -> None:
    """Let openai-whisper read and write with other ranks; for this process, so a client has one of its own."""
    from whisper import tokenizer

    def get_encoding(name: str = "multilingual", num_languages: int = 99) -> Any:
        return use_ranks(str(ranks), num_languages)

    get_encoding.__wrapped__ = tokenizer.get_encoding.__wrapped__  # type: ignore[attr-defined]
    tokenizer.get_encoding = get_encoding
    tokenizer.get_tokenizer.cache_clear()


def load(request: ClientRequest) -> Client:
    """Load a `.pt`."""
    return OpenAIWhisperClient(Path(request.folder), request.settings())
