"""From an error message to its entry in docs/troubleshooting.md."""

from __future__ import annotations

PAGE = "docs/troubleshooting.md"
ANCHORS = {
    "trainable parameters are not stored in": "unscale-fp16-gradients",
    "out of memory on": "out-of-memory",
    "has a finite loss": "overflow",
    "updates in a row": "overflow",
    "cannot be used": "bad-lines-hidden",
    "was made with other values of": "resume-not-exact",
    "holds a run": "run-folder-in-use",
    "pickled weights": "pickled-weights",
    "is not in the cache and the hub cannot be reached": "hub-out-of-reach",
    "was not written": "checkpoints-not-written",
    "the ranks hold other weights": "lost-process",
    "takes backward, loss scale": "engines-and-shards",
    "sharded by": "engines-and-shards",
}
"""Words of a message, as they stand in the code, to the entry."""


def with_link(message: str) -> str:
    """Add where to read more, if there is an entry for a message."""
    for words, anchor in ANCHORS.items():
        if words in message:
            return f"{message}\nsee {PAGE}#{anchor}"
    return message
