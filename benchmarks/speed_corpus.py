"""What the speed benchmarks train on: sentences read aloud, or made sound of the same lengths; and a model to train.

Everything goes into one folder, so that each system reads the same files: `clips.jsonl` with the texts,
`waveforms.npz`, `ours.jsonl` (a manifest) with its audio, and `model/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor

from infer.encoder import WindowedWhisper
from train.vocabulary import learn_tokenizer

SAMPLING_RATE = 16_000
# Lengths of the sentences that `../shared/speech/ljspeech_en` holds, in seconds; mean 6.6.
SENTENCE_LENGTHS_S = (
    *(9.66, 1.90, 9.67, 5.13, 8.13, 5.73, 5.26, 1.60, 7.58, 8.83, 4.69, 4.45, 8.59, 6.13, 7.46, 5.33, 6.86),
    *(9.22, 7.98, 9.88, 8.42, 7.88, 7.13, 9.70, 8.19, 2.58, 6.42, 7.12, 8.93, 1.48, 8.40, 7.02, 1.78, 5.93),
)
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve", "shi", "thra", "ning", "ster")
GEOMETRIES: dict[str, dict[str, int]] = {
    "toy": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "heads": 1, "num_mel_bins": 80},
    "tiny": {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "heads": 6, "num_mel_bins": 80},
    "large_v3": {"d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "heads": 20, "num_mel_bins": 128},
    "large_v3_turbo": {"d_model": 1280, "encoder_layers": 32, "decoder_layers": 4, "heads": 20, "num_mel_bins": 128},
}
VOCABULARY = {"toy": 3000, "tiny": 51_865, "large_v3": 51_866, "large_v3_turbo": 51_866}
Clip = tuple[npt.NDArray[np.float32], str]


def made_clips(num_clips: int, *, length_s: float | None = None) -> list[Clip]:
    """Return made sound with texts of as many characters as a reader says in that time.

    Args:
        num_clips: how many.
        length_s: of each, in seconds; None takes the lengths of real sentences.
    """
    clips = []
    for i in range(num_clips):
        rng = np.random.default_rng(i)
        seconds = length_s or SENTENCE_LENGTHS_S[i % len(SENTENCE_LENGTHS_S)]
        t = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
        waveform = 0.3 * np.sin(2 * np.pi * (120 + 40 * np.sin(3 * t)) * t) + rng.normal(0, 0.05, len(t))
        text = ""
        while len(text) < 15.5 * seconds:
            text += "".join(rng.choice(SYLLABLES, int(rng.integers(1, 4)))) + " "
        clips.append((waveform.astype(np.float32), text.strip()))
    return clips


def real_clips(manifest: Path, num_clips: int) -> list[Clip]:
    """Return the first clips of a manifest."""
    from data.audio import load_waveform

    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()[:num_clips]]
    return [(load_waveform(manifest.parent / row["audio"]), row["text"]) for row in rows]


def build_config(size: str) -> WhisperConfig:
    """Return the configuration of a Whisper of this size."""
    geometry = GEOMETRIES[size]
    vocabulary = VOCABULARY[size]
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=geometry["num_mel_bins"],
        d_model=geometry["d_model"],
        encoder_layers=geometry["encoder_layers"],
        decoder_layers=geometry["decoder_layers"],
        encoder_attention_heads=geometry["heads"],
        decoder_attention_heads=geometry["heads"],
        encoder_ffn_dim=4 * geometry["d_model"],
        decoder_ffn_dim=4 * geometry["d_model"],
        dropout=0.0,
        use_cache=False,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )


def write_folder(folder: Path, clips: list[Clip], size: str, *, repeats: int) -> dict[str, Any]:
    """Write corpus and model; return what they are.

    Args:
        folder: is made.
        clips: waveforms with texts.
        size: of the model, a key of `GEOMETRIES`.
        repeats: how often the manifest names each clip. Eight clips of one window length are never together among 32
            sentences, as they are in any real corpus.
    """
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "waveforms.npz", *[waveform for waveform, _ in clips])
    texts = [text for _, text in clips]
    # As long in tokens as Whisper's own tokenizer writes English: 4 characters each, with as many merges as are needed.
    tokenizer = learn_tokenizer(texts, unit="bpe", vocabulary_size=256 + 400)
    lines = []
    for i, (waveform, text) in enumerate(clips):
        soundfile.write(folder / f"{i}.flac", waveform, SAMPLING_RATE)
        lines += [
            {"id": f"{i}-{k}", "audio": f"{i}.flac", "text": text, "language": "en", "duration_s": len(waveform) / 16e3}
            for k in range(repeats)
        ]
    (folder / "clips.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "ours.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    config = build_config(size)
    end_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config.pad_token_id = config.bos_token_id = config.eos_token_id = end_id
    config.decoder_start_token_id = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    whisper = WindowedWhisper(config)
    whisper.generation_config.pad_token_id = whisper.generation_config.eos_token_id = end_id
    whisper.save_pretrained(str(folder / "model"))
    tokenizer.save_pretrained(str(folder / "model"))
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(str(folder / "model"))
    lengths = [len(tokenizer(text).input_ids) for text in texts]
    return {
        "clips": len(clips),
        "mean_s": round(sum(len(waveform) for waveform, _ in clips) / len(clips) / SAMPLING_RATE, 2),
        "mean_label_tokens": round(sum(lengths) / len(lengths), 1),
        "parameters": sum(p.numel() for p in whisper.parameters()),
    }
