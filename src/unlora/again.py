"""The command that repeats a run, for its record and its page, which loads no torch."""

from __future__ import annotations

import shlex

from unlora.config import CONFIG

# The log of the retrained model in a run's folder.
RETRAINED = "eval_retrained.json"
# What stands for a run's folder that is not to be named.
ELSEWHERE = "RUN"


def repeating(run: str, log: bool) -> str:
    """The command that repeats a run, said where it was started: relative paths in its settings start there.

    Args:
        run: its folder, as seen from there.
        log: whether the retrained model's log is to be taken from it, since its settings name none.
    """
    parts = ["unlora", "unlearn", "--config", f"{run}/{CONFIG}", "--output_dir", f"{run}-again"]
    return shlex.join([*parts, *(["--retrain_log", f"{run}/{RETRAINED}"] if log else [])])
