"""The packages depend one way, `data <- infer <- train` and `infer <- serve`, and only `scripts/` knows Hydra.

Read from the source by AST, so that imports inside functions count, and nothing has to be imported.
"""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "data": {"data"},
    "infer": {"data", "infer"},
    "train": {"data", "infer", "train"},
    "serve": {"data", "infer", "serve"},
    "scripts": {"data", "infer", "train", "serve", "scripts"},
}
OURS = {*MAY_IMPORT, "tests", "benchmarks", "conf"}
NEVER = {
    "data": ("peft", "wandb", "bitsandbytes", "torch.optim", "accelerate", "hydra", "omegaconf"),
    "infer": ("peft", "wandb", "bitsandbytes", "torch.optim", "accelerate", "hydra", "omegaconf"),
    "serve": ("peft", "wandb", "bitsandbytes", "torch.optim", "accelerate", "hydra", "omegaconf"),
    "train": ("hydra", "omegaconf"),
    "scripts": (),
}
FILES = [path for package in MAY_IMPORT for path in sorted((PROJECT / package).rglob("*.py"))]


def imports_of(source):
    """Return every module that a source names, also inside functions, and `torch.optim` where only reached for."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            found.add(f"torch.{node.attr}")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return found


def _is_within(module, package):
    return module == package or module.startswith(f"{package}.")


def _name(path):
    return path.relative_to(PROJECT).as_posix()


def test_the_reader_sees_every_kind_of_import():
    source = (
        "import a.b\nfrom c import d\ndef f():\n    import e\n    from g.h import i as j\n"
        "x = torch.optim.AdamW\nimportlib.import_module('k')\nif TYPE_CHECKING:\n    import m\n"
    )
    expected = {"a.b", "c", "c.d", "e", "g.h", "g.h.i", "torch.optim", "k", "m"}
    assert imports_of(source) == expected
    with pytest.raises(AssertionError, match="absolute"):
        imports_of("from . import x")


def test_all_packages_are_read():
    assert {path.relative_to(PROJECT).parts[0] for path in FILES} >= {"data", "infer", "train", "scripts"}
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_packages_depend_one_way(path):
    package = path.relative_to(PROJECT).parts[0]
    ours = {module.split(".")[0] for module in imports_of(path.read_text(encoding="utf-8"))} & OURS
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_what_is_not_needed_is_not_imported(path):
    package = path.relative_to(PROJECT).parts[0]
    modules = imports_of(path.read_text(encoding="utf-8"))
    assert not [m for m in modules for forbidden in NEVER[package] if _is_within(m, forbidden)]


def test_names_say_what_is_inside():
    for path in FILES:
        words = path.relative_to(PROJECT).with_suffix("").as_posix().lower().replace("_", "/").split("/")
        assert not {"utils", "util", "helpers", "helper", "misc", "common"} & set(words), path
        classes = [node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
        assert not [name for name in classes if name.endswith(("Manager", "Helper", "Utils"))], path
