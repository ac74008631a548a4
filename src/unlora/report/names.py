"""Labels of sets, metrics and models, and the formats of numbers, for everything that people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SETS = {"forget": "forget set", "retain": "retain set", "real_authors": "real authors", "world_facts": "world facts"}
METRICS = {"probability": "probability", "rougeL_recall": "ROUGE-L recall", "truth_ratio": "truth ratio"}
# Counts of generated answers, and the sets that they are shown of.
_COUNTS = {"broken": ("broken answers", tuple(SETS)), "given_away": ("answers that give the fact away", ("forget",))}
# Metrics over all sets.
OVERALL = {
    "model_utility": "model utility",
    "forget_quality": "forget quality",
    "log10_forget_quality": "log10 forget quality",
}
# Stands for a number that was not measured, on pages.
MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def metric_rows(models: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[float | None]]]:
    """Yield a label and the value of each model, set by set and then over all sets.

    Args:
        models: by model the metrics that `unlora.evals.summarise` returns.
    """
    for key, label in SETS.items():
        if any(key in summary["sets"] for summary in models.values()):
            for metric, name in METRICS.items():
                yield f"{label}: {name}", [summary["sets"].get(key, {}).get(metric) for summary in models.values()]
            yield from _count_rows(key, [summary["sets"].get(key, {}) for summary in models.values()])
    for metric, name in OVERALL.items():
        yield name, [summary.get(metric) for summary in models.values()]


def _count_rows(key: str, sets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[float | None]]]:
    """Yield the counts of a set that any of the models has."""
    answers = max((values.get("answers", 0) for values in sets), default=0)
    for metric, (name, shown_of) in _COUNTS.items():
        counts = [values.get(metric) for values in sets]
        if key in shown_of and any(count is not None for count in counts):
            yield f"{SETS[key]}: {name} (of {answers})", counts


def number(value: float | None) -> str:
    """Return four significant digits, or a dash for a number that was not measured."""
    return "-" if value is None else f"{value:.4g}"


def fixed(value: float, digits: int = 3, sign: str = "") -> str:
    """Return a number with this many decimals and a true minus sign; `sign="+"` shows a plus sign, too."""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def p_value(value: float) -> str:
    """Return two significant digits, as a multiple of a power of ten below 0.001."""
    if value >= 1e-3:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"


def capitalised(text: str) -> str:
    """Return the text with a capital first letter; unlike `str.capitalize`, this leaves the other letters alone."""
    return text[:1].upper() + text[1:]
