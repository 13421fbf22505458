"""The service under ONNX Runtime: the artefact is converted at the start, and the texts are those of torch."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("onnxruntime", reason="the extra `runtimes` is not installed")
pytest.importorskip("onnxscript", reason="the extra `runtimes` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from infer.decoding import DecodeSettings
from serve.engine import Engine, ModelSpec, Options
from serve.errors import ServiceError
from serve.settings import ServeSettings
from tests.conftest import tone

SECONDS = (0.5, 0.9, 1.4, 2.6)
"""Of clips in two windows."""


def test_onnx_runtime_tells_what_torch_tells_and_offers_what_it_can(artefact_dir, tmp_path):
    settings = ServeSettings(dir=str(tmp_path / "serve"), workers=1, threads=1, decoders=1)
    profiles = {"greedy": DecodeSettings(max_new_tokens=16), "beam5": DecodeSettings(max_new_tokens=16, num_beams=5)}
    runtimes = ("torch", "onnx")
    clips = [tone(seconds, hz=150.0 + 90 * i, seed=i) for i, seconds in enumerate(SECONDS)]

    async def work():
        engine = Engine([ModelSpec(name, artefact_dir, name) for name in runtimes], settings, profiles=profiles)
        await engine.start()
        try:
            asked = [[engine.transcribe(clip, Options(model=name)) for clip in clips] for name in runtimes]
            heard = [await asyncio.gather(*each) for each in asked]
            with pytest.raises(ServiceError, match="torch and ctranslate2 do"):
                await engine.transcribe(clips[0], Options(model="onnx", words=True))
            return heard, {name: (engine.profiles(name), engine.has_words(name)) for name in runtimes}
        finally:
            await engine.stop()

    (torch, onnx), offered = asyncio.run(asyncio.wait_for(work(), 60))
    assert [found.text for found in onnx] == [found.text for found in torch]
    assert len({found.text for found in torch}) > 1 and all(found.text for found in torch)
    assert [found.language for found in onnx] == [found.language for found in torch]
    assert offered == {"torch": (["greedy", "beam5"], True), "onnx": (["greedy"], False)}
    assert [found.name.startswith("onnx-fp32-") for found in (tmp_path / "serve" / "converted").iterdir()] == [True]
