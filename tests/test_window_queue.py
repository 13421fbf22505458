"""Windows of many callers meet in batches: nobody starves, languages mix, and what differs in kind stays apart."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from infer.decoding import Decoded, DecodeSettings
from serve.window_queue import Recording, WindowQueue

GREEDY = DecodeSettings()


def _recording(**changes):
    given = {"settings": GREEDY, "language": "auto", "prompt": None, "is_live": False, **changes}
    return Recording(**given, done=asyncio.get_running_loop().create_future())


def _queue(*, max_batch=4, max_wait_s=0.0, max_batch_audio_s=1000.0, **options):
    return WindowQueue(
        max_batch=max_batch, max_wait_s=max_wait_s, max_batch_audio_s=max_batch_audio_s, frames_per_s=100, **options
    )


def _add(queue, num_windows=1, num_frames=200, **changes):
    recording = _recording(**changes)
    queue.add(recording, [(np.zeros(10, np.float32), num_frames)] * num_windows)
    return recording


def _run(work):
    return asyncio.run(asyncio.wait_for(work(), 5))


def test_a_long_recording_gives_way_to_short_ones_after_each_batch():
    async def work():
        queue = _queue(max_batch=2)
        long = _add(queue, 6)
        first = await queue.take()
        shorts = [_add(queue) for _ in range(3)]
        rest = [await queue.take() for _ in range(4)]
        assert [window.recording for window in first] == [long, long]
        # each batch holds one window of everybody in turn before a second one of anybody
        assert [window.recording for window in rest[0]] == [long, shorts[0]]
        assert [window.recording for window in rest[1]] == [shorts[1], shorts[2]]
        assert [window.index for batch in (first, *rest) for window in batch if window.recording is long] == list(
            range(6)
        )
        assert queue.num_waiting == 0

    _run(work)


def test_languages_mix_and_settings_prompts_and_unlike_lengths_do_not():
    async def work():
        queue = _queue(max_batch=8)
        _add(queue, language="zh"), _add(queue, language="en"), _add(queue)
        _add(queue, settings=replace(GREEDY, num_beams=5)), _add(queue, prompt="before"), _add(queue, num_frames=300)
        sizes = [len(await queue.take()) for _ in range(4)]
        assert sizes == [3, 1, 1, 1]

    _run(work)


def test_where_the_decoder_mixes_lengths_they_stay_within_a_factor_of_two():
    async def work():
        queue = _queue(max_batch=8)
        queue.mixes_lengths = True
        for num_frames in (200, 160, 400, 500, 3000):
            _add(queue, num_frames=num_frames)
        batches = [[window.num_frames for window in await queue.take()] for _ in range(3)]
        assert batches == [[200, 160, 400], [500], [3000]]
        for beams in (5, 5):  # other searches are done length by length, and would only wait for each other
            _add(queue, settings=replace(GREEDY, num_beams=beams), num_frames=100 * beams)
        _add(queue, settings=replace(GREEDY, num_beams=5), num_frames=600)
        assert [len(await queue.take()) for _ in range(2)] == [2, 1]

    _run(work)


def test_a_batch_holds_no_more_audio_than_allowed_but_one_window_in_any_case():
    async def work():
        queue = _queue(max_batch_audio_s=5.0)
        _add(queue, 3, num_frames=200)
        assert [len(await queue.take()) for _ in range(2)] == [2, 1]
        _add(queue, num_frames=3000)
        assert len(await queue.take()) == 1

    _run(work)


def test_live_speech_goes_first():
    async def work():
        queue = _queue(max_batch=1)
        _add(queue), _add(queue)
        live = _add(queue, is_live=True)
        assert (await queue.take())[0].recording is live

    _run(work)


def test_a_window_waits_only_for_those_who_are_known_to_come():
    async def work():
        alone = _queue(max_wait_s=3.0, num_expected=lambda: 1)
        _add(alone)
        begin = time.monotonic()
        assert len(await alone.take()) == 1
        assert time.monotonic() - begin < 1.0
        shared = _queue(max_wait_s=3.0, num_expected=lambda: 2)
        _add(shared)
        taking = asyncio.create_task(shared.take())
        await asyncio.sleep(0.05)
        assert not taking.done()
        _add(shared)
        assert len(await asyncio.wait_for(taking, 1.0)) == 2
        late = _queue(max_wait_s=0.05, num_expected=lambda: 2)
        _add(late)
        assert len(await late.take()) == 1  # who was expected did not come

    _run(work)


def test_who_is_gone_leaves_the_queue():
    async def work():
        queue = _queue()
        gone, stays = _add(queue, 3), _add(queue)
        queue.drop(gone)
        batch = await queue.take()
        assert [window.recording for window in batch] == [stays]
        assert queue.num_waiting == 0

    _run(work)


def test_windows_of_a_worker_that_ended_come_back_first_and_alone():
    async def work():
        queue = _queue()
        first, second = _add(queue), _add(queue)
        batch = await queue.take()
        for window in batch:
            window.num_failures += 1
        third = _add(queue)
        queue.put_back(batch)
        taken = [[window.recording for window in await queue.take()] for _ in range(3)]
        assert taken == [[first], [second], [third]]
        second.done.cancel()
        queue.put_back(batch[1:])  # nobody waits for it any more
        assert queue.num_waiting == 0

    _run(work)


def test_a_recording_ends_with_its_last_window_and_tells_of_each():
    async def work():
        seen = []
        queue = _queue()
        recording = _add(queue, 2)
        recording.on_window = lambda results: seen.append([result is not None for result in results])
        one, two = await queue.take()
        said = [Decoded(text, "en", "en", 1.0, (), False) for text in ("first", "second")]
        two.recording.take(two, said[1])
        assert not recording.done.done()
        one.recording.take(one, said[0])
        assert await recording.done == said
        assert seen == [[False, True], [True, True]]
        recording.fail(RuntimeError("too late"))  # has no effect
        broken = _add(queue)
        broken.fail(RuntimeError("broken"))
        with pytest.raises(RuntimeError, match="broken"):
            await broken.done

    _run(work)
