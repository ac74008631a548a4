"""Labels of sets, metrics and models, and the format of numbers, in reports and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SETS = {"forget": "forget set", "retain": "retain set", "real_authors": "real authors", "world_facts": "world facts"}
METRICS = {"probability": "probability", "rougeL_recall": "ROUGE-L recall", "truth_ratio": "truth ratio"}


@dataclass(frozen=True)
class AnswerKind:
    """A kind of generated answer that is counted.

    Args:
        label: label of the count in tables.
        verb: verb phrase for answers of this kind in sentences.
        example: title of a single answer of this kind.
        sets: the sets in which answers of this kind are reported.
        possible: key of the number of answers that could be of this kind, in a set's metrics.
    """

    label: str
    verb: str
    example: str
    sets: tuple[str, ...]
    possible: str


COUNTS = {
    "given_away": AnswerKind(
        "answers that give the fact away",
        "still reveal the fact",
        "An answer that still reveals the fact",
        ("forget",),
        "facts",
    ),
    "broken": AnswerKind("broken answers", "are broken text", "An answer that is broken text", tuple(SETS), "answers"),
}
# Metrics over all sets.
OVERALL = {
    "model_utility": "model utility",
    "forget_quality": "forget quality",
    "log10_forget_quality": "log10 forget quality",
}
# Shown on pages in place of a number that was not measured.
MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def metric_rows(models: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[float | None]]]:
    """Yield a label and the value of each model, set by set and then over all sets.

    Args:
        models: {model: metrics from `unlora.evals.summarise`}.
    """
    for key, label in SETS.items():
        if any(key in summary["sets"] for summary in models.values()):
            for metric, name in METRICS.items():
                yield f"{label}: {name}", [summary["sets"].get(key, {}).get(metric) for summary in models.values()]
            yield from _count_rows(key, [summary["sets"].get(key, {}) for summary in models.values()])
    for metric, name in OVERALL.items():
        yield name, [summary.get(metric) for summary in models.values()]


def _count_rows(key: str, sets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[float | None]]]:
    """Yield a label and the count of each model, for each kind of answer that was counted for any model."""
    for metric, kind in COUNTS.items():
        counts = [values.get(metric) for values in sets]
        if key in kind.sets and any(count is not None for count in counts):
            possible = max(values.get(kind.possible, 0) for values in sets)
            yield f"{SETS[key]}: {kind.label} (of {possible})", counts


def number(value: float | None) -> str:
    """Format a number with four significant digits; None, which stands for "not measured", becomes a dash."""
    return "-" if value is None else f"{value:.4g}"


def fixed(value: float, digits: int = 3, sign: str = "") -> str:
    """Format a number with this many decimals and a true minus sign; `sign="+"` shows a plus sign, too."""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """Format a share as a percentage with one decimal and without the sign."""
    return f"{100 * share:.1f}"


def p_value(value: float) -> str:
    """Format a p-value with two significant digits; below 0.001 as a multiple of a power of ten."""
    if value >= 1e-3:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"


def capitalised(text: str) -> str:
    """Return the text with a capital first letter; unlike `str.capitalize`, this leaves the other letters alone."""
    return text[:1].upper() + text[1:]
