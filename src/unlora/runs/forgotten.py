"""forgotten.json: the rows that a run and the requests before it had to forget, so that no later request teaches them.

It contains only hashes. They do not keep the rows secret: anyone who can guess a row can check whether it is listed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unlora.common.errors import Problem, from_elsewhere, raise_if
from unlora.common.files import write_json
from unlora.common.reading import read_json
from unlora.data.sources import Record, fingerprint
from unlora.runs.folder import FORGOTTEN

logger = logging.getLogger(__name__)


def _row_hashes(rows: Iterable[Record]) -> list[str]:
    """Return the SHA-256 of each distinct row's content. The hashes are sorted, which hides the order of the rows."""
    return sorted({hashlib.sha256(fingerprint(row).encode()).hexdigest() for row in rows})


def write_forgotten(folder: Path, rows: Iterable[Record], on: str | None) -> None:
    """Write the rows that the earlier requests had to forget, followed by those of this run.

    Args:
        folder: the run's folder.
        rows: its forget rows.
        on: the folder of the run that it continues, if any.
    """
    write_json(folder / FORGOTTEN, [*forgotten(on), {"run": folder.resolve().name, "rows": _row_hashes(rows)}])


def forgotten(run: str | None) -> list[dict[str, Any]]:
    """Return the rows that a run and the requests before it had to forget, the first request first; [] without a run.

    Returns:
        [{"run": name of its folder, "rows": hashes, or None if an early version of unlora made the run}].

    Raises:
        InputError: the file cannot be read.
    """
    if run is None:
        return []
    path = Path(run) / FORGOTTEN
    if not path.exists():
        return [{"run": Path(run).resolve().name, "rows": None}]
    fix = "put the file of that run back, or delete it and check the retain set yourself"
    with from_elsewhere("on", run, f"its {FORGOTTEN} cannot be read", fix):
        parts = [{"run": part["run"], "rows": part["rows"]} for part in read_json(path)]
        for part in parts:
            if not isinstance(part["run"], str) or not all(isinstance(row, str) for row in part["rows"] or ()):
                raise ValueError("it does not list hashes of rows")
        return parts


def check_not_taught_again(retain: Sequence[Record], on: str | None) -> None:
    """Raise `InputError` if the retain set contains rows that earlier requests had to forget.

    Early versions did not write these rows to the run's folder. Their runs only cause a warning.
    """
    earlier = forgotten(on)
    hashes = set(_row_hashes(retain)) if earlier else set()
    problems = []
    for part in earlier:
        if part["rows"] is None:
            logger.warning(
                "%s was made by a version that did not write %s: make sure that the retain set contains no row that "
                "this run, or one before it, had to forget",
                part["run"],
                FORGOTTEN,
            )
            continue
        shared = len(hashes.intersection(part["rows"]))
        if shared:
            reason = f"{shared} of them are rows that {part['run']} had to forget, and would be taught again"
            fix = "remove those rows from the retain set"
            problems.append(Problem("retain_data", f"{len(hashes)} distinct rows", reason, fix))
    raise_if(problems)
