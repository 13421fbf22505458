"""Import our modules where packages of the data path are not installed, as on a bare machine with a GPU.

Nothing that is measured there reads audio or scores text, but the modules that are needed import others that could.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

NOT_NEEDED = ("datasets", "hydra", "omegaconf", "jiwer", "evaluate", "wandb", "soundfile", "soxr", "av", "pyarrow")


class _Placeholder:
    """Stands for a class or function of an absent package; using it, other than in an import, says so."""

    is_importing = False

    def __init__(self, *_: Any, **__: Any) -> None:
        if not _Placeholder.is_importing:  # a table of column types is built as a module is imported
            raise RuntimeError("a package is not installed that nothing here should need")


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answer imports of absent packages, and of modules inside them, with empty modules."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: _Placeholder  # type: ignore[method-assign]


@contextmanager
def without_absent() -> Iterator[tuple[str, ...]]:
    """Let the imports inside pass; yield the packages that are not there.

    Afterwards they are absent again for everybody else: `transformers` looks for some of them itself.
    """
    missing = tuple(name for name in NOT_NEEDED if importlib.util.find_spec(name) is None)
    finder = _Absent(missing)
    sys.meta_path.append(finder)
    _Placeholder.is_importing = True
    try:
        yield missing
    finally:
        _Placeholder.is_importing = False
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in missing]:
            del sys.modules[name]
