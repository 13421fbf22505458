"""What scoring costs and how far it can be trusted: time of a bootstrap, coverage of intervals, a million utterances.

    python -m benchmarks.scoring [--utterances 1000000]

Texts are made: sentences of 5 to 20 words in five languages, one word in twelve misheard, one in fifty missing.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jiwer
import numpy as np

from benchmarks.environment import PROJECT, write_result
from infer.score.evaluation import Prediction, score_predictions
from infer.score.normalise import normalise
from infer.score.statistics import BootstrapSettings, Sample, bootstrap_rate, compare_rates, pool

NUM_SETS = 2000  # simulated sets of each kind: coverage is known to half a point
NUM_JUDGED = 20_000  # utterances that jiwer counts, too
WORDS = {
    "en": "the quick brown fox isn't jumping over twenty one lazy dogs near the river bank today said Mr. Smith",
    "de": "der schnelle braune Fuchs springt heute über den faulen Hund am Ufer des großen Flusses und ruht",
    "ru": "быстрая коричневая лиса ещё прыгает сегодня через ленивую собаку у большой реки мой йод",
    "ar": "الثعلب البني السريع يقفز اليوم فوق الكلب الكسول عند ضفة النهر الكبير أحمد إلى مُحَمَّد",
    "zh": "我 们 今 天 去 学 校 学 习 中 文 然 後 回 家 吃 飯 看 书 睡 觉 明 天 再 来 这 里 工 作",
}
SETS = {  # kind: utterances, speakers, parameters of the beta distribution of rates, languages
    "120 utterances": (120, None, (2.0, 18.0), 1),
    "1000 utterances": (1000, None, (2.0, 18.0), 1),
    "1000 utterances, rate 0.5 %": (1000, None, (0.05, 9.95), 1),
    "40 utterances": (40, None, (2.0, 18.0), 1),
    "400 utterances of 40 speakers": (400, 40, (2.0, 18.0), 1),
    "200 utterances of 12 speakers": (200, 12, (2.0, 18.0), 1),
    "100 utterances of 6 speakers": (100, 6, (2.0, 18.0), 1),
    "mean of 5 languages of 100 utterances": (100, None, (2.0, 18.0), 5),
}


def main() -> None:
    """Measure, and write `results/scoring.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, default=NUM_SETS)
    parser.add_argument("--score", action="store_true", help="only score, in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.score:
        print(json.dumps(score_many(arguments.utterances)))
        return
    figures: dict[str, Any] = {"bootstrap": time_bootstrap()}
    print(figures)
    figures["coverage"] = {kind: measure_coverage(kind, arguments.sets) for kind in SETS}
    figures["simulated_sets_of_each_kind"] = arguments.sets
    # a fresh process: its peak memory is that of scoring alone
    command = [sys.executable, "-m", "benchmarks.scoring", "--score", "--utterances", str(arguments.utterances)]
    output = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    figures["scoring"] = json.loads(output.splitlines()[-1])
    print(figures["scoring"])
    figures["agreement"] = judge_by_jiwer(min(NUM_JUDGED, arguments.utterances))
    print(figures["agreement"])
    write_result("scoring", figures)


def time_bootstrap() -> dict[str, Any]:
    """Time 1000 draws of 10,000 utterances: one rate, and two artefacts against each other."""
    rng = np.random.default_rng(0)
    units = 1 + rng.poisson(9, 10_000)
    before, after = (pool(rng.binomial(units, rate), units, None) for rate in (0.10, 0.09))
    figures: dict[str, Any] = {"utterances": 10_000, "draws": 1000}
    for name, run in (
        ("rate_s", lambda: bootstrap_rate([before])),
        ("comparison_s", lambda: compare_rates([before], [after])),
    ):
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        figures[name] = round(sorted(seconds)[2], 3)
    return figures


def measure_coverage(kind: str, num_sets: int) -> dict[str, Any]:
    """Simulate sets whose true rate is known; return how often it lies in the interval, below it and above it.

    `false_alarms` is the share of pairs of equally good artefacts that a comparison calls different.
    """
    num_utterances, num_speakers, (a, b), num_languages = SETS[kind]
    rng = np.random.default_rng(1)
    true_rate = a / (a + b)
    below = above = alarms = 0
    for seed in range(num_sets):
        settings = BootstrapSettings(seed=seed)
        before: list[Sample] = []
        after: list[Sample] = []
        for _ in range(num_languages):
            difficulty = rng.beta(a, b, size=num_speakers or num_utterances)
            speakers = np.arange(num_utterances) % len(difficulty)
            units = 1 + rng.poisson(8, num_utterances)
            for side in (before, after):
                edits = rng.binomial(units, difficulty[speakers])
                side.append(pool(edits, units, speakers.tolist() if num_speakers else None))
        interval = bootstrap_rate(before, settings)
        comparison = compare_rates(before, after, settings)
        assert interval is not None and comparison is not None
        below += true_rate < interval.low
        above += true_rate > interval.high
        alarms += comparison.p < 0.05
    figures = {
        "covered": round(1 - (below + above) / num_sets, 4),
        "true_rate_below": below / num_sets,
        "true_rate_above": above / num_sets,
        "false_alarms": alarms / num_sets,
    }
    print(kind, figures, flush=True)
    return figures


def make_predictions(num_utterances: int) -> Iterator[Prediction]:
    """Yield utterances with errors, languages in turn."""
    rng = random.Random(0)
    vocabulary = {language: text.split() for language, text in WORDS.items()}
    for i, language in zip(range(num_utterances), _in_turn(list(WORDS)), strict=False):
        words = rng.choices(vocabulary[language], k=rng.randint(5, 20))
        heard = [rng.choice(vocabulary[language]) if rng.random() < 1 / 12 else word for word in words]
        heard = [word for word in heard if rng.random() > 0.02]
        space = "" if language == "zh" else " "
        yield Prediction(
            id=f"utterance-{i}",
            language=language,
            detected_language=language if rng.random() < 0.97 else "en",
            reference=space.join(words).capitalize() + ".",
            hypothesis=space.join(heard),
            duration_s=len(words) / 2.5,
            speaker=f"{language}-{i % 997}",
            snr_db=rng.uniform(0, 40),
        )


def _in_turn(languages: list[str]) -> Iterator[str]:
    while True:
        yield from languages


def score_many(num_utterances: int) -> dict[str, Any]:
    """Score a set in this process; return seconds and peak memory."""
    predictions = list(make_predictions(num_utterances))
    made_gib = _peak_gib()
    begin = time.perf_counter()
    score = score_predictions(predictions, processing_s=0)
    return {
        "utterances": num_utterances,
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_gib": round(_peak_gib(), 2),
        "peak_before_scoring_gib": round(made_gib, 2),
        "overall": {key: score.overall[key] for key in ("wer", "cer", "headline", "intervals")},
    }


def judge_by_jiwer(num_utterances: int) -> dict[str, Any]:
    """Count the same texts with jiwer; return both rates and the ratio of their times."""
    predictions = list(make_predictions(num_utterances))
    score_predictions(predictions[:100], processing_s=0)  # dictionaries and imports, off the clock
    begin = time.perf_counter()
    ours = score_predictions(predictions, processing_s=0).overall
    ours_s = time.perf_counter() - begin
    begin = time.perf_counter()
    references = [normalise(p.reference, p.language) for p in predictions]
    hypotheses = [normalise(p.hypothesis, p.language) for p in predictions]
    words, characters = jiwer.process_words(references, hypotheses), jiwer.process_characters(references, hypotheses)
    words_ortho = jiwer.process_words([p.reference for p in predictions], [p.hypothesis for p in predictions])
    theirs_s = time.perf_counter() - begin
    pairs = {
        "wer": (ours["wer"], words.wer),
        "cer": (ours["cer"], characters.cer),
        "wer_ortho": (ours["wer_ortho"], words_ortho.wer),
        "substitutions": (ours["substitutions"], words.substitutions),
        "deletions": (ours["deletions"], words.deletions),
        "insertions": (ours["insertions"], words.insertions),
    }
    return {
        "utterances": num_utterances,
        "ours_and_jiwer": pairs,
        "is_equal": all(mine == other for mine, other in pairs.values()),
        "seconds_with_intervals": round(ours_s, 2),
        "seconds_of_jiwer_with_normalising": round(theirs_s, 2),
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
