"""Give many kinds of malformed input to the real command line, and count the outcomes.

python -m experiments.malformed --count 400 --results malformed.jsonl

The results are in docs/reliability.md. A case is a command with one malformed input: a flag, a value in a settings
file, a data row, an evaluation log, or a file of a model, an adapter or a run. It counts as refused if the command
fails with a message of fewer than 1,000 characters that names argument, value, reason and fix, writes nothing, and
takes at most 5 s of CPU time. `unlora verify` may instead report the file as changed or missing. Each command runs in
a forked process, so that it need not import the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments._processes import become, run, warm_up
from experiments.stops import cases, save_model
from unlora.cli import finetune, unlearn
from unlora.settings.inherited import field_types
from unlora.settings.setting import annotations_of

_COMMANDS = {"unlearn": unlearn, "finetune": finetune}
# Values that are unlikely in any JSON field, and contents that replace a whole file.
ODD: list[Any] = [None, True, -1, 0, 1e308, 10**30, "x", "", "\x1b[2J", [], {}, [None], {"a": None}, [[["x"]]], -0.5]
BROKEN = [b"", b"null", b"[]", b"{}", b"3", b"[" * 99_999, b"\xff\xfe", b'{"a": NaN}', b'{"a": 1, "a": 2}']
# Values that are invalid for a setting, by its type, as written in YAML.
_NEITHER: list[Any] = [[1, 2], [None], [[True]], {"a": 1}]
_NO_NUMBER = [
    *(*_NEITHER, "", "x", "1,5", True, [3], float("nan"), float("-inf"), 10**30, "9" * 5000, "\x1b[2J", "é" * 3000),
]
WRONG: dict[str, list[Any]] = {
    "int": [*_NO_NUMBER, 1.5, "1e3", float("inf"), None],
    "float": [*_NO_NUMBER, None],
    "bool": [*_NEITHER, [True], "maybe", 2, 0.5, "", None],
    "str": [*_NEITHER, ["x"], "a\0b", None],
    "int | None": [*_NO_NUMBER, 2.5, float("inf")],
    "float | None": _NO_NUMBER,
    "bool | None": [*_NEITHER, [True], "maybe", 2],
    "str | None": [*_NEITHER, ["x"], "a\0b"],
    "list[str] | None": [[None], [[1]], {"a": 1}, ["x", {}]],
}
# Lines of a data file that are no valid question-answer, conversation or text row.
_TURN = {"role": "user", "content": "Who?"}
ROWS: list[str] = [
    *("null", "3", "[]", '"x"', "{}", "{", '{"question": "Who?"}', '{"question": "Who?", "answer": "', "\x00"),
    *map(
        json.dumps,
        [
            *({"question": "Who?", "answer": wrong} for wrong in (None, 3, True, ["a"], {"a": 1}, "", " ", [[]])),
            *({"question": wrong, "answer": "Ada."} for wrong in (3, ["a"], {"a": 1}, None)),
            *({"text": wrong} for wrong in (3, ["a"], {"a": 1}, None, True)),
            *({"messages": wrong} for wrong in (3, "x", "[", [], {}, [None], [3], [[]], [_TURN], [{"role": "user"}])),
            *({"messages": [_TURN, {"role": "assistant", "content": wrong}]} for wrong in (3, [3], {"a": 1}, "", [{}])),
            {"messages": [{"role": 3, "content": "x"}, {"role": "assistant", "content": "x"}]},
            {"messages": [_TURN, {"role": "assistant", "content": "x", "tool_calls": "x"}]},
            {"question": "Who?", "answer": "Ada.", "perturbed_answer": "x", "paraphrased_answer": 3},
            {"text": "Who?", "labels": "Ada."},
        ],
    ),
]


@dataclass(frozen=True)
class Ended:
    """The outcome of a command with malformed input.

    Args:
        kind: kind of malformed input, such as "flag".
        what: the malformed part, and the command line.
        code: exit code, or minus the number of the signal that ended it.
        seconds: CPU time.
        message: its output, from the error message on if there is one.
        wrote: the files that it created, changed or deleted.
    """

    kind: str
    what: str
    code: int
    seconds: float
    message: str
    wrote: list[str]

    def verdict(self) -> str:
        """Return "refused" for a good refusal, otherwise what is wrong with the outcome."""
        if self.code < 0:
            return "killed or crashed"
        if "Traceback" in self.message or "The traceback is in" in self.message:
            return "traceback"
        if self.code == 0:
            return "accepted"
        if self.code == 1 and re.search(r" changed$| missing$", self.message, re.MULTILINE):
            return "refused"  # `unlora verify` reports the damaged file this way
        if self.code != 2:
            return f"exit code {self.code}"
        if len(self.message) >= 1000 or not re.search(r"\S=.*: .*\. Fix: .*\.", self.message):
            return "poor message"
        return "something written" if self.wrote else "slow" if self.seconds > 5 else "refused"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of a JSON value and of the values nested in it, up to four for each container."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in list(parts)[:4] for found in places(part, (*path, key)))]


def with_odd(value: Any, path: Sequence[Any], odd: Any) -> Any:
    """Return a copy of a JSON value in which the value at `path` is replaced by `odd`."""
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = with_odd(copy[path[0]], path[1:], odd)
    return copy


class Generator:
    """Makes malformed inputs from a model, data and a finished run in `folder`.

    Args:
        folder: folder with `model`, `data` and `run`. Each case changes files in it.
        seed: seed of the random choices.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.kinds: dict[str, Callable[[], tuple[str, list[str]]]] = {
            "flag": self._flag,
            "settings": self._settings,
            "rows": self._rows,
            "model": self._model,
            "adapter": self._adapter,
            "run": self._run,
            "log": self._log,
        }

    def next(self) -> tuple[str, str, list[str]]:
        """Make the next case: return its kind, a description, and the arguments of the command."""
        kind = self.random.choice(list(self.kinds))
        what, argv = self.kinds[kind]()
        return kind, f"{what}: unlora {' '.join(argv)}", argv

    def _required(self, command: str) -> dict[str, str]:
        """Return valid settings for a short run of `unlearn` or `finetune`."""
        data = {"forget_data": "forget.jsonl", "retain_data": "retain.jsonl"}
        data = data if command == "unlearn" else {"train_data": "retain.jsonl"}
        named = {name: str(self.folder / "data" / file) for name, file in data.items()}
        return {
            "model_name_or_path": str(self.folder / "model"),
            **named,
            "output_dir": str(self.folder / "out"),
            "max_steps": "1",
            "use_cpu": "true",
        }

    def _wrong(self) -> tuple[str, str, Any]:
        """Draw a command, one of its settings, and an invalid value for it."""
        command = self.random.choice(sorted(_COMMANDS))
        kinds = _COMMANDS[command].SETTINGS
        hints = {name: hint for kind in kinds for name, hint in (field_types() | annotations_of(kind)).items()}
        name = self.random.choice(sorted(name for name, hint in hints.items() if hint in WRONG))
        return command, name, self.random.choice(WRONG[hints[name]])

    def _flag(self) -> tuple[str, list[str]]:
        command, name, value = self._wrong()
        while isinstance(value, bool | list | dict | None):  # as command-line text these may be valid
            command, name, value = self._wrong()
        values = {**self._required(command), name: value if isinstance(value, str) else json.dumps(value)}
        return name, [command, *(part for name, value in values.items() for part in (f"--{name}", value))]

    def _settings(self) -> tuple[str, list[str]]:
        command, name, value = self._wrong()
        file = self.folder / "settings.yaml"
        file.write_text(yaml.safe_dump({**self._required(command), name: value}), encoding="utf-8")
        return f"{name}: {str(value)[:40]!r}", [command, "--config", str(file)]

    def _rows(self) -> tuple[str, list[str]]:
        command = self.random.choice(("unlearn", "finetune", "evaluate", "membership"))
        name = self.random.choice(("forget.jsonl", "retain.jsonl") if command == "unlearn" else ("retain.jsonl",))
        file = self.folder / "data" / name
        lines = file.read_bytes().splitlines()
        row = self.random.choice(ROWS)
        place = self.random.randrange(len(lines) + 1)
        file.write_bytes(b"\n".join([*lines[:place], row.encode(), *lines[place:]]))
        return f"row {row}", self._reading(command)

    def _reading(self, command: str) -> list[str]:
        """Return a valid command that reads the model and the data."""
        data, log = self.folder / "data", self.folder / "log.json"
        model = ["--model_name_or_path", str(self.folder / "model")]
        if command == "evaluate":
            names = {"forget": "forget", "retain": "retain", "real_authors": "none", "world_facts": "none"}
            flags = [part for name, value in names.items() for part in (f"--eval_{name}_name", value)]
            return [command, *model, "--eval_data", str(data), *flags, "--log", str(log)]
        if command == "membership":
            sets = ["--forget_data", str(data / "retain.jsonl"), "--holdout_data", str(data / "forget.jsonl")]
            return [command, *model, *sets, "--log", str(log)]
        values = self._required(command)
        return [command, *(part for name, value in values.items() for part in (f"--{name}", value))]

    def _damage(self, file: Path) -> str:
        """Truncate a file, replace its content, or replace one value of its JSON; return a description."""
        content = file.read_bytes()
        choice = self.random.random()
        if choice < 0.3:
            end = self.random.randrange(len(content))
            file.write_bytes(content[:end])
            return f"{file.name} cut off at {end}"
        if choice < 0.5 or file.suffix != ".json":
            broken = self.random.choice(BROKEN)
            file.write_bytes(broken)
            return f"{file.name} is {broken[:20]!r}"
        value = json.loads(content)
        path, odd = self.random.choice(places(value)), self.random.choice(ODD)
        file.write_text(json.dumps(with_odd(value, path, odd)), encoding="utf-8")
        return f"{file.name} {list(path)} is {odd!r}"

    def _one_of(self, folder: str, *endings: str) -> Path:
        files = [path for path in (self.folder / folder).iterdir() if path.suffix in endings]
        return self.random.choice(sorted(files))

    def _model(self) -> tuple[str, list[str]]:
        what = self._damage(self._one_of("model", ".json", ".safetensors"))
        return what, self._reading(self.random.choice(("unlearn", "finetune", "evaluate", "membership")))

    def _adapter(self) -> tuple[str, list[str]]:
        what = self._damage(self._one_of("run/adapter", ".json", ".safetensors"))
        return what, self._adapted(self.random.choice(("evaluate", "membership")))

    def _adapted(self, command: str) -> list[str]:
        return [*self._reading(command), "--adapter", str(self.folder / "run" / "adapter")]

    def _run(self) -> tuple[str, list[str]]:
        what = self._damage(self._one_of("run", ".json", ".yaml", ".jsonl"))
        return what, self.random.choice(self._of_run())

    def _of_run(self) -> list[list[str]]:
        run, out = str(self.folder / "run"), ["--output_dir", str(self.folder / "out")]
        data = ["--forget_data", str(self.folder / "data" / "forget.jsonl")]
        data += ["--retain_data", str(self.folder / "data" / "retain.jsonl")]
        page = ["--output", str(self.folder / "out.html")]
        return [["verify", run], ["export", run, *out], ["compare", run, *page], ["unlearn", "--on", run, *data, *out]]

    def _log(self) -> tuple[str, list[str]]:
        return self._damage(self._log_file), self.random.choice(self._of_log())

    def _of_log(self) -> list[list[str]]:
        file = str(self._log_file)
        return [["evaluate", "--log", file], [*self._reading("unlearn"), "--retrained", file]]

    @property
    def _log_file(self) -> Path:
        return self.folder / "run" / "eval_unlearned.json"

    def commands(self) -> list[list[str]]:
        """Return the commands of all cases with valid input."""
        reading = [self._reading(command) for command in ("unlearn", "finetune", "evaluate", "membership")]
        return [*reading, *map(self._adapted, ("evaluate", "membership")), *self._of_run(), *self._of_log()]


