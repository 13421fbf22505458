"""The `dataset` group of the configuration: which sources, for what, and how they are mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data.ingest import MODES
from data.mixture import MixtureSettings
from data.packing import Packing
from data.sources import Source


@dataclass(frozen=True)
class HubSettings:
    """A data set of the hub, or a local folder in the same form; `train` and the others then name its splits."""

    path: str
    config: str | None = None
    """Configuration, often the language."""
    revision: str | None = None
    """Commit or tag."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our field name to theirs."""
    replace: Mapping[str, str] = field(default_factory=dict)
    """Pieces of the texts and what they become."""
    language: str | None = None
    """Of all rows, where no column says it."""
    streaming: bool = False
    """Read it as it comes and keep nothing on the disk."""


@dataclass(frozen=True)
class DatasetSettings:
    """The `dataset` group."""

    name: str
    train: tuple[str | Source, ...]
    """Sources whose clips are mixed."""
    validation: tuple[str | Source, ...] = ()
    """Scored during training, by generated text; the best checkpoint is chosen on them."""
    test: tuple[str | Source, ...] = ()
    """Never looked at in training."""
    replay: tuple[str | Source, ...] = ()
    """Sources of what the model knows already, so that it does not forget."""
    replay_share: float = 0.0
    """Share of the clips of an epoch that come from `replay`."""
    temperature: float = 1.0
    """Over the hours of the languages: 1 leaves them, larger evens them out."""
    hub: HubSettings | None = None
    language: str | None = None
    """Of rows that have none of their own."""
    root: str | None = None
    """Audio must lie below this folder; null allows any."""
    pack: bool = False
    """Join clips of one language and speaker into longer ones; a source may say otherwise."""
    pack_s: float = 30.0
    """Seconds that no joined clip is longer than."""
    pack_order: str = "manifest"
    """`manifest` joins neighbours; `speaker` also those of one speaker that lie apart."""
    pack_gaps_s: tuple[float, float] = (0.0, 0.0)
    """Least and greatest pause between joined clips, in seconds."""
    on_bad: str = "quarantine"
    """`quarantine` leaves bad clips out and lists them; `strict` stops at the first; `report` never stops."""
    max_bad_share: float = 0.01
    """Share of bad lines or hours of a training source above which the run does not start."""
    cache_gib: float = 0.5
    """Memory for decoded clips in each loader process, in GiB."""
    stream_clips: int = 2048
    """Clips of a stream that are held, shuffled and sorted into windows at a time."""

    def __post_init__(self) -> None:
        if self.on_bad not in MODES:
            raise ValueError(f"dataset.on_bad={self.on_bad} must be one of {', '.join(MODES)}")
        if not 0.0 <= self.max_bad_share < 1.0:
            raise ValueError(f"dataset.max_bad_share={self.max_bad_share} must lie in 0 to 1")
        if self.stream_clips < 1:
            raise ValueError(f"dataset.stream_clips={self.stream_clips} must be 1 or more")
        self.mixture()
        self._packing(None)

    def packings(self, sources: Sequence[Source]) -> tuple[Packing | None, ...]:
        """Return how the clips of each source are joined; None where they are not.

        Raises:
            ValueError: if a length, an order or a pause is none.
        """
        return tuple(self._packing(source.pack_s) if source.pack else None for source in sources)

    def _packing(self, pack_s: float | None) -> Packing:
        longest_s = self.pack_s if pack_s is None else pack_s
        return Packing(max_duration_s=longest_s, order=self.pack_order, gaps_s=self.pack_gaps_s)

    def mixture(self) -> MixtureSettings:
        """Return how the sources are mixed."""
        return MixtureSettings(temperature=self.temperature, replay_share=self.replay_share)

    def sources(self, split: str) -> tuple[Source, ...]:
        """Return the sources of `train`, `validation`, `test` or `replay`, with what the group says of all of them.

        Raises:
            ValueError: if a value is refused by `Source`.
        """
        entries: Sequence[str | Source] = getattr(self, split)
        return tuple(self._with_defaults(self._named(e) if isinstance(e, str) else e) for e in entries)

    def _named(self, entry: str) -> Source:
        if self.hub is None:
            return Source(entry)
        hub = self.hub
        return Source(
            hub.path,
            format="hub",
            config=hub.config,
            split=entry,
            revision=hub.revision,
            columns=hub.columns,
            replace=hub.replace,
            language=hub.language,
            streaming=hub.streaming,
        )

    def _with_defaults(self, source: Source) -> Source:
        return dataclasses.replace(
            source,
            language=source.language if source.language is not None else self.language,
            root=source.root if source.root is not None else self.root,
            pack=source.pack if source.pack is not None else self.pack,
        )
