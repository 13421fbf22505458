"""Which signal ends a run, what a repeated one does, and when the hours are over."""

import signal
import subprocess
import sys
import time

import pytest

import train.signals as module
from train.signals import EvaluationStopped, StopSignals, TimeLimit


@pytest.fixture(autouse=True)
def _kept_handlers():
    before = {number: signal.getsignal(number) for number in StopSignals.NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_each_signal_is_remembered_and_has_its_code(number, code, capfd):
    with StopSignals() as signals:
        assert signals.exit_code == 0
        signal.raise_signal(number)
        assert (signals.received, signals.exit_code) == (number, code)
    assert "stopping after this update" in capfd.readouterr().err


def test_what_comes_at_once_is_the_same_order():
    with StopSignals() as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals.exit_code == 143


def test_a_later_signal_acts_as_if_we_were_not_there(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(module, "REPEAT_S", 0.0)
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_later_sigterm_ends_the_process():
    program = (
        "import os, signal, time, train.signals as m\n"
        "m.REPEAT_S = 0.0\n"
        "with m.StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == -signal.SIGTERM


def test_an_evaluation_is_broken_off_and_nothing_else():
    with StopSignals() as signals:
        with pytest.raises(EvaluationStopped), signals.interrupting():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(EvaluationStopped), signals.interrupting():
            pytest.fail("an evaluation was begun after the signal")
        signal.raise_signal(signal.SIGTERM)


def test_the_hours_are_over_before_a_round_and_a_checkpoint_no_longer_fit(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    limit = TimeLimit(1.0)
    for elapsed, save_s, over in ((0, 0, False), (60, 0, False), (3400, 0, True)):
        now[0] = 100.0 + elapsed
        assert limit.is_over(save_s=save_s) is over, elapsed
    now[0] = 100.0
    limit = TimeLimit(1.0)
    now[0] += 10
    assert not limit.is_over(save_s=3500)
    assert limit.is_over(save_s=3580)


def test_no_hours_are_no_limit(monkeypatch):
    limit = TimeLimit(0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    assert not limit.is_over(save_s=1e9)
