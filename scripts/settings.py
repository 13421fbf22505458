"""From Hydra's configuration to frozen dataclasses: every key known and every type right, or a message what to type.

Only `scripts/` knows Hydra and OmegaConf.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import transformers
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.redaction import redact
from scripts.troubleshooting import with_link

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parents[1]
CONF = PROJECT / "conf"
FORBIDDEN_KEYS = ("_target_", "_partial_", "_args_")
OTHER_FOLDERS = {"accelerate", "hydra", "slurm", "sweeps"}
"""In `conf/`, but no groups of a configuration: launch files."""
ENVIRONMENT_NAMES = (
    *("SLURM_JOB_ID", "HOSTNAME", "USER", "HF_HOME", "SCRATCH", "TMPDIR"),
    *("WANDB_RUN_ID", "WANDB_SWEEP_ID"),  # an agent of a sweep sets them; names, not keys
)
"""The only names that `oc.env` may read: a configuration is logged, and must hold no secret."""
USER_ERRORS = (ValueError, FileNotFoundError, RuntimeError, PermissionError)


class SettingsError(ValueError):
    """A configuration that cannot be used."""


def quiet_libraries() -> None:
    """Leave the terminal to our own tables and bars."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that are not used here
    logging.getLogger("torch.onnx._internal").setLevel(logging.ERROR)  # it misses torchvision, once a graph


