"""The model that is trained: pretrained in FP32, or from random weights; and which of its parameters learn."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperAttention

from data.labels import special_id
from data.languages import LANGUAGE_CODES
from infer.artefact import load_tokenizer, refuse_remote_code
from infer.encoder import WindowedWhisper
from infer.generation_config import clean_generation_config
from infer.weights import WEIGHTS_NAME, file_sha256
from train.vocabulary import Unit, learn_tokenizer, special_tokens

logger = logging.getLogger(__name__)

HUB_FILES = ["*.json", "*.safetensors", "merges.txt"]


@dataclass(frozen=True)
class Geometry:
    """Size of a model: of one from random weights, or of a published one that is only planned with."""

    d_model: int = 128
    encoder_layers: int = 4
    decoder_layers: int = 2
    attention_heads: int = 4
    ffn_dim: int = 512
    num_mel_bins: int = 80
    vocab_size: int | None = None
    """None: that of the tokenizer."""

    def __post_init__(self) -> None:
        if self.d_model % self.attention_heads:
            raise ValueError(f"model.geometry: d_model={self.d_model} must divide by {self.attention_heads} heads")


@dataclass(frozen=True)
class ModelSettings:
    """The `model` group."""

    name: str
    path: str | None = None
    """Hub id or local folder; None makes a model from random weights."""
    revision: str | None = None
    """Commit or branch on the hub; the commit that it meant is recorded."""
    dropout: float | None = None
    """Replaces the model's own; None keeps it."""
    geometry: Geometry | None = None
    tokenizer_unit: Unit = "character"
    """Of the tokenizer that is learnt: `character` or `bpe`."""
    vocabulary_size: int = 1000
    """Text tokens of a learnt `bpe` tokenizer."""
    tokenizer_texts: tuple[str, ...] = ()
    """Further manifests whose texts the learnt tokenizer covers."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in FP32 with its tokenizer, and where it came from."""

    whisper: WindowedWhisper
    tokenizer: PreTrainedTokenizerBase
    source: dict[str, str | None]
    """Path or hub id, resolved revision, SHA-256 of the weights."""


def load_model(settings: ModelSettings, *, texts: Iterable[str] = ()) -> LoadedModel:
    """Load a pretrained model in FP32, or make one from random weights.

    Args:
        settings: which one.
        texts: transcripts, for the tokenizer of a model from random weights.

    Raises:
        FileNotFoundError: if the folder or its weights are not there, or the hub is out of reach and nothing is cached.
        ValueError: if neither `path` nor `geometry` is given.
    """
    if settings.path is None:
        if settings.geometry is None:
            raise ValueError("model.path= is missing: give a hub id or a folder, or take model=scratch")
        return _build_scratch(settings, texts)
    folder, revision = find_model(settings.path, settings.revision)
    refuse_remote_code(folder)
    if not any((folder / name).is_file() for name in (WEIGHTS_NAME, f"{WEIGHTS_NAME}.index.json")):
        raise FileNotFoundError(
            f"model.path={settings.path} has no safetensors; pickled weights (.bin, .pt) are never loaded, convert them"
        )
    whisper = WindowedWhisper.from_pretrained(
        str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True, attn_implementation="sdpa"
    )
    _prepare(whisper, settings)
    weights = folder / WEIGHTS_NAME
    source = {
        "name": settings.name,
        "path": settings.path,
        "revision": revision,
        "sha256": file_sha256(weights) if weights.is_file() else None,
    }
    return LoadedModel(whisper, load_tokenizer(folder), source)


