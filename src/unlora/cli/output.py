"""The result of a command, and how it is printed: as tables and a path, as the path alone, or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from unlora.cli.parser import OUTPUT
from unlora.common.plain import escaped


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Args:
        value: what `--json` prints. The path is added to a mapping.
        show: called to print the result as text and tables.
        path: path of the result. It is printed last; with `--quiet`, it is all that is printed.
        code: the exit code.
    """

    value: object
    show: Callable[[], None]
    path: Path | str | None = None
    code: int = 0


@dataclass(frozen=True)
class Mode:
    """How the result is printed: `--quiet` and `--json`."""

    quiet: bool
    json: bool

    @contextmanager
    def running(self, loads: bool = True) -> Iterator[None]:
        """Keep other output off stdout while the command runs, if `--json` or `--quiet` is given.

        Args:
            loads: whether libraries may be loaded that take seconds. This is then announced, and progress bars are set
                up, which loads transformers.
        """
        from unlora.common.progress import Silence, terminal

        # accelerate imports DeepSpeed if it is installed, and DeepSpeed logs to stdout. For runs that use DeepSpeed,
        # `unlora.models.sharding` enables its logger again, on stderr.
        logging.getLogger("DeepSpeed").disabled = True
        if loads and not self.quiet and "torch" not in sys.modules:
            print("loading libraries ...", file=sys.stderr, flush=True)
        with terminal(self.quiet) if loads else nullcontext():
            stdout = Silence() if self.quiet else sys.stderr if self.json else sys.stdout
            with redirect_stdout(stdout):
                yield

    def tell(self, answer: Answer) -> None:
        """Print the result."""
        if self.json:
            path = {} if answer.path is None else {"path": str(answer.path)}
            value = {**path, **answer.value} if isinstance(answer.value, dict) else answer.value
            print(escaped(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))
            return
        if not self.quiet:
            answer.show()
        if answer.path is not None:
            print(answer.path)


def output_mode(argv: list[str]) -> tuple[Mode, list[str]]:
    """Return the mode that the flags select, and the other arguments."""
    return Mode("--quiet" in argv, "--json" in argv), [part for part in argv if part not in OUTPUT]
