"""Stop short runs at every operation on files, resume them, and compare with a run that nothing stopped.

python -m experiments.stops --commands unlearn finetune bench --faults "kill" "full disk" "read-only"

docs/reliability.md has the result. Each run is a process of its own, which is forked to spare the import of the
libraries. An audit hook of Python counts what it does to files in its output folder, and strikes at the chosen one.
With `--results FILE` each result is added to a file, and what is in the file is not tried again.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import mmap
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from experiments._speed import llama
from unlora.benchmarks.builtin.persona_models import train_tokenizer
from unlora.common.files import write_jsonl

# What the forked processes need not import.
_IMPORTED = ("datasets", "matplotlib.figure", "transformers.models.llama.modeling_llama", "unlora.pipeline.unlearn")
FAULTS = ("kill", "kill one", "full disk", "read-only")
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What may differ between two runs with the same result: times, memory, and pages and logs that show them.
_TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
_OF_ONE_RUN = {"created", "times", "peak_memory_bytes", "resumed"}
_SHOWS_TIMES = {"report.html", "compare.html", "log.txt"}
_DEPENDS_ON_TIMES = {"metrics.json", "record.json", *_SHOWS_TIMES}
# TOFU's sets, and what their rows are about.
_SETS = {"forget01": "cat", "retain99": "dog", "forget01_perturbed": "cat", "retain_perturbed": "dog"}
_SETS |= {"real_authors_perturbed": "owl", "world_facts_perturbed": "fox"}
_RESUME = ["--resume_from_checkpoint", "true"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        code: its exit code, or minus the signal that ended it.
        text: what it printed.
        operations: how often it changed something in its output folder, or was about to.
    """

    code: int
    text: str
    operations: int


@dataclass(frozen=True)
class Case:
    """A command to stop.

    Args:
        name: of the command.
        argv: its arguments, with the command.
        output: its output folder.
        resume: the arguments that are added to resume it.
        processes: how many processes share the work, as `accelerate launch` would start them.
    """

    name: str
    argv: Sequence[str]
    output: Path
    resume: Sequence[str] = ()
    processes: int = 1


def run(case: Case, resume: bool = False, fault: str | None = None, at: int = 0) -> Outcome:
    """Run a command in a forked process, to which a fault happens at its operation number `at` in its output folder.

    Args:
        case: the command.
        resume: whether to resume it.
        fault: "kill" ends all of its processes and "kill one" the one that is at work; on a "full disk" no file can
            grow from then on; "read-only" refuses every operation from then on.
        at: the number, from 1.
    """
    argv = [*case.argv, *(case.resume if resume else ())]
    counter = mmap.mmap(-1, 8)  # shared with the processes that this one starts
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        os.close(reading)
        _watch(case.output, counter, fault, at)
        if case.processes > 1:
            _lead(argv, writing, case.processes)
        become(argv, writing)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Outcome(code, text, struct.unpack("q", counter[:])[0])


def _lead(argv: Sequence[str], output: int, processes: int) -> None:
    """Start the processes that share the work, and end them all as soon as one fails, as `accelerate launch` does."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for rank in range(processes):
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            become(argv, output)
    for _ in range(processes):
        if os.waitstatus_to_exitcode(os.wait()[1]):
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


def become(argv: Sequence[str], output: int) -> None:
    """Be the command in this process, and end."""
    code = 1
    try:
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        subprocess.run = _forked  # type: ignore[assignment]
        from unlora.cli import main

        code = main(argv)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _forked(command: Sequence[str], stdout: Any = None, env: Any = None, **others: Any) -> SimpleNamespace:
    """Run `python -m unlora ...` in a forked process, in the place of `subprocess.run`."""
    assert list(command[1:3]) == ["-m", "unlora"], command
    process = os.fork()
    if process == 0:
        os.environ.update(env or {})
        target = os.open(os.devnull, os.O_WRONLY) if stdout == subprocess.DEVNULL else stdout.fileno()
        become(command[3:], target)  # it has its parent's audit hook
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _watch(output: Path, counter: mmap.mmap, fault: str | None, at: int) -> None:
    place = os.path.abspath(output)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not _changes(event, args, place):
            return
        number = struct.unpack("q", counter[:])[0] + 1
        counter[:] = struct.pack("q", number)
        if fault == "kill" and number == at:
            os.killpg(0, signal.SIGKILL)
        if fault == "kill one" and number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full disk" and number == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        if fault == "read-only" and number >= at:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

    sys.addaudithook(hook)


def _changes(event: str, args: tuple[Any, ...], place: str) -> bool:
    """Return whether an event of Python's audit is about to change something in the folder."""
    if event == "open":
        return isinstance(args[0], str) and bool(args[2] & _WRITING) and os.path.abspath(args[0]).startswith(place)
    # `shutil.rmtree` names the files in a folder relative to it.
    return event in _CHANGES and (not os.path.isabs(args[0]) or os.fspath(args[0]).startswith(place))


