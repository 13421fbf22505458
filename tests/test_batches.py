"""A micro-batch holds its clips and nothing of its padding, and knows its label tokens without asking a device."""

from __future__ import annotations

import pytest
import torch

from data.batches import RowReference, SpeechBatch, collate
from data.labels import IGNORE_INDEX, Labels

PAD = 99
MEMBERS = tuple((RowReference(i, "m.jsonl", i + 1, f"c{i}", f"{i}.wav"),) for i in (1, 2, 3))


@pytest.fixture
def batch() -> SpeechBatch:
    labels = [
        Labels((1, 2, 3), (IGNORE_INDEX, 3, 4)),
        Labels((1,), (7,)),
        Labels((1, 2, 3, 4, 5), (2, 3, 4, 5, 6)),
    ]
    features = [torch.full((2, 4), float(i)) for i in range(3)]
    return collate(features, labels, clips=(10, 20, 30), audio_s=1.5, pad_id=PAD, members=MEMBERS)


def test_collate_pads_to_the_longest_of_the_batch(batch: SpeechBatch) -> None:
    x = IGNORE_INDEX
    assert batch.decoder_input_ids.tolist() == [[1, 2, 3, PAD, PAD], [1, PAD, PAD, PAD, PAD], [1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[x, 3, 4, x, x], [7, x, x, x, x], [2, 3, 4, 5, 6]]
    assert batch.decoder_input_ids.dtype == batch.labels.dtype == torch.long
    assert batch.input_features.shape == (3, 2, 4)
    assert batch.num_label_tokens == 8 == int((batch.labels != IGNORE_INDEX).sum())
    assert (batch.clips, batch.audio_s, batch.rejected) == ((10, 20, 30), 1.5, ())


def test_padding_never_reaches_the_loss(whisper: torch.nn.Module) -> None:
    """Two clips alone and the same two in one batch: same logits where there is a label, same summed loss."""
    torch.manual_seed(1)
    labels = [Labels((5, 6, 7, 8, 9), (6, 7, 8, 9, 10)), Labels((5, 6), (6, 7))]
    features = [torch.randn(80, 100), torch.randn(80, 100)]
    encoded = whisper.eval()

    def summed_loss(chosen: list[int]) -> torch.Tensor:
        made = collate(
            [features[i] for i in chosen], [labels[i] for i in chosen], clips=chosen, audio_s=0.0, pad_id=PAD
        )
        logits = encoded(made.input_features, decoder_input_ids=made.decoder_input_ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), made.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    with torch.no_grad():
        torch.testing.assert_close(summed_loss([0, 1]), summed_loss([0]) + summed_loss([1]))


def test_select_keeps_the_given_clips(batch: SpeechBatch) -> None:
    kept = batch.select([2, 0])
    assert kept.clips == (30, 10)
    assert kept.members == (MEMBERS[2], MEMBERS[0])
    assert torch.equal(kept.input_features, batch.input_features[[2, 0]])
    assert torch.equal(kept.labels, batch.labels[[2, 0]])
    assert torch.equal(kept.decoder_input_ids, batch.decoder_input_ids[[2, 0]])
    assert kept.num_label_tokens == 7
    assert batch.select([]).num_label_tokens == 0
    assert batch.select([]).clips == ()
    assert batch.num_label_tokens == 8


def test_to_moves_every_tensor_and_keeps_the_facts(batch: SpeechBatch) -> None:
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in (moved.input_features, moved.decoder_input_ids, moved.labels)} == {"meta"}
    assert moved.num_label_tokens == 8  # counted on the host: asking never waits for a device
    assert (moved.clips, moved.members) == (batch.clips, batch.members)


def test_a_blank_names_no_clip(batch: SpeechBatch) -> None:
    blank = batch.blank()
    assert (blank.clips, blank.members, blank.num_label_tokens, blank.audio_s) == ((), (), 0, 0.0)
    assert blank.labels.shape == batch.labels.shape
    assert (blank.labels == IGNORE_INDEX).all()
    assert not blank.input_features.any()
