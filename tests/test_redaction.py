"""A secret of the environment is in no log line and no message, whoever put it there."""

import logging

import pytest

from data.redaction import names_a_secret, redact
from scripts.settings import run_guarded
from train.runtime import configure_logging

SECRET = "hf_abcdefgh12345678"


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("SOME_KEY", "1")
    monkeypatch.setenv("MONKEY_HOUSE", "bananas-and-more")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("HF_TOKEN", True), ("WANDB_API_KEY", True), ("db-password", True), ("TOKENIZERS_PARALLELISM", False)],
)
def test_names(name, expected):
    assert names_a_secret(name) is expected


def test_values_of_secrets_are_taken_out_and_nothing_else():
    said = redact(f"401 for https://u:{SECRET}@hub, 1 try, bananas-and-more")
    assert said == "401 for https://u:<HF_TOKEN>@hub, 1 try, bananas-and-more"


def test_a_message_and_its_traceback(monkeypatch, capsys):
    def fails():
        raise ValueError(f"token {SECRET} is not valid")

    monkeypatch.setenv("MEZZAVOCE_TRACEBACK", "1")
    assert run_guarded(fails) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "token <HF_TOKEN> is not valid" in said
    assert SECRET not in said


@pytest.mark.usefixtures("kept_logging")
def test_the_log(tmp_path, capsys):
    configure_logging(tmp_path, is_main=True)
    logging.getLogger("train.x").info("with %s and %d", SECRET, 7)
    for text in ((tmp_path / "train.log").read_text(), capsys.readouterr().err):
        assert "with <HF_TOKEN> and 7" in text
