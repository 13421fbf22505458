"""The file for whisper.cpp holds our weights, rounded as ggml rounds, and whisper.cpp says what we say."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from data.windows import full_windows
from infer.artefact import load_artefact
from infer.decoding import DecodeSettings
from infer.export.ggml import convert_to_ggml
from infer.export.ggml_blocks import q5_0_blocks, q8_0_blocks
from infer.export.openai_layout import openai_layout, token_bytes
from infer.transcriber import Transcriber
from tests.conftest import tone

pytest.importorskip("pywhispercpp", reason="the extra `runtimes` is not installed")

SETTINGS = DecodeSettings(max_new_tokens=12)


@pytest.fixture
def artefact_dir(lay_artefact, tmp_path: Path) -> Path:
    return lay_artefact(tmp_path / "export", (30,))


def ggml_base() -> ctypes.CDLL:
    """ggml's own quantisation, as it lies in pywhispercpp's wheel."""
    import pywhispercpp

    folder = Path(pywhispercpp.__file__).parent.parent / "pywhispercpp.libs"
    found = sorted(folder.glob("libggml-base*"))
    if not found:
        pytest.skip("this build of pywhispercpp has no libggml-base beside it")
    return ctypes.CDLL(str(found[0]))


@pytest.mark.parametrize(("kind", "ours", "block_bytes"), [("q8_0", q8_0_blocks, 34), ("q5_0", q5_0_blocks, 22)])
def test_blocks_are_those_of_ggmls_reference(kind: str, ours, block_bytes: int):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.05, (64, 96)).astype(np.float32)
    values[3, :32] = 0.0
    values[4, :32] = np.linspace(-1, 1, 32)
    values[5, :32] = np.arange(32) - 15.5  # halves, which C and numpy round unlike
    values[6, :32] *= 1e-6
    values[7, :32] = -2.0
    num_blocks = values.size // 32
    expected = ctypes.create_string_buffer(num_blocks * block_bytes)
    reference = ggml_base()[f"quantize_row_{kind}_ref"]
    reference.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    reference(values.ctypes.data, ctypes.addressof(expected), values.size)
    assert ours(values) == expected.raw


def test_the_head_holds_sizes_filters_and_words(artefact_dir: Path, tokenizer, tmp_path: Path):
    content = convert_to_ggml(artefact_dir, tmp_path / "model.bin").read_bytes()
    magic, *sizes = struct.unpack_from("<I11i", content)
    assert magic == 0x67676D6C
    # 51,866 tokens, whatever the model has; the feed-forward part of 32 is filled up to 4 x 16
    assert sizes == [51_866, 1500, 16, 2, 2, 448, 16, 2, 1, 80, 1]
    num_mels, num_bins = struct.unpack_from("<2i", content, 48)
    filters = np.frombuffer(content, "<f4", num_mels * num_bins, 56).reshape(num_mels, num_bins)
    assert np.array_equal(filters, WhisperFeatureExtractor(80).mel_filters.T.astype("f4"))
    offset = 56 + filters.nbytes
    (num_words,) = struct.unpack_from("<i", content, offset)
    offset += 4
    words = []
    for _ in range(num_words):
        (length,) = struct.unpack_from("<I", content, offset)
        words.append(content[offset + 4 : offset + 4 + length])
        offset += 4 + length
    assert num_words == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for text in ("привет мир", "你好世界", "one two"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(words[i] for i in ids).decode() == text


def speak(artefact_dir: Path, settings: DecodeSettings = SETTINGS) -> tuple[list[np.ndarray], list[str], list[str]]:
    clips = [
        tone(duration_s, hz=hz, seed=i) for i, (duration_s, hz) in enumerate([(1.0, 200), (2.5, 900), (4.0, 3000)])
    ]
    artefact = load_artefact(artefact_dir, compute="fp32")
    found = Transcriber(replace(artefact, windows=full_windows()), settings).transcribe(clips)
    return clips, [f.text for f in found], [f.detected_language for f in found]


def test_whisper_cpp_says_what_torch_says(artefact_dir: Path, tmp_path: Path):
    from infer.clients.whisper_cpp import WhisperCppClient

    # Random weights find all languages alike, to within what whisper.cpp's FP16 arithmetic shifts: one is given.
    settings = replace(SETTINGS, language="ru")
    clips, texts, _ = speak(artefact_dir, settings)
    assert len(set(texts)) > 1
    file = convert_to_ggml(artefact_dir, tmp_path / "model.bin")
    client = WhisperCppClient(file, settings, num_threads=1)
    assert [client.transcribe(clip).text for clip in clips] == texts


def test_what_cannot_be_written_says_why_and_leaves_nothing(artefact_dir: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="f16, q8_0, q5_0"):
        convert_to_ggml(artefact_dir, tmp_path / "out.bin", stored="q4_0")
    with pytest.raises(ValueError, match="width 16 is not a multiple of 32"):
        convert_to_ggml(artefact_dir, tmp_path / "out.bin", stored="q8_0")
    (artefact_dir / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        convert_to_ggml(artefact_dir, tmp_path / "out.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"export"}


def test_stock_vocabularies_stay_where_they_are():
    class Stock:
        """Enough of large-v3's tokenizer: text, then the special tokens in OpenAI's order."""

        def __init__(self) -> None:
            from whisper.tokenizer import get_encoding

            encoding = get_encoding("multilingual", num_languages=100)
            self.added = dict(encoding._special_tokens)

        def get_added_vocab(self) -> dict[str, int]:
            return self.added

        def convert_tokens_to_ids(self, token: str) -> int:
            return self.added[token]

        def convert_ids_to_tokens(self, index: int) -> str:
            return next(token for token, i in self.added.items() if i == index)

    layout = openai_layout(Stock(), 51_866)
    assert (layout.is_moved, layout.num_text, len(layout.rows)) == (False, 50_257, 51_866)


def test_a_vocabulary_of_its_own_is_moved_by_name(tokenizer):
    from whisper.tokenizer import get_encoding

    layout = openai_layout(tokenizer, len(tokenizer))
    theirs = get_encoding("multilingual", num_languages=100)._special_tokens
    for token in ("<|endoftext|>", "<|startoftranscript|>", "<|de|>", "<|yue|>", "<|transcribe|>", "<|nospeech|>"):
        assert layout.rows[theirs[token]] == tokenizer.convert_tokens_to_ids(token)
    times = tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1
    assert layout.rows[theirs["<|0.00|>"]] == times
    assert layout.rows[theirs["<|30.00|>"]] == times + 1500
    filler = tokenizer.convert_tokens_to_ids("<|startoflm|>")
    assert set(layout.rows[layout.num_text : 50_257]) == {filler}
    assert len(token_bytes(tokenizer, layout.num_text)) == layout.num_text
