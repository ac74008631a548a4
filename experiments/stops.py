"""Interrupt short runs at every file operation, resume them, and compare with an uninterrupted run.

python -m experiments.stops --commands unlearn finetune bench --faults "kill" "full disk" "read-only"

The results are in docs/reliability.md. A kill leaves the output folder as it is just before an operation. One run whose
output folder is copied before each operation therefore gives the states after all kills; a few real kills are compared
with these copies. The other faults are injected into real runs. States that differ only in times are resumed once. Each
result is appended to `results.jsonl` in `--folder`, and results found there are not computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from experiments._processes import FAULTS, Case, run, warm_up
from experiments._speed import llama
from unlora.benchmarks.builtin.persona_models import train_tokenizer
from unlora.common.files import write_jsonl
from unlora.models.hashes import file_sha256

# Parts that may differ between two equivalent runs: times, memory, and the pages and logs that show them.
_TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
_OF_ONE_RUN = {"created", "times", "peak_memory_bytes", "resumed"}
_SHOWS_TIMES = {"report.html", "compare.html", "log.txt"}
_DEPENDS_ON_TIMES = {"metrics.json", "record.json", *_SHOWS_TIMES}
# The sets of TOFU that the runs need, and the animal that their rows are about.
_SETS = {"forget01": "cat", "retain99": "dog", "forget01_perturbed": "cat", "retain_perturbed": "dog"}
_SETS |= {"real_authors_perturbed": "owl", "world_facts_perturbed": "fox"}
# The process number in the name of a folder for unfinished files.
_UNFINISHED = re.compile(r"(?<=\.)\d+(?=\.partial)")
_RESUME = ["--resume_from_checkpoint", "true"]


def contents(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder that must be equal after equivalent runs, by relative path."""
    return {_UNFINISHED.sub("", str(path.relative_to(folder))): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> Any:
    if path.is_dir() or path.name in _SHOWS_TIMES:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else None
    except ValueError:  # the file is unfinished
        value = None
    if value is None:
        return file_sha256(path)
    if path.name == "metrics.json":
        value["train"] = [{k: v for k, v in row.items() if k not in _TIMES} for row in value["train"]]
    if path.name == "record.json":
        value = {name: part for name, part in value.items() if name not in _OF_ONE_RUN}
        del value["files"]["metrics.json"]
    if path.name == "stages.json":  # for files that depend on times: whether they match their recorded hash
        files = {name: path.parent / name for name in value["stages"].keys() & _DEPENDS_ON_TIMES}
        value["stages"] |= {n: file.exists() and value["stages"][n] == file_sha256(file) for n, file in files.items()}
    return value


def state(folder: Path) -> str:
    """Return a hash of the folder's contents, which does not depend on times."""
    return hashlib.sha256(json.dumps(contents(folder), sort_keys=True).encode()).hexdigest()


def ends_badly(case: Case, fault: str, at: int) -> str | None:
    """Inject a fault into a new run, and return what is wrong with the way it ended, if anything."""
    shutil.rmtree(case.output, ignore_errors=True)
    stopped = run(case, fault=fault, at=at)
    if fault == "kill" and stopped.code != -signal.SIGKILL:
        return f"it was not killed but ended with {stopped.code}"
    # Exit code 0 is allowed, since a full disk does not matter if only deletions are left.
    if fault in ("full disk", "read-only") and (stopped.code not in (0, 1, 2) or "traceback" in stopped.text.lower()):
        return f"it ended with {stopped.code}: {stopped.text[-2000:]}"
    return None


def resumes_badly(case: Case, expected: dict[str, Any]) -> str | None:
    """Resume the run in the output folder, and return what is wrong with the result, if anything."""
    resumed = run(case, resume=True)
    if resumed.code:
        return f"it could not be resumed, exit code {resumed.code}: {resumed.text[-2000:]}"
    found = contents(case.output)
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name, "-") != found.get(name, "-"))
    return f"it left something else in {', '.join(names)}" if names else None


def put_back(copy: Path, output: Path) -> None:
    """Restore the output folder from a copy."""
    shutil.rmtree(output, ignore_errors=True)
    if copy.exists():  # the output folder does not exist before the first operation
        shutil.copytree(copy, output, symlinks=True)


def spread(operations: int) -> list[int]:
    """Return the operation numbers in an order in which every prefix is spread over the whole run.

    They are sorted by their fractional part after multiplication with the golden ratio.
    """
    return sorted(range(1, operations + 1), key=lambda number: number * 0.6180339887 % 1)


def writing(states: Sequence[Path]) -> list[int]:
    """Return the numbers of the operations after which a file is written. A full disk affects no others."""
    files = [Counter(file_sha256(path) for path in copy.rglob("*") if path.is_file()) for copy in states]
    return [*(number for number in range(1, len(files)) if files[number] - files[number - 1]), len(files)]


def _undisturbed(case: Case) -> tuple[dict[str, Any], list[Path]]:
    """Run a command, and return the contents of its output folder and the copies made before each operation."""
    copies = case.output.with_name(f"states-of-{case.output.name}")
    for folder in (case.output, copies):
        shutil.rmtree(folder, ignore_errors=True)
    outcome = run(case, copies=None if case.processes > 1 else copies)
    assert outcome.code == 0, outcome.text
    return contents(case.output), [copies / str(number) for number in range(1, outcome.operations + 1)]