def register_resolvers() -> None:
    """Add `${project:PATH}`, a path in the project's own folder, `${product:A,B}`, and fence `${oc.env:NAME}`."""
    OmegaConf.register_new_resolver("product", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _environment(name: str, default: str | None = None) -> str | None:
    if name not in ENVIRONMENT_NAMES:
        raise SettingsError(f"oc.env:{name} is not allowed; it may read {', '.join(ENVIRONMENT_NAMES)}")
    return os.environ.get(name, default)


def verify_overrides(config_name: str, arguments: Sequence[str]) -> None:
    """Check command-line overrides before Hydra sees them, so that a misspelt one names the nearest.

    Args:
        config_name: of the main configuration, such as `train`.
        arguments: the command line without the program.

    Raises:
        SettingsError: for a key or a choice that is not known.
    """
    texts = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(texts)
    except HydraException as e:
        raise SettingsError(str(e).splitlines()[0]) from e
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - OTHER_FOLDERS
    for override in overrides:
        if override.key_or_group in groups and not override.is_sweep_override():
            _verify_choice(override.key_or_group, override.value())
    chosen = [o.input_line or "" for o in overrides if o.key_or_group in groups and not o.is_sweep_override()]
    known = set(_flat_keys(OmegaConf.to_container(compose_config(config_name, chosen), resolve=False)))
    for override in overrides:
        key = override.key_or_group
        if key in groups or key.startswith(("hydra.", "hydra/")) or key in known or override.is_add():
            continue
        near = difflib.get_close_matches(key, [*known, *groups], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; groups are {', '.join(sorted(groups))}"
        raise SettingsError(f"unknown key {key}{hint}")


def _verify_choice(group: str, choice: object) -> None:
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if choice not in options:
        near = difflib.get_close_matches(str(choice), options, n=1)
        hint = f"; did you mean {group}={near[0]}?" if near else ""
        raise SettingsError(f"{group}={choice} is none of {', '.join(options)}{hint}")


def _flat_keys(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return []
    keys: list[str] = []
    for name, value in node.items():
        keys += [f"{prefix}{name}", *_flat_keys(value, f"{prefix}{name}.")]
    return keys


def compose_config(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration outside `hydra.main`, as tests and the demo do."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(config_name, overrides=list(overrides))
    return config


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Resolve a configuration into plain values.

    Raises:
        SettingsError: for a missing value, a failed interpolation, or a key that would make the configuration code.
    """
    try:
        # Looked for unresolved: what refers to a missing value would be named in its place.
        missing = _missing(OmegaConf.to_container(config, resolve=False))
        if missing:
            raise SettingsError(f"missing: {', '.join(missing)}; type {missing[0]}=...")
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        raise SettingsError(str(e).splitlines()[0]) from e
    assert isinstance(plain, dict)
    _refuse_code(plain)
    return {str(key): value for key, value in plain.items()}


def _missing(node: object, path: str = "") -> list[str]:
    if isinstance(node, Mapping):
        return sorted(key for name, value in node.items() for key in _missing(value, f"{path}{name}."))
    return [path.rstrip(".")] if node == "???" else []


def _refuse_code(node: object, path: str = "") -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in FORBIDDEN_KEYS:
                raise SettingsError(f"{path}{key} is not allowed: a configuration is data, never code")
            _refuse_code(value, f"{path}{key}.")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _refuse_code(value, f"{path}{i}.")


def build(cls: type[T], values: object, *, path: str) -> T:
    """Build a frozen dataclass from plain values, key by key.

    Args:
        cls: the dataclass.
        values: mapping of its fields.
        path: where it stands in the configuration, for messages.

    Raises:
        SettingsError: for an unknown key, a wrong type or a value that the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{path} must be a group of keys, found {values!r}")
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean {path}.{near[0]}?" if near else f"; known are {', '.join(names)}"
            raise SettingsError(f"unknown key {path}.{key}{hint}")
    for field in dataclasses.fields(cls):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in values and not has_default:
            raise SettingsError(f"{path}.{field.name} is missing")
    arguments = {name: _convert(value, hints[name], f"{path}.{name}") for name, value in values.items()}
    return typing.cast(T, cls(**arguments))


def _convert(value: Any, hint: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        choices = [argument for argument in arguments if argument is not type(None)]
        for choice in choices:  # a number, or one of a few words such as `auto`
            if typing.get_origin(choice) is typing.Literal and value in typing.get_args(choice):
                return value
        groups = [choice for choice in choices if dataclasses.is_dataclass(choice)]
        # Text or a group of keys, such as a source: a mapping can only be the group.
        return _convert(value, groups[0] if groups and isinstance(value, Mapping) else choices[0], path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, path=path)
    if origin is typing.Literal:
        if value not in arguments:
            raise SettingsError(f"{path}={value} must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise SettingsError(f"{path}={value!r} must be a group of keys, as {{text: sentence}}")
        return {str(key): _convert(item, arguments[1], f"{path}.{key}") for key, item in value.items()}
    if origin is tuple:
        items = [] if value is None else [value] if isinstance(value, str | Mapping) else value
        if not isinstance(items, list):
            raise SettingsError(f"{path}={value!r} must be a list")
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise SettingsError(f"{path}={value!r} must have {len(arguments)} entries")
        return tuple(_convert(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(items))
    return _convert_scalar(value, hint, path)


def _convert_scalar(value: Any, hint: Any, path: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise SettingsError(f"{path}={value!r} must be {names.get(hint, hint)}")


def entry_point(
    config_name: str, *, around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Callable[[Callable[[DictConfig], int]], Callable[[], None]]:
    """Turn a function of a configuration into a script: overrides checked first, no traceback for a user's mistake.

    The traceback is shown with MEZZAVOCE_TRACEBACK=1.

    Args:
        config_name: of the main configuration, such as `train`.
        around: entered before Hydra reads the command line, left when all runs are done.
    """
    import hydra

    def decorate(function: Callable[[DictConfig], int]) -> Callable[[], None]:
        status: list[int] = []

        @functools.wraps(function)
        def guarded(config: DictConfig) -> None:
            status.append(run_guarded(lambda: function(config)))

        @functools.wraps(function)
        def main() -> None:
            code = run_guarded(functools.partial(verify_overrides, config_name, sys.argv[1:]))
            if code:
                sys.exit(code)
            quiet_libraries()
            register_resolvers()
            GlobalHydra.instance().clear()
            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)

            def run_all() -> int:
                with around():
                    run()
                return 0

            sys.exit(max([run_guarded(run_all), *status]))

        return main

    return decorate


def run_guarded(action: Callable[[], int | None]) -> int:
    """Run an action; turn a user's mistake into one line and the exit code 2, an interrupt into 130."""
    try:
        return action() or 0
    except (*USER_ERRORS, HydraException, OmegaConfBaseException) as e:
        text = redact(traceback.format_exc())
        logging.getLogger(__name__).debug("%s", text)
        if os.environ.get("MEZZAVOCE_TRACEBACK"):
            print(text, file=sys.stderr)
        print(f"error: {with_link(redact(str(e)))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
