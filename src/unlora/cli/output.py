"""The result of a command, and how it is printed: as tables and a path, only the path, or JSON."""

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
        value: what `--json` prints. A mapping also gets the path.
        show: prints the result for people.
        path: where the result is. It is printed last, and with `--quiet` alone.
        code: the exit code.
    """

    value: object
    show: Callable[[], None]
    path: Path | str | None = None
    code: int = 0


@dataclass(frozen=True)
class Mode:
    """How the result is printed."""

    quiet: bool
    json: bool

    @contextmanager
    def running(self, loads: bool = True) -> Iterator[None]:
        """Keep stdout free for the result while the command runs, with `--json` or `--quiet`.

        Args:
            loads: whether libraries are loaded that take seconds, which is then said. Without them there is no bar.
        """
        from unlora.common.progress import Silence, terminal

        # accelerate imports DeepSpeed if it is installed, and DeepSpeed logs to stdout. `unlora.models.sharding` turns
        # the logger on again, on stderr, for runs that use DeepSpeed.
        logging.getLogger("DeepSpeed").disabled = True
        if loads and not self.quiet and "torch" not in sys.modules:
            print("loading libraries ...", file=sys.stderr, flush=True)
        with terminal(self.quiet) if loads else nullcontext():  # it loads transformers
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
    """Return the mode that the flags ask for, and the other arguments."""
    return Mode("--quiet" in argv, "--json" in argv), [part for part in argv if part not in OUTPUT]
