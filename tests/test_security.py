"""What comes from outside is data: no code in a configuration, no pickle, no remote code, no clip beyond the limits."""

import json

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from data.audio import AudioError, load_waveform
from infer.artefact import load_artefact
from scripts.settings import SettingsError, to_plain
from train.model import ModelSettings, load_model

CODE = ({"_target_": "os.system"}, {"_partial_": True}, {"_args_": ["touch canary"]})


@pytest.mark.parametrize("code", CODE, ids=lambda code: next(iter(code)))
@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("in_list", [False, True])
def test_code_in_a_configuration_is_refused_at_any_depth(code, depth, in_list):
    node = {"inner": [code] if in_list else code}
    for i in range(depth):
        node = {f"level{i}": node}
    with pytest.raises(SettingsError, match=rf"{next(iter(code))} is not allowed: a configuration is data"):
        to_plain(OmegaConf.create(node))


@pytest.fixture
def folder(tmp_path):
    """A model folder with a configuration and a tokenizer, and weights that a test adds."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


class _Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "last.ckpt"])
def test_pickled_weights_are_refused_unopened(folder, name):
    import pickle

    canary = folder / "canary"
    (folder / name).write_bytes(pickle.dumps(_Canary(canary)))
    with pytest.raises(FileNotFoundError, match=r"pickled weights \(\.bin, \.pt\) are never loaded"):
        load_model(ModelSettings("small", path=str(folder)))
    with pytest.raises(FileNotFoundError, match=r"pickled weights \(\.bin, \.pt\) are never loaded"):
        load_artefact(folder)
    assert not canary.exists()
    pickle.loads((folder / name).read_bytes()).close()
    assert canary.exists()  # so it would have been seen


def test_remote_code_is_refused_and_not_imported(folder):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "whisper", "auto_map": {"AutoModel": "modeling.Evil"}})
    )
    (folder / "modeling.py").write_text(f"open({str(folder / 'canary')!r}, 'w')\n")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"remote code \(auto_map\).*data, never code"):
        load_model(ModelSettings("small", path=str(folder)))
    assert not (folder / "canary").exists()


def test_an_hour_in_a_small_file_is_refused_without_its_memory(tmp_path):
    """An hour of silence is 1 MB of FLAC and 230 MB of samples."""
    import tracemalloc

    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        for _ in range(360):
            file.write(np.zeros(160_000, np.int16))
    assert path.stat().st_size < 2e6
    tracemalloc.start()
    with pytest.raises(AudioError, match="30"):
        load_waveform(path, max_duration_s=30.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 30.5 s are 2 MB


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:1\nfile:///etc/passwd\n", "ffconcat version 1.0\nfile '/etc/passwd'\n"]
)
def test_a_playlist_that_names_other_files_is_refused(tmp_path, text):
    path = tmp_path / "clip.mp3"
    path.write_text(text)
    with pytest.raises(AudioError):
        load_waveform(path, max_duration_s=30.0)
