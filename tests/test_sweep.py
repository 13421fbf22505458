"""A sweep: a process and a folder each, a failed run named, the rest going on, one table."""

import json
import sys

import pytest

import scripts.sweep as module
from scripts.settings import SettingsError
from scripts.sweep import folder_name, sweeping
from scripts.train import main

FAKE = """
import json, os, pathlib, sys
values = dict(text.split("=", 1) for text in sys.argv[1:])
run = pathlib.Path(values["run.dir"].strip('"'))
if values["optimizer.lr"] == "-1":
    print("error: optimizer.lr=-1.0 must be above 0", file=sys.stderr)
    sys.exit(2)
(run / "export").mkdir(parents=True)
(run / "pid").write_text(str(os.getpid()))
rate = {"1e-05": 0.2, "0.0001": 0.1}[values["optimizer.lr"]] + 0.01 * int(values["trainer.seed"])
(run / "export" / "mezzavoce.json").write_text(json.dumps({"validation": {"headline": rate}, "trained_steps": 7}))
(run / "metrics.jsonl").write_text('{"train/loss": 2.0}\\n{"train/loss": 1.5}\\n{"x": 1}\\n')
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    (project / "scripts" / "train.py").write_text(FAKE)
    monkeypatch.setattr(module, "PROJECT", project)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", *arguments])
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code

    return run


def test_each_run_has_its_process_and_folder_and_a_failed_one_is_named(sweep, tmp_path, capsys):
    assert sweep("model=small", "optimizer.lr=1e-5,-1,1e-4", "trainer.seed=0,1") == 2
    folder = tmp_path / "runs" / "small-sweep"
    rows = json.loads((folder / "sweep.json").read_text())
    assert [(row["label"], row["state"]) for row in rows] == [
        ("optimizer.lr=0.0001,trainer.seed=0", "done"),
        ("optimizer.lr=0.0001,trainer.seed=1", "done"),
        ("optimizer.lr=1e-05,trainer.seed=0", "done"),
        ("optimizer.lr=1e-05,trainer.seed=1", "done"),
        ("optimizer.lr=-1,trainer.seed=0", "failed"),
        ("optimizer.lr=-1,trainer.seed=1", "failed"),
    ]
    assert [row["error_rate"] for row in rows] == pytest.approx([0.1, 0.11, 0.2, 0.21, None, None])
    assert {(row["step"], row["loss"]) for row in rows[:4]} == {(7, 1.5)}
    assert rows[-1]["reason"] == "optimizer.lr=-1.0 must be above 0"
    assert len({row["run_dir"] for row in rows}) == 6
    assert len({path.read_text() for path in folder.glob("*/pid")}) == 4
    table = (folder / "sweep.md").read_text().splitlines()
    assert table[0].startswith("| run | state | error rate, % |") and len(table) == 8
    assert "| failed (2): optimizer.lr=-1.0 must be above 0 |" in table[-1]
    assert "small-sweep: 6 runs" in capsys.readouterr().out


def test_folders_can_be_typed_and_do_not_collide():
    assert folder_name("optimizer.lr=1e-05,trainer.seed=0") == "optimizer.lr-1e-05_trainer.seed-0"
    one, two = folder_name("dataset.train=a/b.jsonl"), folder_name("dataset.train=a b.jsonl")
    assert one != two and "/" not in one and " " not in two
    assert len(folder_name("x=" + "y" * 500)) <= 120


def test_a_launcher_may_not_start_a_sweep_many_times(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "trainer.seed=0,1"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match=r"type python scripts/train\.py -m"), sweeping("train"):
        pytest.fail("it was started")
