"""What sets and metrics are called wherever people read them, and how numbers are written."""

from __future__ import annotations

SETS = {"forget": "forget set", "retain": "retain set", "real_authors": "real authors", "world_facts": "world facts"}
METRICS = {"probability": "probability", "rougeL_recall": "ROUGE-L recall", "truth_ratio": "truth ratio"}


def number(value: float | None) -> str:
    """Four significant digits, or a dash for what was not measured."""
    return "-" if value is None else f"{value:.4g}"
