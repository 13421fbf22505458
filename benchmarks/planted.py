"""Faults planted into an artefact, one at a time: which checks see which?

python -m benchmarks.planted

Each is planted as a bad export would leave it: weights, configuration and hashes agree with each other, and FP32
masters are at hand. A check that fires on another's fault, or none at all, is a defect.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.environment import write_result
from infer.artefact import RECORD_NAME
from infer.doctor.examination import CHECKS, examine
from infer.doctor.folder import Weights
from infer.weights import WEIGHTS_NAME, file_sha256

MATRIX = "model.decoder.layers.0.fc1.weight"
EMBEDDING = "model.decoder.embed_tokens.weight"
ADAPTED = ("q_proj.weight", "v_proj.weight")
RANK = 8


@dataclass
class Case:
    """A copy of an artefact with its masters, to plant into."""

    folder: Path
    masters: dict[str, Tensor]
    """FP32."""

    def store(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Write weights in FP16: the masters cast once, or the given ones."""
        stored = {name: t.half() for name, t in self.masters.items()} if tensors is None else tensors
        save_file(stored, str(self.folder / WEIGHTS_NAME), metadata={"format": "pt"})

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON file."""
        file = self.folder / name
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content)
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def drop(self, name: str) -> None:
        """Take a file away."""
        (self.folder / name).unlink()

    def hash_again(self) -> None:
        """List the files as they are now, as an exporter would that wrote them so."""
        files = {p.name: file_sha256(p) for p in sorted(self.folder.iterdir()) if p.name != RECORD_NAME}
        self.edit(RECORD_NAME, lambda record: record.update(files=files))


def _large_weight(case: Case) -> None:
    case.masters[MATRIX].view(-1)[7] = 7e4
    case.store()


def _nan(case: Case) -> None:
    case.store({n: t.half() if n != MATRIX else _with_nan(t.half()) for n, t in case.masters.items()})


def _with_nan(tensor: Tensor) -> Tensor:
    tensor.view(-1)[7] = torch.nan
    return tensor


def _tiny_weights(case: Case) -> None:
    case.masters[MATRIX].view(-1)[:64] = 1e-9
    case.store()


def _subnormal_weights(case: Case) -> None:
    for name in case.masters:
        if name.endswith(("weight",)) and "layer_norm" not in name:
            case.masters[name].view(-1)[::8] = 2.0**-16
    case.store()


def _broken_tie(case: Case) -> None:
    half = {name: tensor.half() for name, tensor in case.masters.items()}
    case.store({**half, "proj_out.weight": half[EMBEDDING] * 1.01})


def _wrong_mel_bins(case: Case) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        case.edit(name, lambda c: c.update({k: 128 for k in ("num_mel_bins", "feature_size") if k in c}))


def _wrong_special_ids(case: Case) -> None:
    case.edit("config.json", lambda c: c.update(decoder_start_token_id=c["decoder_start_token_id"] + 1))


def _merged_in_half(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    stored = {name: tensor.half() for name, tensor in case.masters.items()}
    for name in [name for name in case.masters if name.endswith(ADAPTED)]:
        weight = case.masters[name]
        down = torch.randn(RANK, weight.shape[1], generator=generator) * 0.02
        up = torch.randn(weight.shape[0], RANK, generator=generator) * 0.02
        stored[name] = stored[name] + (up @ down).half()  # what PEFT does to an FP16 base
        case.masters[name] = weight + up @ down
    case.store(stored)


def _foreign_tokenizer(case: Case) -> None:
    """Give the tokenizer one language more than the model has, as large-v3's has over large-v2's."""

    def shift(content: dict[str, Any]) -> None:
        first = next(t["id"] for t in content["added_tokens"] if t["content"] == "<|translate|>")
        for token in content["added_tokens"]:
            token["id"] += token["id"] >= first

    case.edit("tokenizer.json", shift)


def _forget_languages(case: Case) -> None:
    case.edit("generation_config.json", lambda c: c.pop("lang_to_id"))


def _force_language(case: Case) -> None:
    case.edit("generation_config.json", lambda c: c.update(forced_decoder_ids=[[1, c["lang_to_id"]["<|en|>"]]]))


def _suppress_end(case: Case) -> None:
    case.edit("generation_config.json", lambda c: c.update(suppress_tokens=[1, 2, c["eos_token_id"]]))


def _forget_heads(case: Case) -> None:
    case.edit("generation_config.json", lambda c: c.pop("alignment_heads"))


def _remote_code(case: Case) -> None:
    case.edit("config.json", lambda c: c.update(auto_map={"AutoModel": "model.Model"}))


def _name_other_dtype(case: Case) -> None:
    case.edit("config.json", lambda c: c.update(dtype="float32"))


def _lose_tensor(case: Case) -> None:
    case.store({name: tensor.half() for name, tensor in case.masters.items() if name != MATRIX})


def _pickle(case: Case) -> None:
    case.drop(WEIGHTS_NAME)
    (case.folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


def _flip_bit(case: Case) -> None:
    file = case.folder / WEIGHTS_NAME
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@dataclass(frozen=True)
class Plant:
    """A fault and the check that must see it."""

    title: str
    code: str
    into: Callable[[Case], None]
    is_rehashed: bool = True
    """False where the fault comes after the export."""


PLANTS = (
    Plant("|w| = 7e4", "fp16-reach", _large_weight),
    Plant("NaN", "nonfinite", _nan),
    Plant("|w| = 1e-9", "fp16-flush", _tiny_weights),
    Plant("broken tie", "tie", _broken_tie),
    Plant("missing tokenizer", "tokenizer-missing", lambda case: case.drop("tokenizer.json")),
    Plant("wrong mel count", "mel-bins", _wrong_mel_bins),
    Plant("wrong special ids", "special-ids", _wrong_special_ids),
    Plant("LoRA merged in FP16", "cast", _merged_in_half),
    Plant("an eighth of the weights at 1.5e-5", "fp16-subnormal", _subnormal_weights),
    Plant("tokenizer of large-v3 on large-v2", "vocabulary", _foreign_tokenizer),
    Plant("no ids of languages", "generation-ids", _forget_languages),
    Plant("a forced language", "forced-ids", _force_language),
    Plant("the end suppressed", "suppress-lists", _suppress_end),
    Plant("no alignment heads", "alignment-heads", _forget_heads),
    Plant("no generation_config.json", "generation-missing", lambda case: case.drop("generation_config.json")),
    Plant("no preprocessor_config.json", "preprocessor-missing", lambda case: case.drop("preprocessor_config.json")),
    Plant("no config.json", "config", lambda case: case.drop("config.json")),
    Plant("code in config.json", "remote-code", _remote_code),
    Plant("another dtype named", "dtype", _name_other_dtype),
    Plant("a tensor lost", "shapes", _lose_tensor),
    Plant("pickled weights alone", "weights-missing", _pickle),
    Plant("a bit flipped after the export", "hashes", _flip_bit, is_rehashed=False),
)
NUM_OF_FIGURE = 8
"""The first ones; the others give every check a fault of its own."""


def plant(fault: Plant | None, artefact: Path, masters: Path | dict[str, Tensor], folder: Path) -> Case:
    """Copy an artefact and plant a fault into it; None plants nothing.

    Args:
        fault: what to plant.
        artefact: stored in FP16.
        masters: a folder with the same weights in FP32, or the weights.
        folder: for the copy.
    """
    shutil.copytree(artefact, folder)
    state = dict(Weights.open(masters)) if isinstance(masters, Path) else masters
    case = Case(folder, {name: tensor.clone() for name, tensor in state.items()})
    if fault is not None:
        fault.into(case)
    if fault is None or fault.is_rehashed:
        case.hash_again()
    return case


def cross(artefact: Path, masters: Path | dict[str, Tensor]) -> dict[str, list[str]]:
    """Return the codes that every planted fault was found by, and under `nothing` those of the clean artefact."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="planted-") as scratch:
        for i, fault in enumerate((None, *PLANTS)):
            case = plant(fault, artefact, masters, Path(scratch) / str(i))
            seen = examine(case.folder, masters=case.masters)
            found["nothing" if fault is None else fault.title] = list(seen.codes)
    return found


