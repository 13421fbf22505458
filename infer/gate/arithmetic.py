"""What half arithmetic may cost: P3 and P4 held against their tolerances."""

from __future__ import annotations

from collections.abc import Mapping

from infer.gate.forced import Agreement, Headroom
from infer.gate.settings import GateSettings
from infer.gate.texts import TextDifference
from infer.gate.verdict import Miss, percent


def judge_arithmetic(agreement: Agreement, texts: TextDifference, settings: GateSettings) -> list[Miss]:
    """Judge P3.

    Args:
        agreement: of half and strict arithmetic over given texts.
        texts: that each says by itself, half against strict.
        settings: what passes.
    """
    tolerance, found = settings.tolerance, agreement.describe()
    misses = []
    if found["top1"] < tolerance.top1:
        misses.append(
            f"FP16 and FP32 expect the same token in {percent(found['top1'])} % of {found['tokens']:,}, allowed "
            f"{percent(tolerance.top1)} % or more (gate.tolerance.top1)"
        )
    if not found["kl"] <= tolerance.kl:  # NaN misses, too
        misses.append(
            f"FP16 diverges from FP32 by {found['kl']:.2g} nats a token, allowed {tolerance.kl:g} (gate.tolerance.kl)"
        )
    if texts.loss_of_words(tolerance.wer):
        misses.append(
            f"WER of FP16 is {100 * texts.wer:+.2f} points from FP32, allowed {100 * tolerance.wer:g} "
            "(gate.tolerance.wer)"
        )
    if texts.loss_of_characters(tolerance.cer):
        misses.append(
            f"CER of FP16 is {100 * texts.cer:+.2f} points from FP32, allowed {100 * tolerance.cer:g} "
            "(gate.tolerance.cer)"
        )
    if texts.new_faults:
        misses.append(
            f"{len(texts.new_faults)} texts are empty or loop in FP16 alone, such as that of {texts.new_faults[0]!r}"
        )
    return [Miss("P3", sentence) for sentence in misses]


def judge_headroom(heads: Mapping[str, Headroom], settings: GateSettings) -> list[Miss]:
    """Judge P4.

    Args:
        heads: the largest values, by what was heard.
        settings: what passes.
    """
    misses = []
    for name, head in heads.items():
        if head.num_nonfinite:
            misses.append(f"on {name}, {head.num_nonfinite:,} values in half arithmetic are NaN or infinite")
        if head.num_clamped:
            misses.append(f"on {name}, encoder layers cut off {head.num_clamped:,} values at FP16's largest")
        if head.share > settings.tolerance.headroom:
            module = max(head.largest, key=lambda key: head.largest[key])
            misses.append(
                f"on {name}, {module} reaches {percent(head.share, 0)} % of FP16's largest value, allowed "
                f"{percent(settings.tolerance.headroom, 0)} % (gate.tolerance.headroom)"
            )
    return [Miss("P4", sentence) for sentence in misses]
