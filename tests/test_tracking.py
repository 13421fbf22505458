"""`metrics.jsonl` is exact JSON without leftovers, secrets stay here, and a W&B run goes on under its own id."""

import json
import math
from types import SimpleNamespace

import pytest

from infer.score.evaluation import Prediction
from train.tracking import MetricsFile, TrackerSettings, WandbTracker, is_logged_in, without_secrets


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_object_a_line_with_the_step_first(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.log({"train/loss": 2.5, "train/loss_scale": None}, step=1)
    file.log({"train/loss": 0.1 + 0.2}, step=2)
    assert _lines(path) == [  # readable while the run goes on
        {"step": 1, "train/loss": 2.5, "train/loss_scale": None},
        {"step": 2, "train/loss": 0.1 + 0.2},
    ]
    file.close()
    assert path.read_text().startswith('{"step": 1')
    assert file.run_id is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.log({"train/loss": value}, step=1)
    file.close()
    assert "NaN" not in path.read_text()
    assert _lines(path) == [{"step": 1, "train/loss": None}]


@pytest.mark.parametrize("rest", ["", '{"step": 4, "train/lo', '{"step"', "\x00\x00"])
def test_after_a_resume_there_is_no_line_beyond_the_checkpoint(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": i, "train/loss": 1.0 / i} for i in (1, 2, 3, 4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in whole) + rest)
    file = MetricsFile(path, last_step=2)
    file.log({"train/loss": 9.0}, step=3)
    file.close()
    assert _lines(path) == [*whole[:2], {"step": 3, "train/loss": 9.0}]


def test_a_run_that_begins_anew_keeps_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    MetricsFile(path, last_step=0).close()
    assert path.read_text() == ""


def test_secrets_are_left_out_at_any_depth():
    config = {
        "api_key": "a",
        "hub-token": "b",
        "Password": "c",
        "trainer": {"seed": 1, "aws_secret": "d", "deep": {"credential": "e", "tokenizer_unit": "character"}},
        "monkey": "kept",
        "dataset": {"train": ["x.jsonl"]},
    }
    assert without_secrets(config) == {
        "trainer": {"seed": 1, "deep": {"tokenizer_unit": "character"}},
        "monkey": "kept",
        "dataset": {"train": ["x.jsonl"]},
    }
    assert "api_key" in config  # a copy


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, False),
        ("machine example.org login a password b\n", False),
        ("machine api.wandb.ai login u password p\n", True),
    ],
)
def test_logged_in_means_credentials_in_netrc(tmp_path, monkeypatch, content, expected):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if content is not None:
        (tmp_path / ".netrc").write_text(content)
        (tmp_path / ".netrc").chmod(0o600)
    assert is_logged_in() is expected


def test_logged_in_means_a_key_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert is_logged_in()


@pytest.mark.parametrize("wrong", [{"name": "tensorboard"}, {"mode": "of-line"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="tracker"):
        TrackerSettings(**wrong)


def test_a_step_that_comes_again_after_a_resume_is_not_sent_twice(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "tr')
    file = MetricsFile(path, last_step=1)  # the checkpoint is of step 1, the run was killed in step 4
    assert file.last_seen == 3
    sent = []
    run = SimpleNamespace(id="x", dir=str(tmp_path), define_metric=lambda *_a, **_o: None, log=sent.append)
    monkeypatch.setattr("wandb.init", lambda **_options: run)
    monkeypatch.setattr("wandb.Table", lambda columns: columns)
    tracker = WandbTracker(
        TrackerSettings(mode="offline"),
        run_dir=tmp_path,
        name="n",
        config={},
        run_id=None,
        audio={},
        last_sent=file.last_seen,
    )
    for step in (2, 3, 4):
        tracker.log({"train/loss": float(step)}, step=step)
        tracker.log_predictions("validation", [], step=step)
    assert [entry["step"] for entry in sent] == [4, 4]  # figures and table of the first step that is new
    file.close()


def test_wandb_is_really_written_offline_and_goes_on_under_its_id(tmp_path, monkeypatch):
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prediction = Prediction("c1", "en", "en", "one two", "one too", 1.0)

    def run(run_id, step):
        tracker = WandbTracker(
            TrackerSettings(mode="auto"),
            run_dir=tmp_path,
            name="a-name",
            config={"trainer": {"seed": 3}, "api_key": "hunter2"},
            run_id=run_id,
            audio={},
        )
        tracker.log({"train/loss": 0.125, "train/grad_norm": None}, step=step)
        tracker.log_predictions("validation", [prediction], step=step)
        tracker.close()
        return tracker.run_id

    first = run(None, 10)
    assert first
    assert run(first, 20) == first
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb"))
    assert len(files) >= 1  # two starts within one second share a folder
    content = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in content
    assert b"0.125" in content
    assert b"a-name" in content
    assert b"seed" in content
    for file in (tmp_path / "wandb").rglob("*"):
        if file.is_file():
            assert b"hunter2" not in file.read_bytes()
    assert list((tmp_path / "wandb").rglob("*.table.json"))