def render(found: dict[str, list[str]]) -> Table:
    """Lay out faults against checks."""
    expected = {fault.title: fault.code for fault in PLANTS}
    codes = [check.code for check in CHECKS]
    codes.sort(key=lambda code: list(expected.values()).index(code))
    table = Table(title=Text("Planted faults (rows) and the checks that see them"))
    table.add_column("planted", no_wrap=True)
    for i in range(len(codes)):
        table.add_column(str(i + 1), justify="center")
    for title, seen in found.items():
        cells = []
        for code in codes:
            own = expected.get(title) == code
            good = (code in seen) == own
            mark = ("●" if own else "×") if code in seen else ("○" if own else "·")
            cells.append(Text(mark, style="" if good and not own else "green" if good else "bold red"))
        table.add_row(Text(title), *cells)
    table.caption = Text(", ".join(f"{i} {code}" for i, code in enumerate(codes, start=1)))
    return table


def main(arguments: Sequence[str]) -> int:
    """Plant, look, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artefact", type=Path, default=Path("runs/demo/export"))
    parser.add_argument("--masters", type=Path, default=Path("runs/demo/export-fp32"))
    options = parser.parse_args(arguments)
    found = cross(options.artefact, options.masters)
    Console(width=None if sys.stdout.isatty() else 150).print(render(found))
    own = sum(found[fault.title] == [fault.code] for fault in PLANTS)
    of_figure = sum(found[fault.title] == [fault.code] for fault in PLANTS[:NUM_OF_FIGURE])
    print(f"seen by its own check and by no other: {own} of {len(PLANTS)}; on the clean artefact: {found['nothing']}")
    write_result(
        "planted",
        {
            "artefact": str(options.artefact),
            "seen_by_its_own_check_alone": own,
            "planted": len(PLANTS),
            "of_the_figure": {"planted": NUM_OF_FIGURE, "seen_by_its_own_check_alone": of_figure},
            "clean": found["nothing"],
            "matrix": {fault.title: {"expected": fault.code, "seen": found[fault.title]} for fault in PLANTS},
        },
    )
    return 0 if own == len(PLANTS) and not found["nothing"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