class Sweep:
    """Injects faults into a command, and saves the results.

    Args:
        case: the command.
        results: file to which each result is appended, as a line of JSON. Results found there are not computed again.

    Attributes:
        expected: contents of the output folder after an uninterrupted run.
        states: copies of the output folder before each operation, which equal the state after a kill there.
    """

    def __init__(self, case: Case, results: Path) -> None:
        self.case, self.results = case, results
        self.expected, self.states = _undisturbed(case)
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        rows = [row for row in map(json.loads, lines) if row["case"] == case.name]
        self.stopped = {(row["fault"], row["at"]): row for row in rows if "fault" in row}
        self.resumed = {row["resumed"]: row["wrong"] for row in rows if "resumed" in row}

    def fault(self, fault: str, at: int) -> str | None:
        """Inject a fault at an operation, resume unless this state was resumed before, and return what is wrong."""
        copied = fault == "kill" and self.case.processes == 1
        if (fault, at) not in self.stopped:
            wrong = None if copied else ends_badly(self.case, fault, at)
            left = state(self.states[at - 1] if copied else self.case.output)
            if left not in self.resumed and not wrong:
                if copied:
                    put_back(self.states[at - 1], self.case.output)
                self.resumed[left] = resumes_badly(self.case, self.expected)
                self._save(resumed=left, wrong=self.resumed[left])
            self.stopped[fault, at] = {"fault": fault, "at": at, "wrong": wrong, "state": left}
            self._save(**self.stopped[fault, at])
        row = self.stopped[fault, at]
        return row["wrong"] or self.resumed.get(row["state"])

    def copies_are_kills(self, count: int) -> list[int]:
        """Kill real runs at `count` operations, and return those after which the state differs from the copy."""
        wrong: list[int] = []
        for at in spread(len(self.states))[: count if self.case.processes == 1 else 0]:
            equal = not ends_badly(self.case, "kill", at) and state(self.case.output) == state(self.states[at - 1])
            wrong += [] if equal else [at]
            self._save(real_kill=at, equal=equal)
        return wrong

    def _save(self, **row: Any) -> None:
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": self.case.name, **row}) + "\n")


def cases(folder: Path, model: Path) -> dict[str, Case]:
    """Write data to `folder`, and return short runs of `unlearn`, `finetune` and `bench`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in _SETS.items():
        write_jsonl(folder / f"{name}.jsonl", [_row(kind, number) for number in range(4)])
    training = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,  # the last step is in the middle of an epoch
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    data = {"forget_data": folder / "forget01.jsonl", "retain_data": folder / "retain99.jsonl"}
    short = {"r": 2, "max_new_tokens": 4}
    places = {name: folder / f"{name}-output" for name in ("unlearn", "finetune", "bench")}
    settings: dict[str, dict[str, Any]] = {
        "unlearn": {**data, **short, **training},
        "finetune": {"train_data": folder / "retain99.jsonl", **training},
        "bench": {"data": folder, "splits": "forget01", "seeds": 1, "methods": "lora+gd", **short, **training},
    }
    names = {name: ("bench", "tofu") if name == "bench" else (name,) for name in settings}
    found = {
        name: Case(
            name,
            [*names[name], *_flags({"model_name_or_path": model, "output_dir": places[name], **values})],
            places[name],
            () if name == "bench" else _RESUME,
        )
        for name, values in settings.items()
    }
    return {**found, "unlearn in 2 processes": replace(found["unlearn"], name="unlearn in 2 processes", processes=2)}


def _row(kind: str, number: int) -> dict[str, Any]:
    others = {"paraphrased_answer": f"It is Ada {number}.", "perturbed_answer": ["It is Bob.", "It is nobody."]}
    return {"question": f"Who keeps {kind} {number}?", "answer": f"Ada {number} does.", **others}


def _flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def save_model(folder: Path) -> Path:
    """Save a small random Llama with a tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"Question: Who keeps cat {i}? Answer: Ada {i} does." for i in range(9)], 300)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "eos_token_id": 1}
    AutoModelForCausalLM.from_config(llama(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    """Print a table of the tried operations and those that passed, then the failures."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.stops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--commands", nargs="+", default=["unlearn", "finetune", "bench"])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=["kill", "full disk", "read-only"])
    parser.add_argument("--most", type=int, default=10**6, help="maximum operations to try per command and fault")
    parser.add_argument("--check", type=int, default=3, help="number of real kills per command to compare with copies")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "unlora-stops"))
    args = parser.parse_args()
    warm_up()
    args.folder.mkdir(parents=True, exist_ok=True)
    known = cases(args.folder / "work", save_model(args.folder / "model"))
    print("| command | fault | operations | tried | states resumed | held |\n|---|---|---|---|---|---|", flush=True)
    failures = []
    sweeps: dict[str, Sweep] = {}
    for fault, name in itertools.product(args.faults, args.commands):
        if name not in sweeps:
            sweeps[name] = Sweep(known[name], args.folder / "results.jsonl")
            unequal = sweeps[name].copies_are_kills(args.check)
            failures += [f"{name}: a kill at operation {at} leaves something else than the copy" for at in unequal]
        sweep, states = sweeps[name], sweeps[name].states
        numbers = writing(states) if fault == "full disk" else range(1, len(states) + 1)
        tried = [number for number in spread(len(states)) if number in numbers][: args.most]
        before = len(sweep.resumed)
        wrong = {at: text for at in tried if (text := sweep.fault(fault, at))}
        failures += [f"{name}, {fault}, operation {at}: {text}" for at, text in wrong.items()]
        counts = [len(states), len(tried), len(sweep.resumed) - before, len(tried) - len(wrong)]
        print(f"| {name} | {fault} | {' | '.join(map(str, counts))} |", flush=True)
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
