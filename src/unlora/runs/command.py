"""The command that repeats a run. Importing this module does not import torch, so reports can use it."""

from __future__ import annotations

import shlex
from pathlib import Path

from unlora.common import plugins
from unlora.runs.folder import CONFIG, EVALUATIONS, saved_settings

# Shown in place of a run's folder whose path must not be revealed.
ELSEWHERE = "RUN"


def repeat_command(folder: Path, shown: str | None = None) -> str:
    """Return the command that repeats a run. It is meant for the folder in which the run was started.

    Relative paths in the run's settings refer to that folder, too. If the settings do not name a log of the retrained
    model, the command names the copy of that log in the run's folder.

    Args:
        folder: the run's folder.
        shown: how the command names this folder; by default `shown_folder(folder)`.
    """
    run, log = shown or shown_folder(folder), folder / EVALUATIONS["retrained"]
    parts = ["unlora", "unlearn", "--config", f"{run}/{CONFIG}", "--output_dir", f"{run}-again"]
    settings = saved_settings(folder, "RUN") if (folder / CONFIG).is_file() else {}
    if log.is_file() and not settings.get("retrained"):
        parts += ["--retrained", f"{run}/{log.name}"]
    if settings.get("trust_remote_code") is True:  # a configuration file cannot set it
        parts += ["--trust_remote_code", "true"]
    return shlex.join([*parts, *plugins.shown_flags()])


def shown_folder(folder: Path) -> str:
    """Return the path relative to the current folder, or "RUN" for an absolute path outside it, which stays private."""
    if folder.is_absolute():
        return folder.relative_to(Path.cwd()).as_posix() if folder.is_relative_to(Path.cwd()) else ELSEWHERE
    return folder.as_posix()
