"""How long a million rows take before training begins: packed, checked for length, cleaned; and what packing saves.

    python -m benchmarks.packing

The corpus is made: clips of 1 to 12 s in runs of one language, at 14 characters a second. No audio is read.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.environment import write_result
from data.labels import LabelBuilder
from data.packing import pack_rows
from data.rows import Row
from data.texts import clean_text
from train.vocabulary import learn_tokenizer

NUM_ROWS = 1_000_000
NUM_TEXTS = 20_000  # rows that are built one by one; their time is given for each
CHARACTERS_PER_S = 14.0
SENTENCE = "the quick brown fox jumps over the lazy dog and goes on to say that it is not, in fact, a dog at all; "


def main() -> None:
    """Measure, and write `results/packing.json`."""
    rng = np.random.default_rng(0)
    durations_s = rng.uniform(1.0, 12.0, NUM_ROWS)
    languages = np.array(["en", "de", "fr", "es"])[np.repeat(rng.integers(0, 4, NUM_ROWS // 500), 500)]
    num_bytes = np.round(durations_s * CHARACTERS_PER_S).astype(np.int64)
    figures: dict[str, float] = {"rows": NUM_ROWS, "mean_clip_s": round(float(durations_s.mean()), 2)}
    # A letter has one byte in Latin script, two in Cyrillic; a learnt vocabulary needs about a token for four letters.
    bounds_of = {"latin_bytes": num_bytes, "cyrillic_bytes": 2 * num_bytes, "tokens": num_bytes // 4}
    for name, num_tokens in bounds_of.items():
        begin = time.perf_counter()
        bounds = pack_rows(durations_s, groups=[languages], num_tokens=num_tokens)
        figures[f"pack_by_{name}_s"] = round(time.perf_counter() - begin, 2)
        figures[f"mean_pack_by_{name}_s"] = round(float(durations_s.sum() / (len(bounds) - 1)), 2)

    tokenizer = learn_tokenizer([SENTENCE], unit="bpe", vocabulary_size=400)
    builder = LabelBuilder(tokenizer, max_positions=448)
    texts = [(SENTENCE * 2)[: int(n)] for n in num_bytes[:NUM_TEXTS]]
    rows = [
        Row(str(i), Path("a.wav"), text, "en", "transcribe", None, None, (), "", "", Path("m.jsonl"), i)
        for i, text in enumerate(texts)
    ]
    for name, run in (
        ("clean_text", lambda: [clean_text(text) for text in texts]),
        ("fits_surely", lambda: [builder.fits_surely(row) for row in rows]),
        ("build", lambda: [builder.build(row) for row in rows]),
        ("count_tokens", lambda: builder.count_tokens(texts)),
    ):
        begin = time.perf_counter()
        run()
        figures[f"{name}_us_per_row"] = round((time.perf_counter() - begin) / NUM_TEXTS * 1e6, 2)
    write_result("packing", figures)
    print(figures)


if __name__ == "__main__":
    main()
