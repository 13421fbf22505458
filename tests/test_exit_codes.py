"""What the script returns for each ending, as docs/running.md has it."""

from types import SimpleNamespace

import pytest

import scripts.train as script
import train.run
from scripts.settings import run_guarded
from train.guard import NonFiniteError
from train.signals import PeerError, StorageError


def _ends(monkeypatch, ending):
    def run(_settings):
        if isinstance(ending, Exception):
            raise ending
        return SimpleNamespace(step=7, exit_code=ending, export_dir=None if ending else "runs/x/export")

    monkeypatch.setattr(train.run, "run_training", run)
    monkeypatch.setattr(script, "build_settings", lambda config: config)
    # Without Hydra's entry point around it, but with what turns errors into codes.
    return run_guarded(lambda: script.train_once({}))


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (0, 0, "artefact: runs/x/export"),
        (124, 124, "stopped at step 7; the same command goes on"),
        (130, 130, "stopped at step 7"),
        (138, 138, "stopped at step 7"),
        (143, 143, "stopped at step 7"),
        (StorageError("checkpoint X was not written"), 75, "error: checkpoint X was not written"),
        (PeerError("rank 1 differs"), 70, "error: rank 1 differs"),
        (NonFiniteError("5 updates in a row"), 2, "error: 5 updates in a row"),
    ],
)
def test_codes(monkeypatch, capsys, ending, code, said):
    assert _ends(monkeypatch, ending) == code
    output = capsys.readouterr()
    assert said in output.out + output.err
