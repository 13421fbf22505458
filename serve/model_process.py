"""A process that holds no model and begets those that do.

It imports what a model needs, which takes seconds, and then waits: a worker is a fork of it, so that one that crashed
in native code is replaced within the time that the weights take to load. It never touches the GPU itself.

    python -m serve.model_process FD
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers

from serve.batch import Batch, decode_batch
from serve.runtime import Runtime, load_runtime
from serve.warming import Facts, Load, prepare

NICE = 5  # the process that answers /health goes first
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Fork a worker for every socket that comes in, until no more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service says when this ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers: their sockets say that they ended
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("torch").setLevel(logging.ERROR)
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.freeze()
    control.sendall(b"r")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        process = os.fork()
        if process == 0:
            control.close()
            work(Connection(descriptors[0]))
            os._exit(0)
        os.close(descriptors[0])
        control.sendall(process.to_bytes(4, "little"))


def work(connection: Connection) -> None:
    """Load a model and decode batches until the other end is closed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.nice(NICE)
    try:
        load: Load = connection.recv()
        if load.num_threads:
            torch.set_num_threads(load.num_threads)
        runtime, facts = _load(load)
        connection.send(facts)
        while True:
            batch: Batch = connection.recv()
            connection.send(decode_batch(runtime, batch))
    except (EOFError, ConnectionError):
        return
    except Exception as e:
        traceback.print_exc()
        connection.send(f"{type(e).__name__}: {e}")


def _load(load: Load) -> tuple[Runtime, Facts]:
    runtime = load_runtime(
        Path(load.path),
        load.runtime,
        compute=load.compute,
        cache_dir=Path(load.cache_dir),
        num_threads=load.num_threads,
    )
    return runtime, prepare(runtime, load)


if __name__ == "__main__":
    main()
