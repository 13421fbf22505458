"""A checkpoint comes back bit for bit or not at all; after a fault the one before is taken, with a word."""

import json
import logging
import random
import re
import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import train.durable as module
from train.checkpoint import (
    Checkpoint,
    DamagedError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    sweep_checkpoints,
)
from train.counters import Progress
from train.exchange import Exchange
from train.heartbeat import Heartbeat
from train.loop import Loop
from train.random_state import random_states, restore_random_states
from train.ranks import Ranks
from train.saver import CheckpointSaver

FILES = ("average.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def _net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def _trained(optimizer_class=torch.optim.AdamW, num_updates=3, **options):
    net = _net()
    optimizer = optimizer_class(net.parameters(), lr=0.01, **options)
    for _ in range(num_updates):
        optimizer.zero_grad()
        net(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return net, optimizer


def _checkpoint(net, optimizer, **state):
    return Checkpoint(
        model={name: p.detach() for name, p in net.named_parameters()},
        optimizer=optimizer.state_dict(),
        average={name: p.detach() / 3 for name, p in net.named_parameters()},
        state={"progress": {"attempted": 7, "best_headline": None}, "random": random_states(), **state},
    )


def _assert_same(a, b):
    """Compare nested mappings; tensors by dtype and bits."""
    if isinstance(a, torch.Tensor):
        assert a.dtype is b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"foreach": False}),
        (torch.optim.Adafactor, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_round_trip_is_bit_exact(tmp_path, optimizer_class, options):
    net, optimizer = _trained(optimizer_class, **options)
    saved = _checkpoint(net, optimizer, words="é 漢", share=0.1)
    path = save_checkpoint(tmp_path / "checkpoints", 7, saved)
    assert path.name == "step-000007"
    loaded = load_checkpoint(path)
    _assert_same(saved.model, loaded.model)
    _assert_same(saved.average, loaded.average)
    _assert_same(saved.optimizer["state"], loaded.optimizer["state"])
    _assert_same(saved.state, loaded.state)

    again = _net(seed=1)
    again.load_state_dict(loaded.model)
    resumed = optimizer_class(again.parameters(), lr=123.0, **options)
    resumed.load_state_dict(loaded.optimizer)
    inputs = torch.randn(5, 3)
    for model, stepper in ((net, optimizer), (again, resumed)):
        stepper.zero_grad()
        model(inputs).square().sum().backward()
        stepper.step()
    _assert_same(dict(net.named_parameters()), dict(again.named_parameters()))


def test_an_optimizer_that_has_not_stepped_comes_back(tmp_path):
    """A skipped first update leaves plain AdamW without any state."""
    net, optimizer = _trained(num_updates=0)
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, _checkpoint(net, optimizer)))
    assert loaded.optimizer["state"] == {}
    optimizer.load_state_dict(loaded.optimizer)


def test_without_an_average_there_is_no_file_for_it(tmp_path):
    net, optimizer = _trained()
    saved = Checkpoint(dict(net.state_dict()), optimizer.state_dict(), {}, {})
    path = save_checkpoint(tmp_path, 1, saved)
    assert sorted(file.name for file in path.iterdir()) == [name for name in FILES if name != "average.safetensors"]
    assert load_checkpoint(path).average == {}


def _draws():
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.random()),
        float(np.random.normal()),
        torch.rand(3).tolist(),
        torch.randn(2).tolist(),
    )


def test_every_generator_goes_on_where_it_stood():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    _draws()  # leaves Python and numpy with half a pair of normals in hand
    states = json.loads(json.dumps(random_states()))
    expected = _draws()
    assert _draws() != expected
    restore_random_states(states)
    assert _draws() == expected


@pytest.fixture
def two(tmp_path):
    """Two checkpoints, of steps 1 and 2."""
    net, optimizer = _trained()
    for step in (1, 2):
        save_checkpoint(tmp_path, step, _checkpoint(net, optimizer, step=step))
    return tmp_path


