"""Score a held-out set with the half copy: error rates of generated text, and the teacher-forced loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data.batches import collate
from data.dataset import Clips, load_row
from data.labels import LabelBuilder
from infer.artefact import Artefact
from infer.decoding import DecodeSettings
from infer.score.evaluation import Prediction, Score, score_predictions
from infer.score.held_out import transcribe_rows
from infer.transcriber import Transcriber
from train.loss import TrainingObjective

CHUNK_TOKENS = 512  # label tokens whose logits exist at one time


@dataclass(frozen=True)
class Validation:
    """What one validation found."""

    score: Score
    predictions: tuple[Prediction, ...]
    loss: float
    """Mean over label tokens, in nats, teacher-forced in the half copy."""

    @property
    def headline(self) -> float:
        """Mean over languages of each language's own rate (WER, or CER for zh, ja, ...): lower is better."""
        return float(self.score.overall["headline"])

    def figures(self, name: str) -> dict[str, float]:
        """Return the log keys `valid/<set>/...`."""
        overall = self.score.overall
        figures = {
            f"valid/{name}/wer": overall["wer"],
            f"valid/{name}/cer": overall["cer"],
            f"valid/{name}/headline": overall["headline"],
            f"valid/{name}/language_accuracy": overall["language_accuracy"],
            f"valid/{name}/rtfx": overall["rtfx"],
            f"valid/{name}/loss": self.loss,
        }
        for language, rates in self.score.languages.items():
            figures[f"valid/{name}/{language}/wer"] = rates["wer"]
            figures[f"valid/{name}/{language}/cer"] = rates["cer"]
        return {key: value for key, value in figures.items() if value is not None}


def validate(
    artefact: Artefact, clips: Clips, label_builder: LabelBuilder, settings: DecodeSettings, *, batch_size: int
) -> Validation:
    """Transcribe a set and score it.

    Args:
        artefact: the half copy.
        clips: the set, a row each; every clip must be readable.
        label_builder: makes the labels of the loss.
        settings: how to decode.
        batch_size: clips decoded together.

    Raises:
        AudioError: if a clip cannot be read; a missing item must never improve a score.
    """
    transcriber = Transcriber(artefact, settings, batch_size=batch_size)
    predictions, processing_s = transcribe_rows(transcriber, clips.rows)
    loss = _teacher_forced_loss(transcriber, clips, label_builder, batch_size)
    return Validation(score_predictions(predictions, processing_s=processing_s), tuple(predictions), loss)


@torch.inference_mode()
def _teacher_forced_loss(transcriber: Transcriber, clips: Clips, label_builder: LabelBuilder, batch_size: int) -> float:
    artefact = transcriber.artefact
    objective = TrainingObjective(artefact.model, chunk_tokens=CHUNK_TOKENS).eval()
    frames = artefact.windows.frames_of(clips.durations_s).tolist()
    order = sorted(range(len(frames)), key=lambda i: frames[i])
    total, num_tokens = 0.0, 0
    for group in _groups(order, frames, batch_size):
        rows = [clips.rows[i] for i in group]
        batch = collate(
            [transcriber.log_mel(load_row(row), num_frames=frames[i]) for i, row in zip(group, rows, strict=True)],
            [label_builder.build(row) for row in rows],
            clips=group,
            audio_s=0.0,
            pad_id=int(artefact.model.config.eos_token_id),
        ).to(artefact.model.device)
        total += float(objective(batch.input_features, batch.decoder_input_ids, batch.labels))
        num_tokens += batch.num_label_tokens
    return total / max(1, num_tokens)


def _groups(order: Sequence[int], frames: Sequence[int], batch_size: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in order:
        if groups and len(groups[-1]) < batch_size and frames[groups[-1][0]] == frames[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
