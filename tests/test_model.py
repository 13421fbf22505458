"""A model comes in FP32 from a folder, the cache or random weights; its origin is recorded, code in it refused."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from conftest import TEXTS, fake_batch, tiny_whisper, tone
from transformers import GenerationConfig, WhisperForConditionalGeneration

from data.features import LogMel
from infer.weights import file_sha256
from train.model import Geometry, ModelSettings, find_model, load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory, tokenizer):
    """A Whisper folder as Hugging Face writes it, stored in FP16, with the forced ids of old checkpoints."""
    folder = tmp_path_factory.mktemp("hub") / "half"
    whisper = tiny_whisper()
    stock = WhisperForConditionalGeneration(whisper.config)
    stock.load_state_dict(whisper.state_dict())
    stock.generation_config = whisper.generation_config
    stock.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    settings |= {"forced_decoder_ids": [[1, 5], [2, 7]], "language": "<|en|>", "task": "translate"}
    path.write_text(json.dumps(settings))
    return folder


def _settings(path, **options):
    return ModelSettings("local", path=str(path), **options)


def test_a_half_folder_becomes_fp32_with_its_values(half_folder):
    loaded = load_model(_settings(half_folder))
    plain = tiny_whisper()
    assert {p.dtype for p in loaded.whisper.parameters()} == {torch.float32}
    for (name, p), (other, q) in zip(loaded.whisper.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q.half().float())
    assert loaded.source == {
        "name": "local",
        "path": str(half_folder),
        "revision": None,
        "sha256": file_sha256(half_folder / "model.safetensors"),
    }
    batch = fake_batch(1, num_frames=60)
    loaded.whisper.eval()(input_features=batch.input_features, decoder_input_ids=batch.decoder_input_ids)
    assert loaded.tokenizer.get_vocab()["<|endoftext|>"] == loaded.whisper.config.eos_token_id


def test_forced_ids_are_gone_and_the_rest_is_kept(half_folder):
    found = load_model(_settings(half_folder)).whisper.generation_config
    kept = GenerationConfig.from_pretrained(half_folder)
    assert kept.forced_decoder_ids == [[1, 5], [2, 7]]  # the file does hold them
    assert getattr(found, "forced_decoder_ids", None) is None
    assert getattr(found, "language", None) is None
    assert getattr(found, "task", None) is None
    for name in ("lang_to_id", "task_to_id", "alignment_heads", "no_timestamps_token_id", "prev_sot_token_id"):
        assert getattr(found, name) == getattr(kept, name)


def test_dropout_reaches_every_module(half_folder):
    whisper = load_model(_settings(half_folder, dropout=0.25)).whisper
    layers = [*whisper.model.encoder.layers, *whisper.model.decoder.layers]
    assert [m.dropout for m in [whisper.model.encoder, whisper.model.decoder, *layers]] == [0.25] * 5
    assert whisper.config.dropout == 0.25
    batch = fake_batch(1)
    inputs = {"input_features": batch.input_features, "decoder_input_ids": batch.decoder_input_ids}
    torch.manual_seed(0)
    first, second = (whisper.train()(**inputs).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_without_an_override_the_models_own_dropout_stays(half_folder, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(half_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.125}))
    whisper = load_model(_settings(folder)).whisper
    assert whisper.model.decoder.layers[0].dropout == 0.125


def test_spec_augment_of_the_model_is_off(half_folder, tmp_path):
    folder = tmp_path / "masked"
    shutil.copytree(half_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "apply_spec_augment": True}))
    assert load_model(_settings(folder)).whisper.config.apply_spec_augment is False


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_an_incomplete_folder_names_what_it_lacks(half_folder, tmp_path, name):
    folder = tmp_path / "incomplete"
    shutil.copytree(half_folder, folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"model\.path=.*incomplete has no {name}"):
        load_model(_settings(folder))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_says_what_to_type(path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is no folder; give a Whisper folder, or a hub id such as"):
        load_model(ModelSettings("x", path=path))


def test_remote_code_is_refused(half_folder, tmp_path):
    folder = tmp_path / "code"
    shutil.copytree(half_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ValueError, match=r"asks for remote code \(auto_map\)"):
        load_model(_settings(folder))


def test_pickled_weights_are_refused(half_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(half_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_whisper().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="has no safetensors; pickled weights"):
        load_model(_settings(folder))


@pytest.fixture
def cache(half_folder, tmp_path, monkeypatch):
    """A hub cache with one model in it, and no way to the hub."""
    root = tmp_path / "cache"
    repository = root / "models--someone--tiny-whisper"
    shutil.copytree(half_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "tuned").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return root


@pytest.mark.parametrize("revision", [None, "main", "tuned", COMMIT])
def test_a_cached_model_works_offline_and_its_commit_is_recorded(cache, revision):
    folder, commit = find_model("someone/tiny-whisper", revision)
    assert commit == COMMIT
    assert folder == cache / "models--someone--tiny-whisper" / "snapshots" / COMMIT
    loaded = load_model(ModelSettings("tiny", path="someone/tiny-whisper", revision=revision))
    assert loaded.source["revision"] == COMMIT
    assert loaded.source["path"] == "someone/tiny-whisper"
    assert {p.dtype for p in loaded.whisper.parameters()} == {torch.float32}


@pytest.mark.parametrize(("path", "revision"), [("someone/other", None), ("someone/tiny-whisper", "no-such-branch")])
def test_what_is_not_cached_says_what_to_type(cache, path, revision):
    with pytest.raises(FileNotFoundError, match=r"not in the cache and the hub cannot .*model\.path=FOLDER"):
        load_model(ModelSettings("tiny", path=path, revision=revision))


def test_random_weights_have_the_geometry_and_the_vocabulary_that_was_asked_for():
    geometry = Geometry(d_model=24, encoder_layers=3, decoder_layers=2, attention_heads=4, ffn_dim=40, num_mel_bins=128)
    loaded = load_model(ModelSettings("scratch", geometry=geometry, dropout=0.2), texts=TEXTS.values())
    config = loaded.whisper.config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (24, 3, 2)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (4, 4)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.num_mel_bins) == (40, 40, 128)
    assert config.vocab_size == len(loaded.tokenizer)
    assert loaded.whisper.model.encoder.conv1.weight.shape == (24, 128, 3)
    assert loaded.whisper.model.encoder.layers[0].dropout == 0.2
    assert loaded.source == {"name": "scratch", "path": None, "revision": None, "sha256": None}
    heads = loaded.whisper.generation_config.alignment_heads
    assert heads == [[1, 0], [1, 1], [1, 2], [1, 3]]


def test_the_tokenizer_covers_further_manifests(write_manifest):
    path = write_manifest([{"audio": "a.wav", "text": "Ω", "language": "el"}])
    settings = ModelSettings("scratch", geometry=Geometry(d_model=16), tokenizer_texts=(str(path),))
    tokenizer = load_model(settings, texts=["abc"]).tokenizer
    assert len(tokenizer("Ω", add_special_tokens=False).input_ids) == 1
    assert len(tokenizer("Ж", add_special_tokens=False).input_ids) == 2


def test_neither_path_nor_geometry_says_what_to_type():
    with pytest.raises(ValueError, match=r"model\.path= is missing: give a hub id or a folder, or take model=scratch"):
        load_model(ModelSettings("x"))


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"model\.geometry: d_model=30 must divide by 4 heads"):
        Geometry(d_model=30, attention_heads=4)


def test_in_a_narrow_model_from_random_weights_speech_is_as_loud_as_the_positions():
    torch.manual_seed(0)
    geometry = Geometry(d_model=144, encoder_layers=1, decoder_layers=1, attention_heads=4, ffn_dim=288)
    encoder = load_model(ModelSettings("scratch", geometry=geometry), texts=["one"]).whisper.model.encoder
    log_mel = torch.stack([LogMel(80)(tone(1.9, hz=200.0 + 90 * i, seed=i), num_frames=200) for i in range(4)])
    with torch.no_grad():
        heard = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(log_mel))))
    positions = encoder.embed_positions.weight[:100]
    assert 0.3 < float(heard.std() / positions.std()) < 3.0