def planned_config(settings: ModelSettings) -> WhisperConfig:
    """Return the configuration to plan with: of a local folder, else of the geometry that the settings give.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if settings.path is not None and Path(settings.path).expanduser().is_dir():
        return read_config(settings)
    geometry = settings.geometry
    if geometry is None:
        raise FileNotFoundError(f"model.path={settings.path} is no folder, and model= gives no geometry to plan with")
    special = len(special_tokens())
    return WhisperConfig(
        vocab_size=geometry.vocab_size or settings.vocabulary_size + special,
        num_mel_bins=geometry.num_mel_bins,
        d_model=geometry.d_model,
        encoder_layers=geometry.encoder_layers,
        decoder_layers=geometry.decoder_layers,
        encoder_attention_heads=geometry.attention_heads,
        decoder_attention_heads=geometry.attention_heads,
        encoder_ffn_dim=geometry.ffn_dim,
        decoder_ffn_dim=geometry.ffn_dim,
        dropout=settings.dropout or 0.0,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )


def read_config(settings: ModelSettings) -> WhisperConfig:
    """Read the configuration of a pretrained model, without its weights.

    Raises:
        FileNotFoundError: as `find_model`.
    """
    assert settings.path is not None
    folder, _ = find_model(settings.path, settings.revision)
    refuse_remote_code(folder)
    config: WhisperConfig = WhisperConfig.from_pretrained(str(folder), local_files_only=True)
    if settings.dropout is not None:
        config.dropout = settings.dropout
    return config


def find_model(path: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the folder of a model, and the commit that a hub id was resolved to.

    A folder is taken as it is; a hub id comes from the cache, or from the hub where it can be reached.

    Raises:
        FileNotFoundError: with what to type.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"model.path={path} has no {name}; it must be a Whisper folder with safetensors"
                )
        return folder, None
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"model.path={path} is no folder; give a Whisper folder, or a hub id such as openai/whisper-tiny"
        )
    try:
        found = Path(snapshot_download(path, revision=revision, allow_patterns=HUB_FILES))
    except RepositoryNotFoundError as e:
        raise FileNotFoundError(f"the hub has no model {path}; give another hub id, or a folder as model.path=") from e
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        raise FileNotFoundError(
            f"{path} is not in the cache and the hub cannot be reached; "
            "download it elsewhere and give its folder: model.path=FOLDER"
        ) from e
    return found, found.name


def _prepare(whisper: WindowedWhisper, settings: ModelSettings) -> None:
    config = whisper.config
    config.use_cache = False
    config.apply_spec_augment = False  # its masks come from numpy's global state; ours are a function of the clip
    if settings.dropout is not None:
        config.dropout = settings.dropout
        for module in whisper.modules():
            # Of the residual branches alone: attention reads its own from `attention_dropout`.
            if isinstance(getattr(module, "dropout", None), float) and not isinstance(module, WhisperAttention):
                module.dropout = settings.dropout  # type: ignore[assignment]
    whisper.generation_config = clean_generation_config(whisper.generation_config or GenerationConfig())


def _build_scratch(settings: ModelSettings, texts: Iterable[str]) -> LoadedModel:
    geometry = settings.geometry
    assert geometry is not None
    texts = [*texts, *(text for path in settings.tokenizer_texts for text in _texts_of(Path(path)))]
    tokenizer = learn_tokenizer(texts, unit=settings.tokenizer_unit, vocabulary_size=settings.vocabulary_size)
    end_id = special_id(tokenizer, "<|endoftext|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=geometry.num_mel_bins,
        d_model=geometry.d_model,
        encoder_layers=geometry.encoder_layers,
        decoder_layers=geometry.decoder_layers,
        encoder_attention_heads=geometry.attention_heads,
        decoder_attention_heads=geometry.attention_heads,
        encoder_ffn_dim=geometry.ffn_dim,
        decoder_ffn_dim=geometry.ffn_dim,
        dropout=0.0,
        pad_token_id=end_id,
        bos_token_id=end_id,
        eos_token_id=end_id,
        decoder_start_token_id=special_id(tokenizer, "<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    whisper = WindowedWhisper(config)
    _initialise(whisper)
    whisper.generation_config = build_generation_config(config, tokenizer)
    _prepare(whisper, settings)
    source: dict[str, str | None] = {"name": settings.name, "path": None, "revision": None, "sha256": None}
    return LoadedModel(whisper, tokenizer, source)


def _initialise(whisper: WindowedWhisper) -> None:
    """Draw linear and convolution weights by their fan-in, as OpenAI's own Whisper does.

    The fixed deviation of 0.02 that transformers draws with suits a width of 768 and more. In a narrow model it leaves
    the speech fifty times weaker than the table of positions it is added to, and the decoder learns to ignore it.
    """
    for module in whisper.modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module is not whisper.proj_out:
            module.reset_parameters()
    encoder = whisper.model.encoder
    with torch.no_grad():  # speech then enters as loud as the positions, 0.6
        encoder.conv1.weight.mul_(3.0)
        encoder.conv2.weight.mul_(3.0)


def build_generation_config(config: WhisperConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the generation settings that Whisper's own folders carry, so that stock runtimes can run the model."""
    end_id = special_id(tokenizer, "<|endoftext|>")
    vocabulary = tokenizer.get_vocab()
    half = config.decoder_layers // 2
    heads = config.decoder_attention_heads
    return GenerationConfig(
        eos_token_id=end_id,
        pad_token_id=end_id,
        bos_token_id=end_id,
        decoder_start_token_id=special_id(tokenizer, "<|startoftranscript|>"),
        max_length=config.max_target_positions,
        is_multilingual=True,
        lang_to_id={f"<|{c}|>": vocabulary[f"<|{c}|>"] for c in LANGUAGE_CODES if f"<|{c}|>" in vocabulary},
        task_to_id={task: special_id(tokenizer, f"<|{task}|>") for task in ("transcribe", "translate")},
        no_timestamps_token_id=special_id(tokenizer, "<|notimestamps|>"),
        prev_sot_token_id=special_id(tokenizer, "<|startofprev|>"),
        # Without measured heads Whisper's own rule is all heads of the later half of the decoder.
        alignment_heads=[[layer, head] for layer in range(half, config.decoder_layers) for head in range(heads)],
        return_timestamps=False,
    )


def _texts_of(manifest: Path) -> list[str]:
    with manifest.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file if line.strip()]
