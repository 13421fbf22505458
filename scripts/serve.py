"""Serve artefacts: a web page and an API.

python scripts/serve.py artefact=runs/large_v3/export precision=fp16 serve.port=7860
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import uvicorn
from omegaconf import DictConfig, OmegaConf

from infer.decoding import DecodeSettings
from infer.transcriber import best_device
from scripts.settings import CONF, PROJECT, SettingsError, build, entry_point, to_plain
from serve.app import build_app
from serve.engine import Engine, ModelSpec
from serve.runtime import LOADERS
from serve.settings import KEY_NAME, ServeSettings, verify_key
from train.precision import Device, PrecisionSettings, inspect_device, resolve_precision

DEMO = (PROJECT / "runs" / "demo" / "export", PROJECT / "data" / "demo" / "base")
"""The first that is there is served where no artefact is named."""
COMPUTES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
LOG_BYTES, NUM_LOGS = 5_000_000, 5
MAX_HEADER_BYTES = 32 << 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceSettings:
    """One service."""

    artefact: tuple[str, ...]
    runtime: tuple[str, ...]
    profiles: tuple[str, ...]
    precision: PrecisionSettings
    serve: ServeSettings

    def __post_init__(self) -> None:
        for runtime in self.runtime:
            if runtime not in LOADERS:
                raise ValueError(f"runtime={runtime} must be one of {', '.join(LOADERS)}")
        if len(self.runtime) not in (1, max(1, len(self.artefact))):
            raise ValueError(f"{len(self.runtime)} runtimes for {len(self.artefact)} artefacts; give one, or one each")
        if not self.profiles:
            raise ValueError("profiles= names none; type profiles=[greedy]")


def build_settings(config: DictConfig) -> ServiceSettings:
    """Turn the composed configuration into settings."""
    return build(ServiceSettings, to_plain(config), path="serve")


def load_profiles(names: tuple[str, ...]) -> dict[str, DecodeSettings]:
    """Return ways to decode by name, from `conf/decoding`."""
    known = sorted(path.stem for path in (CONF / "decoding").glob("*.yaml"))
    for name in names:
        if name not in known:
            raise SettingsError(f"profiles={name} must be among {', '.join(known)}")
    return {
        name: build(
            DecodeSettings, OmegaConf.to_container(OmegaConf.load(CONF / "decoding" / f"{name}.yaml")), path=name
        )
        for name in names
    }


def choose_compute(precision: PrecisionSettings, device: Device) -> tuple[str, str]:
    """Return the arithmetic for a device, and why.

    The weights are stored in FP16. `auto` computes as evaluation does: in FP16 on a GPU, in FP32 on a CPU; a GPU
    before Volta has no fast FP16, and gets FP32.

    Raises:
        RuntimeError: if the device cannot do what was asked, naming what works.
    """
    if precision.name == "auto" and (device.kind != "cuda" or device.is_volta):
        return "auto", ""
    resolved = resolve_precision(precision, device)
    if resolved.mode in ("bf16", "fp16", "bf16_pure") and device.kind == "cpu":
        logger.warning("precision=%s on a CPU is real half arithmetic, many times slower than auto", resolved.mode)
    return COMPUTES[str(resolved.compute_dtype).removeprefix("torch.")], resolved.reason


def find_models(settings: ServiceSettings) -> list[ModelSpec]:
    """Return what to serve; names are those of the runs, with a number where two are the same."""
    paths = [Path(path).expanduser() for path in settings.artefact]
    if not paths:
        found = next((path for path in DEMO if (path / "config.json").is_file()), None)
        if found is None:
            raise FileNotFoundError(f"there is no demo at {DEMO[0]}; run `make demo`, or type artefact=PATH")
        paths = [found]
    compute, reason = choose_compute(settings.precision, inspect_device(best_device()))
    runtimes = settings.runtime * len(paths) if len(settings.runtime) == 1 else settings.runtime
    specs: list[ModelSpec] = []
    for path, runtime in zip(paths, runtimes, strict=True):
        stem = path.resolve().parent.name if path.name == "export" else path.name
        taken = {spec.name for spec in specs}
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(paths) + 2))) if n not in taken)
        specs.append(ModelSpec(name, path, runtime, compute, reason))
    return specs


def set_up_logging(folder: Path, *, terminal: bool) -> None:
    """Log to the terminal and to a file that is rotated; uvicorn's own access log would name every client."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(
        folder / "serve.log", maxBytes=LOG_BYTES, backupCount=NUM_LOGS, encoding="utf-8"
    )
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[file, *([logging.StreamHandler()] if terminal else [])],
        force=True,
    )
    for name in ("httpx", "uvicorn.access", "multipart", "python_multipart"):
        logging.getLogger(name).setLevel(logging.WARNING)


def serve(settings: ServiceSettings) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code."""
    key = verify_key(settings.serve, os.environ.get(KEY_NAME) or None)
    folder = Path(settings.serve.dir)
    set_up_logging(folder, terminal=settings.serve.log_terminal)
    engine = Engine(find_models(settings), settings.serve, profiles=load_profiles(settings.profiles))
    app = build_app(engine, settings.serve, key=key)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.serve.host,
            port=settings.serve.port,
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.serve.drain_s) + 1,
        )
    )
    logger.info("listening on http://%s:%d", settings.serve.host, settings.serve.port)
    record = folder / "serve.json"
    record.write_text(
        json.dumps({"pid": os.getpid(), "host": settings.serve.host, "port": settings.serve.port}) + "\n",
        encoding="utf-8",
    )
    try:
        server.run()
    finally:
        record.unlink(missing_ok=True)
    return 0 if server.started else 1


@entry_point("serve")
def main(config: DictConfig) -> int:
    """Serve."""
    return serve(build_settings(config))


if __name__ == "__main__":
    main()
