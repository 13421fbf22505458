"""Transcribe files and folders through an artefact, as text, JSON, SRT or VTT.

python scripts/transcribe.py artefact=runs/demo/export audio=[interview.mp3,clips/] formats=[txt,srt]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig

from data.audio import AudioError, Waveform, load_waveform
from data.folders import AUDIO_SUFFIXES
from infer.artefact import load_artefact
from infer.decoding import DecodeSettings
from infer.subtitles import FORMATS
from infer.transcriber import Transcriber, Transcript, best_device
from scripts.evaluate_settings import InferSettings
from scripts.settings import build, entry_point, to_plain

FILES_AT_ONCE = 64  # recordings held in memory together


@dataclass(frozen=True)
class OutputSettings:
    """The `output` group."""

    dir: str


@dataclass(frozen=True)
class TranscribeSettings:
    """One call."""

    artefact: str
    audio: tuple[str, ...]
    formats: tuple[str, ...]
    output: OutputSettings
    infer: InferSettings
    decoding: DecodeSettings

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise ValueError(f"formats={unknown[0]} must be among {', '.join(FORMATS)}")


def find_audio(names: tuple[str, ...]) -> list[Path]:
    """Return the files named, and the audio files of the folders named, sorted.

    Raises:
        FileNotFoundError: if a name is neither, or nothing is found.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"audio={name} is neither a file nor a folder")
    if not files:
        raise FileNotFoundError(f"no audio in {', '.join(names)}; known endings are {' '.join(sorted(AUDIO_SUFFIXES))}")
    return files


def transcribe_files(settings: TranscribeSettings) -> int:
    """Transcribe and write; return how many files could not be read."""
    files = find_audio(settings.audio)
    artefact = load_artefact(settings.artefact, compute=settings.infer.compute, device=best_device())
    transcriber = Transcriber(artefact, settings.decoding, batch_size=settings.infer.batch_size)
    output_dir = Path(settings.output.dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    num_failed = 0
    stems = _unique_stems(files)
    for start in range(0, len(files), FILES_AT_ONCE):
        loaded: list[tuple[Path, Waveform]] = []
        for file in files[start : start + FILES_AT_ONCE]:
            try:
                loaded.append((file, load_waveform(file, max_duration_s=None)))
            except AudioError as e:
                num_failed += 1
                print(f"not transcribed: {e}", file=sys.stderr)
        transcripts = transcriber.transcribe([waveform for _, waveform in loaded])
        for (file, _), transcript in zip(loaded, transcripts, strict=True):
            _write(output_dir / stems[file], transcript, settings.formats)
            cut = "  (reached the token limit: the end may be missing)" if transcript.is_cut else ""
            print(f"{file}  [{transcript.language} {transcript.language_probability:.0%}]  {transcript.text}{cut}")
    written = f"{len(files) - num_failed} of {len(files)}"
    print(f"{written} recordings written to {output_dir}/ as {', '.join(settings.formats)}")
    return num_failed


def _unique_stems(files: list[Path]) -> dict[Path, str]:
    """Name each output after its recording; a name that two share gets the endings and a number."""
    stems: dict[Path, str] = {}
    for file in files:
        name = file.stem if sum(other.stem == file.stem for other in files) == 1 else file.name
        taken = set(stems.values())
        number = 2
        unique = name
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        stems[file] = unique
    return stems


def _write(stem: Path, transcript: Transcript, formats: tuple[str, ...]) -> None:
    for name in formats:
        stem.with_name(f"{stem.name}.{name}").write_text(FORMATS[name](transcript), encoding="utf-8")


@entry_point("transcribe")
def main(config: DictConfig) -> int:
    """Transcribe."""
    settings = build(TranscribeSettings, to_plain(config), path="transcribe")
    return 1 if transcribe_files(settings) else 0


if __name__ == "__main__":
    main()