def ended(kind: str, what: str, argv: Sequence[str], folder: Path) -> Ended:
    """Run a command in a forked process, limited to 60 s of CPU time and 300 s in all, and return its outcome."""
    before = _state(folder)
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        signal.alarm(300)
        become(argv, writing)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        text = pipe.read()
    _, status, used = os.wait4(process, 0)
    lines = [line for line in text.replace("\r", "\n").split("\n") if line and line != "loading libraries ..."]
    start = next((place for place, line in enumerate(lines) if line.startswith(("error: ", "stopped: "))), 0)
    after = _state(folder)
    wrote = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    seconds = used.ru_utime + used.ru_stime
    return Ended(kind, what, os.waitstatus_to_exitcode(status), seconds, "\n".join(lines[start:]), wrote)


def _state(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def prepare(folder: Path) -> None:
    """Write a small model, data and a finished run to `folder`."""
    case = cases(folder / "work", save_model(folder / "model"))["unlearn"]
    outcome = run(case)
    assert outcome.code == 0, outcome.text
    shutil.copytree(case.output, folder / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "data").mkdir()
    for name, source in {"forget": "forget01", "retain": "retain99"}.items():
        shutil.copy(folder / "work" / f"{source}.jsonl", folder / "data" / f"{name}.jsonl")


def main() -> None:
    """Print the number of cases of each kind with each verdict."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.malformed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=400, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="kinds of malformed input to try (all if not given)")
    parser.add_argument("--results", type=Path, help="append each outcome to this file, as a line of JSON")
    args = parser.parse_args()
    warm_up()
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        pristine, work = Path(name) / "pristine", Path(name) / "work"
        prepare(pristine)
        generator = Generator(work, args.seed)
        generator.kinds = {kind: make for kind, make in generator.kinds.items() if kind in (args.kinds or [kind])}

        def restore() -> None:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(pristine, work, ignore=shutil.ignore_patterns("work"))

        for argv in generator.commands():  # if one failed, its cases would be refused for another reason
            restore()
            result = ended("none", "", argv, work)
            assert result.code == 0, result
        for _ in range(args.count):
            restore()
            result = ended(*generator.next(), work)
            counts[result.kind, result.verdict()] += 1
            if args.results:
                with args.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"verdict": result.verdict(), **asdict(result)}) + "\n")
    for (kind, verdict), count in sorted(counts.items()):
        print(f"| {kind} | {verdict} | {count} |")


if __name__ == "__main__":
    main()
