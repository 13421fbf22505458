"""Places and audio are counted, given back whatever happens, and refused with the time to come back."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from serve.admission import Admission
from serve.errors import ServiceError
from serve.metrics import Metrics
from serve.settings import ServeSettings


@pytest.fixture
def admission():
    made = Admission(ServeSettings(max_queue=2, max_queue_audio_s=100.0), Metrics())
    made.state = "ready"
    return made


def _refused(held):
    with pytest.raises(ServiceError) as error, held:
        raise AssertionError("somebody got in")
    return error.value.status, error.value.code


def test_places_end_and_come_back_also_after_an_error(admission):
    with admission.place(), admission.place():
        assert _refused(admission.place()) == (429, "queue_full")
    assert admission.num_taken == 0
    with pytest.raises(KeyError), admission.place():
        raise KeyError
    assert admission.num_taken == 0


def test_audio_in_memory_is_limited_and_one_recording_is_always_taken(admission):
    with admission.audio(500.0):
        assert _refused(admission.audio(0.1)) == (429, "queue_full")
    with admission.audio(60.0), admission.audio(40.0):
        assert admission.audio_s == 100.0
        assert _refused(admission.audio(0.1)) == (429, "queue_full")
    assert admission.audio_s == 0.0


@pytest.mark.parametrize("state", ["starting", "draining", "stopped"])
def test_nobody_is_taken_before_the_start_and_after_the_end(admission, state):
    admission.state = state
    assert _refused(admission.place()) == (503, "unavailable")