def contents(folder: Path) -> dict[str, Any]:
    """Return everything in a folder that must be equal after two runs with the same result."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.name in _SHOWS_TIMES:
        return None
    if path.suffix != ".json":
        return path.read_bytes()
    value = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "metrics.json":
        value["train"] = [{k: v for k, v in row.items() if k not in _TIMES} for row in value["train"]]
    if path.name == "record.json":
        value = {name: part for name, part in value.items() if name not in _OF_ONE_RUN}
        del value["files"]["metrics.json"]
    if path.name == "stages.json":
        value["stages"] = {k: v for k, v in value["stages"].items() if k not in _DEPENDS_ON_TIMES}
    return value


def whole(case: Case) -> tuple[dict[str, Any], int]:
    """Return what an undisturbed run leaves, and the number of its operations."""
    shutil.rmtree(case.output, ignore_errors=True)
    outcome = run(case)
    assert outcome.code == 0, outcome.text
    return contents(case.output), outcome.operations


def broken(case: Case, fault: str, at: int, expected: dict[str, Any]) -> str | None:
    """Stop a run, resume it, and return what is wrong with the result, if anything is."""
    shutil.rmtree(case.output, ignore_errors=True)
    stopped = run(case, fault=fault, at=at)
    if fault == "kill" and stopped.code != -signal.SIGKILL:
        return f"it was not killed but ended with {stopped.code}"
    # If all that is left to do is to delete files, a full disk does not matter.
    if fault in ("full disk", "read-only") and (stopped.code not in (0, 1, 2) or "traceback" in stopped.text.lower()):
        return f"it ended with {stopped.code}: {stopped.text[-2000:]}"
    resumed = run(case, resume=True)
    if resumed.code:
        return f"it could not be resumed, exit code {resumed.code}: {resumed.text[-2000:]}"
    found = contents(case.output)
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name, "-") != found.get(name, "-"))
    return f"it left something else in {', '.join(names)}" if names else None


def spread(operations: int) -> list[int]:
    """Return the numbers of all operations in an order of which every beginning is spread over the whole run."""
    return sorted(range(1, operations + 1), key=lambda number: number * 0.6180339887 % 1)


def try_all(case: Case, fault: str, tried: Sequence[int], expected: dict[str, Any], results: Path | None) -> list[str]:
    """Stop a run at the operations `tried`, and return what is wrong with the results, one text for each."""
    lines = results.read_text(encoding="utf-8").splitlines() if results and results.exists() else []
    known = {
        row["at"]: row["wrong"] for row in map(json.loads, lines) if (row["case"], row["fault"]) == (case.name, fault)
    }
    for at in tried:
        if at not in known:
            known[at] = broken(case, fault, at, expected)
            if results:
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"case": case.name, "fault": fault, "at": at, "wrong": known[at]}) + "\n")
    return [f"{case.name}, {fault}, operation {at}: {known[at]}" for at in tried if known[at]]


def cases(folder: Path, model: Path) -> dict[str, Case]:
    """Return short runs of the three commands, whose data are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in _SETS.items():
        write_jsonl(folder / f"{name}.jsonl", [_row(kind, number) for number in range(6)])
    training = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 5,  # the last one is within an epoch
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


def _save_model(folder: Path) -> Path:
    """Save a small random Llama with a tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"Question: Who keeps cat {i}? Answer: Ada {i} does." for i in range(9)], 300)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "eos_token_id": 1}
    AutoModelForCausalLM.from_config(llama(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    """Print a table of what was tried and what held, then what did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", nargs="+", default=["unlearn", "finetune", "bench"])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=["kill", "full disk", "read-only"])
    parser.add_argument("--every", type=int, default=1, help="try only every so many operations")
    parser.add_argument("--results", type=Path, help="the file to which each result is added, as a line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for module in _IMPORTED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as name:
        known = cases(Path(name) / "work", _save_model(Path(name) / "model"))
        print("| command | fault | operations | tried | held |\n|---|---|---|---|---|", flush=True)
        failures = []
        for command in args.commands:
            expected, operations = whole(known[command])
            for fault in args.faults:
                tried = spread(operations)[:: args.every]
                wrong = try_all(known[command], fault, tried, expected, args.results)
                failures += wrong
                print(f"| {command} | {fault} | {operations} | {len(tried)} | {len(tried) - len(wrong)} |", flush=True)
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