def _flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_one_flipped_bit_is_found_and_the_older_one_taken(two, caplog, name, share):
    """Safetensors alone accepted 196 of 200 of these."""
    file = two / "step-000002" / name
    _flip(file, int(share * file.stat().st_size), bit=2)
    with pytest.raises(DamagedError, match=f"{name} is missing or differs"):
        load_checkpoint(file.parent)
    with caplog.at_level(logging.WARNING):
        path, checkpoint = find_checkpoint(two)
    assert (path.name, checkpoint.state["step"]) == ("step-000001", 1)
    assert "checkpoint skipped" in caplog.text
    assert name in caplog.text


def test_a_flipped_bit_in_the_manifest_is_always_found(two):
    path = two / "step-000002"
    manifest = path / "manifest.json"
    content = manifest.read_bytes()
    for position in range(0, len(content), 7):
        _flip(manifest, position, bit=position % 8)
        with pytest.raises(DamagedError):
            load_checkpoint(path)
        manifest.write_bytes(content)
    load_checkpoint(path)


def test_a_folder_under_another_name_is_found(two):
    shutil.rmtree(two / "step-000002")
    (two / "step-000001").rename(two / "step-000002")
    with pytest.raises(DamagedError, match="holds step 1: somebody renamed it"):
        load_checkpoint(two / "step-000002")


def test_files_of_another_checkpoint_are_found(two):
    net, optimizer = _trained(num_updates=1)
    save_checkpoint(two, 3, _checkpoint(net, optimizer))
    shutil.copy(two / "step-000003" / "model.safetensors", two / "step-000002")
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        load_checkpoint(two / "step-000002")


@pytest.mark.parametrize(("content", "said"), [({"step": 1, "files": {}}, "older Mezzavoce"), ([], "no readable")])
def test_another_layout_is_named(two, content, said):
    (two / "step-000002" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=said):
        load_checkpoint(two / "step-000002")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 1, 0.5, -1])
def test_a_truncated_file_is_found(two, name, left):
    file = two / "step-000002" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    with pytest.raises(DamagedError):
        load_checkpoint(file.parent)
    assert find_checkpoint(two)[0].name == "step-000001"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(two, name):
    (two / "step-000002" / name).unlink()
    with pytest.raises(DamagedError, match=name):
        load_checkpoint(two / "step-000002")
    assert find_checkpoint(two)[0].name == "step-000001"


def test_none_that_is_whole_is_an_error_and_never_a_new_start(two):
    for step in (1, 2):
        (two / f"step-00000{step}" / "state.json").unlink()
    with pytest.raises(DamagedError, match=r"none of the 2 checkpoints .* name a new run\.dir="):
        find_checkpoint(two)


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert find_checkpoint(tmp_path / "checkpoints") is None


