"""A stream gives the same updates from any position, takes every row once a round, and leaves out what is bad."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import tone

import data.reader
from data.augment import NO_RECORDINGS, Augmentation
from data.features import LogMel
from data.label_modes import LabelSettings
from data.labels import LabelBuilder
from data.loaders import ClipRecipe, UpdateBatches
from data.mixture import MixtureSettings
from data.plan import BatchSize, Position
from data.sources import Source, read_source
from data.streams import KEY_BITS, StreamDataset
from data.windows import Windows

NUM_ROWS, NUM_SHARDS = 23, 3
BEGINNING = Position()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the hub's form: three Parquet shards of spoken tones."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    for shard in range(NUM_SHARDS):
        rows = range(shard * 8, min(NUM_ROWS, shard * 8 + 8))
        cells = [{"bytes": _flac(i), "path": f"{i}.flac"} for i in rows]
        table = pa.table({"audio": cells, "sentence": [f"one {'two ' * i}".strip() for i in rows]})
        pq.write_table(table, folder / f"train-{shard:05d}-of-{NUM_SHARDS:05d}.parquet")
    return folder.parent


def _flac(i: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(0.3 + 0.05 * i, seed=i), 16_000, format="FLAC")
    return file.getvalue()


def _source(path: Path) -> Source:
    return Source(str(path), format="hub", columns={"text": "sentence"}, language="en", streaming=True)


@pytest.fixture
def stream(tokenizer) -> Callable[..., StreamDataset]:
    recipe = ClipRecipe(
        label_builder=LabelBuilder(tokenizer, max_positions=448),
        labels=LabelSettings(),
        log_mel=LogMel(80),
        augmentation=Augmentation(gain_db=6.0),
        recordings=NO_RECORDINGS,
        pad_id=7,
        seed=5,
    )

    def build(*sources: Source, **options) -> StreamDataset:
        defaults = {
            "num_replay": 0,
            "mixture": MixtureSettings(),
            "windows": Windows((1.0, 2.0, 30.0)),
            "size": BatchSize(clips=4),
            "block_clips": 10,
            "packings": (),
            "on_bad": "quarantine",
            "max_bad_share": 0.2,
        }
        return StreamDataset(sources, recipe, **{**defaults, **options})

    return build


def _read(dataset: StreamDataset, count: int, start: Position = BEGINNING) -> list[UpdateBatches]:
    updates = dataset.open(start, num_workers=0, pin_memory=False)
    found = list(itertools.islice(updates, count))
    updates.close()
    return found


def _keys(updates: list[UpdateBatches]) -> list[int]:
    return [row.key for u in updates for batch in u.micro_batches for members in batch.members for row in members]


def test_every_row_comes_once_a_round_and_in_another_order_the_next(stream, repository: Path) -> None:
    updates = _read(stream(_source(repository), block_clips=NUM_ROWS), 30)
    rounds = [_keys([update for update in updates if update.position.block == block]) for block in range(3)]
    assert all(len(keys) == len(set(keys)) == NUM_ROWS for keys in rounds)
    assert set(rounds[0]) == set(rounds[1]) == set(rounds[2])
    assert rounds[0] != rounds[1] != rounds[2]


def test_blocks_that_cut_a_round_lose_nothing(stream, repository: Path) -> None:
    """23 blocks of 10 rows are 10 rounds of 23."""
    updates = _read(stream(_source(repository)), 120)
    counts = Counter(_keys([update for update in updates if update.position.block < NUM_ROWS]))
    assert len(counts) == NUM_ROWS
    assert set(counts.values()) == {10}


@pytest.mark.parametrize("at", [1, 4, 9])
def test_starting_anywhere_gives_the_rest_of_the_whole_run(at: int, stream, repository: Path) -> None:
    whole = _read(stream(_source(repository)), 14)
    start = Position(**json.loads(json.dumps(whole[at - 1].next_position.__dict__)))  # as a checkpoint keeps it
    rest = _read(stream(_source(repository)), 14 - at, start)
    assert _keys(rest) == _keys(whole[at:])
    for a, b in zip(rest, whole[at:], strict=True):
        for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
            assert torch.equal(x.input_features, y.input_features)
            assert torch.equal(x.labels, y.labels)


def test_ranks_share_every_update(stream, repository: Path) -> None:
    alone = _read(stream(_source(repository), size=BatchSize(clips=4)), 6)
    ranks = [
        _read(stream(_source(repository), size=BatchSize(clips=2, world_size=2), rank=rank), 6) for rank in range(2)
    ]
    for i, update in enumerate(alone):
        parts = [ranks[rank][i] for rank in range(2)]
        assert len(parts[0].micro_batches) == len(parts[1].micro_batches)
        assert sorted(_keys([update])) == sorted(_keys(parts))


def test_a_table_beside_a_stream_comes_by_its_share(stream, repository: Path, corpus: Path) -> None:
    dataset = stream(_source(repository), Source(str(corpus)), num_replay=1, mixture=MixtureSettings(replay_share=0.3))
    assert dataset.counts == [7, 3]
    keys = _keys(_read(dataset, 30))
    share = sum(key >> KEY_BITS == 1 for key in keys) / len(keys)
    assert share == pytest.approx(0.3, abs=0.05)


def test_what_is_bad_is_reported_once_and_too_much_of_it_stops(stream, repository: Path) -> None:
    path = sorted(repository.rglob("*.parquet"))[0]
    table = pq.read_table(path).to_pylist()
    table[2]["audio"]["bytes"] = b"no audio at all"
    table[5]["sentence"] = "<|en|>"
    pq.write_table(pa.Table.from_pylist(table), path)
    updates = _read(stream(_source(repository)), 6)
    codes = sorted(bad.record.code for u in updates for bad in u.rejected)
    assert codes == ["A04", "T07"]
    with pytest.raises(ValueError, match="streamed rows cannot be used"):
        _read(stream(_source(repository), max_bad_share=0.01), 6)


def test_rows_that_are_left_out_never_come(stream, repository: Path) -> None:
    dataset = stream(_source(repository))
    first = _keys(_read(dataset, 1))[0]
    again = stream(_source(repository))
    again.leave_out([first])
    assert first not in _keys(_read(again, 30))


def test_a_stream_cannot_be_opened_as_a_table_nor_weighed_by_hours(stream, repository: Path) -> None:
    with pytest.raises(ValueError, match="for training sources only"):
        read_source(_source(repository))
    with pytest.raises(ValueError, match="temperature"):
        stream(_source(repository), mixture=MixtureSettings(temperature=2.0))
    with pytest.raises(ValueError, match="needs format=hub"):
        replace(_source(repository), path="x.jsonl", format="jsonl")


def _break_late(repository: Path, row: int) -> None:
    """Make a clip that has a length and cannot be decoded: NaN samples."""
    path = sorted(repository.rglob("*.parquet"))[0]
    table = pq.read_table(path).to_pylist()
    file = io.BytesIO()
    soundfile.write(file, np.full(16_000, np.nan, np.float32), 16_000, format="WAV", subtype="FLOAT")
    table[row]["audio"]["bytes"] = file.getvalue()
    pq.write_table(pa.Table.from_pylist(table), path)


def test_a_clip_that_cannot_be_decoded_is_tried_once(stream, repository: Path, monkeypatch) -> None:
    _break_late(repository, 3)
    tried: list[str] = []
    load_row = data.reader.load_row
    monkeypatch.setattr(
        data.reader, "load_row", lambda row, **options: (tried.append(row.id), load_row(row, **options))[1]
    )
    updates = _read(stream(_source(repository), block_clips=NUM_ROWS), 30)
    assert updates[-1].position.block > 2
    assert [bad.record.code for u in updates for bad in u.rejected] == ["A05"]
    assert Counter(tried)[f"{repository}/train shard 0 row 4"] == 1


@pytest.mark.parametrize("at", [3, 5, 8])
def test_a_run_that_is_taken_up_again_after_bad_clips_goes_on_alike(at: int, stream, repository: Path) -> None:
    """What is known to be bad must not change the make-up of a block that was begun before it was known."""
    for row in (1, 6):
        _break_late(repository, row)
    whole = _read(stream(_source(repository)), 16)
    again = stream(_source(repository))
    again.leave_out([bad.key for update in whole[:at] for bad in update.rejected])
    assert _keys(_read(again, 16 - at, whole[at - 1].next_position)) == _keys(whole[at:])


def test_a_table_beside_a_stream_keeps_its_cap_and_its_account(stream, repository: Path, corpus: Path) -> None:
    lines = corpus.read_text().splitlines()
    broken = corpus.with_name("broken.jsonl")
    broken.write_text("\n".join([*lines, "{nonsense"]))
    dataset = stream(_source(repository), Source(str(broken), max_clips=3))
    assert [record.code for record in dataset.refused] == ["M01"]
    lines_heard = {key & (2**KEY_BITS - 1) for key in _keys(_read(dataset, 40)) if key >> KEY_BITS == 1}
    assert len(lines_heard) == 3


def test_a_stream_has_no_cap(repository: Path) -> None:
    with pytest.raises(ValueError, match="max_clips"):
        replace(_source(repository), max_clips=5)
