"""A run knows itself again: other data under the same path, another frozen weight or number of processes is refused."""

import copy
import json

import pytest
import torch

from data.sources import Source
from train.identity import Change, admit_changes, describe_identity, find_changed_settings, find_changes
from train.settings import TrainerSettings


@pytest.fixture
def describe(whisper, tokenizer, corpus):
    def run(**options):
        return describe_identity(
            whisper.named_parameters(),
            tokenizer,
            options.pop("sources", [Source(str(corpus))]),
            world_size=options.pop("world_size", 1),
            device=torch.device("cpu"),
        )

    return run


def _refused(before, now):
    return [change.what for change in find_changes(json.loads(json.dumps(before)), now) if not change.is_allowed]


def test_the_same_is_the_same(describe):
    assert find_changes(json.loads(json.dumps(describe())), describe()) == []


def test_another_word_in_the_manifest(describe, corpus):
    before = describe()
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("three", "seven", 1), encoding="utf-8")
    assert _refused(before, describe()) == [f"the content of {corpus}"]


def test_another_file_in_a_folder(describe, corpus):
    folder = [Source(str(corpus.parent / "audio"), language="en")]
    before = describe(sources=folder)
    assert _refused(before, describe(sources=folder)) == []
    (corpus.parent / "audio" / "0.wav").write_bytes(b"shorter")
    assert _refused(before, describe(sources=folder)) == [f"the content of {folder[0].path}"]


def test_a_frozen_weight_but_not_one_that_learns(describe, whisper):
    before = describe()
    with torch.no_grad():
        whisper.model.decoder.layers[0].fc1.weight[0, 0] += 1  # comes from the checkpoint
    assert _refused(before, describe()) == []
    with torch.no_grad():
        whisper.model.encoder.embed_positions.weight[3, 0] += 1e-6
    assert _refused(before, describe()) == ["the frozen weights of the model"]


def test_the_number_of_processes(describe):
    assert _refused(describe(), describe(world_size=2)) == ["the number of processes (1, now 2)"]


def test_another_card_or_version_is_said_and_not_refused(describe, caplog):
    now = describe()
    before = copy.deepcopy(now)
    before["device"] = "NVIDIA L4"
    before["versions"]["torch"] = "2.12.0"
    changed = admit_changes(find_changes(before, now), inexact=False)
    assert changed == ["the device (NVIDIA L4, now cpu)", f"the version of torch (2.12.0, now {torch.__version__})"]
    assert caplog.text.count("not bit for bit") == 2


def test_refused_unless_told(caplog):
    changes = [Change("trainer.seed", is_allowed=False)]
    with pytest.raises(ValueError, match=r"made with other values of trainer\.seed; .*run\.inexact=true"):
        admit_changes(changes, inexact=False)
    assert admit_changes(changes, inexact=True) == ["trainer.seed"]
    assert "trainer.seed changed" in caplog.text


def test_settings_that_change_no_bit_are_free():
    before = {"trainer": {"seed": 1, "num_workers": 0, "max_hours": 0}, "run": {"name": "a"}}
    now = {"trainer": {"seed": 2, "num_workers": 4, "max_hours": 3}, "run": {"name": "b"}}
    assert [change.what for change in find_changed_settings(before, now)] == ["trainer.seed"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_hours": -1.0}, "trainer.max_hours=-1 must be 0"),
        ({"rank_timeout_s": 0.0}, "trainer.rank_timeout_s=0 must be above 0"),
        ({"verify_ranks_every_steps": -1}, "trainer.verify_ranks_every_steps=-1 must be 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        TrainerSettings(max_steps=1, micro_batch_size=1, **wrong)
