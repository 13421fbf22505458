"""The data of a run: sources opened, mixed and planned as its settings say."""

from __future__ import annotations

import dataclasses
import logging

from data.dataset import Clips, open_clips
from data.labels import LabelBuilder
from data.loaders import ClipRecipe, ClipSpeeds, UpdateDataset
from data.mixture import Mixture, build_mixture, describe_groups
from data.plan import BatchSize, EpochPlan
from data.reader import ClipReader
from data.reasons import Rejected
from data.sources import Source, read_source
from data.streams import StreamDataset
from train.settings import TrainSettings

logger = logging.getLogger(__name__)


def all_texts(settings: TrainSettings) -> list[str]:
    """Return the transcripts of all training sources, for a vocabulary that is learnt from them."""
    return [text for source in _training_sources(settings) for text in read_source(source).column("text")]


def _training_sources(settings: TrainSettings) -> tuple[Source, ...]:
    return settings.dataset.sources("train") + settings.dataset.sources("replay")


def open_validation(settings: TrainSettings, label_builder: LabelBuilder) -> Clips | None:
    """Open the validation sources whole; None where there are none."""
    sources = settings.dataset.sources("validation")
    if not sources:
        logger.warning("dataset.validation= is empty: the last step is exported, not the best")
        return None
    # Scored again and again, so never a stream.
    whole = [dataclasses.replace(source, streaming=False) for source in sources]
    return open_clips(whole, label_builder, on_bad="strict", max_bad_share=0.0)


def open_training(
    settings: TrainSettings, recipe: ClipRecipe, *, rank: int, world_size: int
) -> tuple[UpdateDataset | StreamDataset, tuple[Rejected, ...]]:
    """Open the training sources; also return the lines that were left out."""
    dataset, trainer = settings.dataset, settings.trainer
    sources = _training_sources(settings)
    if not dataset.train:
        raise ValueError("dataset.train= names no source; type dataset.train=train.jsonl")
    size = BatchSize(
        clips=trainer.clips,
        accumulation_steps=trainer.accumulation_steps,
        world_size=world_size,
        audio_s=trainer.micro_batch_audio_s,
    )
    windows = settings.window.windows()
    if any(source.streaming for source in sources):
        stream = StreamDataset(
            sources,
            recipe,
            num_replay=len(dataset.replay),
            mixture=dataset.mixture(),
            windows=windows,
            size=size,
            block_clips=dataset.stream_clips,
            packings=dataset.packings(sources),
            on_bad=dataset.on_bad,
            max_bad_share=dataset.max_bad_share,
            rank=rank,
        )
        for line in stream.describe():
            logger.info("%s", line)
        return stream, stream.refused
    clips = open_clips(
        sources,
        recipe.label_builder,
        on_bad=dataset.on_bad,
        max_bad_share=dataset.max_bad_share,
        packings=dataset.packings(sources),
    )
    mixture = _build_mixture(settings, clips)
    _describe_data(clips, mixture)
    has_speeds = settings.augment.speed_share > 0.0
    plan = EpochPlan(
        clips.durations_s,
        mixture,
        windows=windows,
        size=size,
        seed=trainer.seed,
        speeds=ClipSpeeds(settings.augment, clips.durations_s, trainer.seed) if has_speeds else None,
    )
    reader = ClipReader(clips.rows, cache_gib=dataset.cache_gib)
    return UpdateDataset(clips, plan, reader, recipe, rank=rank), clips.rejected


def _build_mixture(settings: TrainSettings, clips: Clips) -> Mixture:
    sources = _training_sources(settings)
    num_train = len(settings.dataset.train)
    return build_mixture(
        clips.durations_s,
        clips.languages,
        clips.source_of,
        clips.no_speech,
        names=[source.path for source in sources],
        weights=[source.weight for source in sources],
        is_replay=[i >= num_train for i in range(len(sources))],
        settings=settings.dataset.mixture(),
        no_speech_share=settings.labels.no_speech_share,
        seed=settings.trainer.seed,
    )


def _describe_data(clips: Clips, mixture: Mixture) -> None:
    for account in clips.ingest:
        logger.info("%s", account.describe())
    logger.info("data: %d clips, %.2f h; left out %d", len(clips), clips.audio_s / 3600, len(clips.rejected))
    for line in describe_groups(mixture.groups):
        logger.info("%s", line)