def test_order_is_that_of_steps_not_of_letters(tmp_path):
    for name in ("step-000900", "step-1000000", "step-000020", ".tmp-step-000950-ab", "step-abc", "notes"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000020", "step-000900", "step-1000000"]


@pytest.mark.parametrize("broken", ["_write", "_sync", "_hash"])
def test_a_write_that_fails_leaves_the_older_ones_and_no_rest(two, monkeypatch, broken):
    net, optimizer = _trained()
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*") if path.is_file()}
    calls = []

    def full(*_args, **_options):
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, broken, full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(two, 3, _checkpoint(net, optimizer))
    assert calls
    assert {path: path.stat().st_mtime_ns for path in two.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in two.iterdir()) == ["step-000001", "step-000002"]


def test_a_write_that_fails_under_an_old_name_leaves_the_old_one_whole(two, monkeypatch):
    net, optimizer = _trained()

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(two, 2, _checkpoint(net, optimizer))
    assert load_checkpoint(two / "step-000002").state["step"] == 2


def test_the_same_step_again_replaces_the_old_one(two):
    net, optimizer = _trained()
    save_checkpoint(two, 2, _checkpoint(net, optimizer, step="again"))
    assert load_checkpoint(two / "step-000002").state["step"] == "again"
    assert sorted(path.name for path in two.iterdir()) == ["step-000001", "step-000002"]


def test_prune_keeps_the_newest_and_the_best_and_sweeps_up(tmp_path):
    for step in (1, 2, 3, 4, 5):
        (tmp_path / f"step-00000{step}").mkdir()
    (tmp_path / "notes").mkdir()
    prune_checkpoints(tmp_path, keep_last=2, keep={"best": 1, "other": None})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-000001", "step-000004", "step-000005"]


def test_what_a_killed_run_left_is_swept_up(two):
    for name in (".tmp-step-000003-dead", ".old-step-000001-dead"):
        shutil.copytree(two / "step-000001", two / name)
    (two / "step-000002").rename(two / ".old-step-000002-dead")  # killed between the two renames of a replacement
    (two / "notes").mkdir()
    sweep_checkpoints(two)
    assert sorted(path.name for path in two.iterdir()) == ["notes", "step-000001", "step-000002"]
    assert load_checkpoint(two / "step-000002").state["step"] == 2


def _saving_loop(tmp_path, *, keep_checkpoints, in_background=False):
    net, optimizer = _trained()
    parts = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, device=torch.device("cpu"), num_processes=1),
        matmul_flops_per_s=None,
        run_dir=tmp_path,
        whisper=net,
        optimizer=optimizer,
        average=None,
        updater=SimpleNamespace(scaler=None, exchange=Exchange(net, optimizer, None)),
        refused=(),
        trackers=(),
        identity={},
        saver=CheckpointSaver(tmp_path / "checkpoints", keep_last=keep_checkpoints, in_background=in_background),
        ranks=Ranks(),
        heartbeat=Heartbeat(0, 1, timeout_s=1.0),
    )
    settings = SimpleNamespace(
        trainer=SimpleNamespace(keep_checkpoints=keep_checkpoints, loss_chunk_tokens=0),
        dataset=SimpleNamespace(on_bad="strict", max_bad_share=0.0),
        config={},
    )
    with mock.patch("train.loop.FlopCount", return_value=None):  # of a net that is no Whisper
        return Loop(parts, settings)


def test_a_full_disk_is_logged_and_training_goes_on(tmp_path, monkeypatch, caplog):
    loop = _saving_loop(tmp_path, keep_checkpoints=1)
    loop.progress.attempted = 1
    loop.save()

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        loop.progress.attempted = 2
        loop.save()
    assert re.search(
        r"step-000002 of [\d,]+ bytes was not written \(No space left on device\); failure 1 of 3 in a row",
        caplog.text,
    )
    assert [path.name for path in list_checkpoints(loop.checkpoints_dir)] == ["step-000001"]  # not pruned
    loop.progress.attempted = 3
    loop.save()
    assert [path.name for path in list_checkpoints(loop.checkpoints_dir)] == ["step-000003"]


def test_what_was_just_written_outlives_later_ones_that_are_damaged(tmp_path):
    """A run that fell back to step 1 must not lose step 2 to the damaged steps 8 and 9."""
    loop = _saving_loop(tmp_path, keep_checkpoints=1)
    for step in (8, 9):
        loop.progress.attempted = step
        loop.save()
        (loop.checkpoints_dir / f"step-00000{step}" / "state.json").unlink()
    loop.progress.attempted = 2
    loop.save()
    assert find_checkpoint(loop.checkpoints_dir)[0].name == "step-000002"


def test_there_is_no_pickle_in_any_file(two):
    for file in (two / "step-000002").iterdir():
        content = file.read_bytes()
        assert file.suffix in (".json", ".safetensors")
        assert content[:1] != b"\x80"  # pickle's protocol byte
        assert content[:2] != b"PK"  # torch.save writes a zip
        if file.suffix == ".safetensors":
            length = int.from_bytes(content[:8], "little")
            assert isinstance(json.loads(content[8 : 8 + length]), dict)
        else:
            json.loads(content)


def test_progress_survives_json():
    from data.plan import Position

    progress = Progress(9, 8, Position(2, 5, 3, "{}"), 0.25, 6, 3, 8)
    assert Progress.from_state(json.loads(json.dumps(progress.state()))) == progress


def test_a_checkpoint_may_be_copied_elsewhere(two, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "step-000002"
    shutil.copytree(two / "step-000002", target)
    _assert_same(vars(load_checkpoint(target)), vars(load_checkpoint(two / "step-000002")))
