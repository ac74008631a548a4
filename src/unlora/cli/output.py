"""What a command ends with, and how it is told: tables and a path, only the path, or JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.cli.arguments import OUTPUT


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Args:
        value: what `--json` prints; a mapping also gets the path.
        show: prints it for people.
        path: where the result is; printed last, and alone with `--quiet`.
        code: the exit code.
    """

    value: Any
    show: Callable[[], None]
    path: Path | str | None = None
    code: int = 0


@dataclass(frozen=True)
class Mode:
    """How the result is told."""

    quiet: bool
    json: bool

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the command works: with `--json` or `--quiet` nothing but the result comes to stdout."""
        from unlora.common.progress import Silence, terminal

        # accelerate imports DeepSpeed where it is installed, and that logs to stdout; in use it has its say on stderr.
        logging.getLogger("DeepSpeed").disabled = True
        if not self.quiet and "torch" not in sys.modules:
            print("loading libraries ...", file=sys.stderr, flush=True)
        with terminal(self.quiet):
            stdout = Silence() if self.quiet else sys.stderr if self.json else sys.stdout
            with redirect_stdout(stdout):
                yield

    def tell(self, answer: Answer) -> None:
        """Prints the result."""
        if self.json:
            path = {} if answer.path is None else {"path": str(answer.path)}
            value = {**path, **answer.value} if isinstance(answer.value, dict) else answer.value
            print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
            return
        if not self.quiet:
            answer.show()
        if answer.path is not None:
            print(answer.path)


def output_mode(argv: list[str]) -> tuple[Mode, list[str]]:
    """The mode that the flags ask for, and the other arguments."""
    return Mode("--quiet" in argv, "--json" in argv), [part for part in argv if part not in OUTPUT]
