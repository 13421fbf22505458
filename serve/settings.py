"""How the service runs: where it listens, what it accepts, how it batches."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from serve.stream_settings import StreamSettings

KEY_NAME = "MEZZAVOCE_API_KEY"
"""Environment variable that holds the key; it is never read from a configuration, which is logged."""
MIN_KEY_LENGTH = 16


@dataclass(frozen=True)
class ServeSettings:
    """The `serve` group."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but the machine itself needs a key, or `open`."""
    port: int = 7860
    open: bool = False
    """Serve everybody who reaches `host`, without a key."""
    hosts: tuple[str, ...] = ()
    """Further names that requests may call this service by, as behind a proxy; where it listens on the machine alone,
    all others are refused, so that no web page can reach it under a name of its own."""
    page: bool = True
    """Show the web page; false serves the API alone."""
    dir: str = "runs/serve"
    """Log, process number, and the private folder for audio while it is decoded."""
    # What is accepted.
    max_upload_mb: float = 25.0
    """Of 10^6 bytes, for the whole body of a request."""
    max_duration_s: float = 600.0
    """Of a recording, decoded."""
    max_queue: int = 32
    """Recordings waited for and worked on at once; who comes then is told to come back."""
    max_queue_audio_s: float = 3600.0
    """Of all of them together, decoded."""
    max_streams: int = 8
    """Live conversations at once."""
    agreement: int = 2
    """Passes in a row that must say a word of a live text before it is final."""
    held_words: int = 1
    """Words at the end of a pass of a live text that wait while somebody speaks."""
    upload_timeout_s: float = 20.0
    """Between two pieces of a body."""
    # Decoding of audio files, in processes of their own.
    decoders: int = 2
    decode_timeout_s: float = 30.0
    decode_memory_mib: int = 512
    """That decoding may take beyond what the process has at its start."""
    # Batches.
    max_batch: int = 16
    """Windows decoded together, at most."""
    max_batch_audio_s: float = 240.0
    """Of windows decoded together, at most, so that long ones make smaller batches."""
    max_wait_ms: float = 40.0
    """That a window waits for others, where the model has nothing else to do."""
    batch_timeout_s: float = 300.0
    """After this a worker is taken for stuck and replaced."""
    workers: int = 0
    """Model processes; 0 takes one on a GPU, and on a CPU one for each core, up to four."""
    threads: int = 0
    """Of each model process on a CPU; 0 shares the cores among the workers."""
    # Running.
    drain_s: float = 30.0
    """That requests in flight get to end after SIGTERM."""
    self_test: str = ""
    """A clip that the model must understand at the start; empty takes one of the demo corpus, or a made sound."""
    self_test_text: str = ""
    """What is said in that clip; empty takes what torch hears in FP32."""
    log_terminal: bool = True
    """Write the log to the terminal, and not only into the file."""
    log_text: bool = False
    """Write what people said into the log."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"serve.port={self.port} must lie in 1 to 65535, or be 0 for any free one")
        positive = (
            *("max_upload_mb", "max_duration_s", "max_queue", "max_queue_audio_s", "max_streams", "upload_timeout_s"),
            *("decoders", "decode_timeout_s", "decode_memory_mib", "max_batch", "max_batch_audio_s"),
            *("batch_timeout_s",),
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"serve.{name}={getattr(self, name)} must be above 0")
        try:
            _ = self.stream
        except ValueError as e:
            raise ValueError(f"serve.{e}") from None
        for name in ("max_wait_ms", "workers", "threads", "drain_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"serve.{name}={getattr(self, name)} must be 0 or more")

    @property
    def stream(self) -> StreamSettings:
        """How live text is made."""
        return StreamSettings(agreement=self.agreement, held_words=self.held_words)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def max_upload_bytes(self) -> int:
        """Of the whole body of a request."""
        return int(self.max_upload_mb * 1e6)


def verify_key(settings: ServeSettings, key: str | None) -> str | None:
    """Return the key that requests must bring; None serves everybody.

    Args:
        settings: says who can reach the service.
        key: of the environment; None where there is none.

    Raises:
        ValueError: if others than this machine can reach the service and there is no key, or a key is too short.
    """
    if key is not None and len(key) < MIN_KEY_LENGTH:
        raise ValueError(
            f"{KEY_NAME} has {len(key)} characters; give at least {MIN_KEY_LENGTH}, as `openssl rand -hex 24` does"
        )
    if key is None and not settings.is_local and not settings.open:
        raise ValueError(
            f"serve.host={settings.host} can be reached by others; set {KEY_NAME} in the environment, "
            "or type serve.open=true to serve everybody"
        )
    return key
