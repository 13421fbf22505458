"""Audio is decoded elsewhere: to the same samples, within limits, and what breaks a decoder breaks nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import numpy as np
import pytest
import soundfile

from data.audio import load_waveform
from serve.audio_pool import AudioPool
from serve.errors import ServiceError
from serve.settings import ServeSettings


def _with_pool(work, **settings):
    async def run():
        pool = AudioPool(ServeSettings(decoders=1, **settings))
        await pool.start()
        try:
            return await asyncio.wait_for(work(pool), 20)
        finally:
            await pool.stop()

    return asyncio.run(run())


def _code(error):
    return error.value.status, error.value.code


def test_samples_arrive_as_they_are_decoded_here_and_errors_in_words(write_clip, tmp_path):
    clip = write_clip("a.flac", 3.0, 44_100)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(write_clip("whole.wav", 2.0).read_bytes()[:40_000])
    stranger = tmp_path / "passwords.txt"
    stranger.write_text("nothing to hear")

    with pytest.raises(ServiceError, match="longer than 2 s") as long:
        _with_pool(lambda pool: pool.decode(clip), max_duration_s=2.0)
    assert _code(long) == (400, "audio_too_long")

    async def work(pool):
        np.testing.assert_array_equal(await pool.decode(clip), load_waveform(clip))
        with pytest.raises(ServiceError) as error:
            await pool.decode(stranger)
        assert _code(error) == (400, "audio_invalid")
        assert str(tmp_path) not in error.value.message and "passwords" not in error.value.message
        with pytest.raises(ServiceError, match="shorter than its header says") as error:
            await pool.decode(cut)
        assert _code(error) == (400, "audio_invalid") and "manifest" not in error.value.message

    _with_pool(work)


def test_memory_is_limited(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, format="FLAC") as file:
        for _ in range(20):
            file.write(np.zeros(60 * 16_000, dtype=np.int16))  # 20 minutes: 73 MiB as float32, twice while joined

    async def work(pool):
        with pytest.raises(ServiceError) as error:
            await pool.decode(path)
        return error

    error = _with_pool(work, max_duration_s=3600.0, decode_memory_mib=48)
    assert _code(error) == (400, "audio_invalid")
    assert "memory" in error.value.message or "could not be decoded" in error.value.message
    assert len(_with_pool(lambda pool: pool.decode(path), max_duration_s=3600.0)) == 20 * 60 * 16_000


def test_a_process_that_ends_or_hangs_is_replaced(write_clip):
    clip = write_clip()

    async def work(pool):
        process = pool._all[0]._process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(await pool.decode(clip)) == 16_000  # nobody had to know
        stuck = pool._all[0]._process
        os.kill(stuck.pid, signal.SIGSTOP)
        with pytest.raises(ServiceError, match="longer than 2 s") as error:
            await pool.decode(clip)
        assert _code(error) == (400, "audio_too_slow")
        assert len(await pool.decode(clip)) == 16_000
        assert stuck.poll() is not None

    _with_pool(work, decode_timeout_s=2.0)


def test_who_goes_away_frees_the_process_at_once(write_clip):
    clip = write_clip()

    async def work(pool):
        await pool.decode(clip)
        os.kill(pool._all[0]._process.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(pool.decode(clip))
        await asyncio.sleep(0.05)
        begin = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(await pool.decode(clip)) == 16_000
        assert time.monotonic() - begin < 5.0  # not the 30 s that it might have taken

    _with_pool(work)


def test_the_process_can_write_no_file_and_open_few(write_clip, tmp_path):
    clip = write_clip()

    async def work(pool):
        await pool.decode(clip)
        number = pool._all[0]._process.pid
        with open(f"/proc/{number}/limits", encoding="ascii") as file:
            return {line[:26].strip(): line[26:].split()[0] for line in file}

    limits = _with_pool(work)
    assert limits["Max file size"] == "0"
    assert limits["Max core file size"] == "0"
    assert int(limits["Max open files"]) <= 64
    assert int(limits["Max address space"]) < 4 << 30
