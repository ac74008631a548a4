"""forgotten.json: the rows that a run and the requests before it had to forget, so that none is taught again later.

It contains only hashes. They do not keep the rows secret: whoever can guess a row can check that it is among them.
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
    """Return the SHA-256 of what each distinct row teaches. They are sorted, which hides the order of the rows."""
    return sorted({hashlib.sha256(fingerprint(row).encode()).hexdigest() for row in rows})


def write_forgotten(folder: Path, rows: Iterable[Record], on: str | None) -> None:
    """Write what the earlier requests had to forget, followed by what this one has to.

    Args:
        folder: the run's folder.
        rows: its forget rows.
        on: folder of the run that it continues from, if any.
    """
    write_json(folder / FORGOTTEN, [*forgotten(on), {"run": folder.resolve().name, "rows": _row_hashes(rows)}])


def forgotten(run: str | None) -> list[dict[str, Any]]:
    """Return what a run and the requests before it had to forget, the first request first; nothing without a run.

    Returns:
        [{"run": name of its folder, "rows": hashes, or None for a run of a version that did not write them}].

    Raises:
        InputError: a file that cannot be read.
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

    A run of an early version did not write them down. Then there is only a warning.
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
