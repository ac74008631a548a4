"""`unlora bench`: run a grid of methods, splits and seeds on a benchmark, with one table as the result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.cli.output import Answer
from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.settings import BenchConfig

if TYPE_CHECKING:
    from unlora.bench import Results
    from unlora.bench.plan import Plan
    from unlora.cli.arguments import CommandLine

EXAMPLE = "unlora bench persona --methods vila+ihl lora+gd --seeds 3 --output_dir bench --learning_rate 6e-4"
SETTINGS = (BenchConfig,)
PAGE = "compare.html"
# All flags of `unlora unlearn` are accepted, too, and apply to every cell.
FORWARDS = True


def check(line: CommandLine) -> None:
    """Check the forwarded flags and the files of `--config` and `--settings`, before torch is loaded.

    Raises:
        InputError: names that are not flags of `unlora unlearn` or of the benchmark's evaluation, invalid values, or a
            file that cannot be read.
    """
    from unlora.benchmarks import Options, find_benchmark
    from unlora.cli.arguments import check_forwarded, check_some, forwarded
    from unlora.cli.unlearn import REQUEST

    known, rest = forwarded(line)
    benchmark = find_benchmark(known.benchmark)
    named = Options(Path(known.output_dir), known.model_name_or_path, known.data, _named(known.retrained))
    raise_if(benchmark.problems(named))
    check_forwarded(rest, line.command, REQUEST, benchmark.settings.__dataclass_fields__)
    check_some(REQUEST, flags(rest))
    path = known.settings and Path(known.settings)
    for values in (_preset(flags(rest)), *_read_settings(path, known.methods).values()):
        check_forwarded([f"--{name}" for name in values], line.command, REQUEST, ())
        check_some(REQUEST, values)


def run(args: BenchConfig, rest: list[str]) -> Answer:
    """Run the cells that have not finished, and write the tables and the page of results."""
    from unlora.bench.table import print_table
    from unlora.common.locks import writing_to

    forwarded = flags(rest)
    plan = _plan_of(args, forwarded)
    others = _other_logs(args, plan)
    if args.dry_run:
        cells = plan.cells()
        states = {str(cell): "finished" if cell.finished else "to be run" for cell in cells}
        return Answer({"cells": states}, lambda: _print_plan(states, args.processes))
    with writing_to(args.output_dir):
        rows, order = _rows(args, plan, forwarded, others)
    page = args.output_dir / PAGE
    value = {"rows": [row.as_json() for row in rows], "ranking": [row.as_json() for row in order]}
    failed = any(row.failed for row in rows)

    def show() -> None:
        print_table(rows, plan.benchmark)
        if order:
            print_table(order, plan.benchmark)
        print(page)

    return Answer(value, show, args.output_dir / "results.md", code=int(failed))


def _print_plan(states: Mapping[str, str], processes: int) -> None:
    """Print the cells of a bench, and the number of cells that are left to run."""
    for cell, state in states.items():
        print(f"{cell}: {state}")
    left = sum(state != "finished" for state in states.values())
    print(f"{left} of {len(states)} cells are to be run, {processes} at a time")


def _rows(
    args: BenchConfig, plan: Plan, forwarded: Mapping[str, Any], others: Mapping[str, Mapping[str, Path]]
) -> tuple[list[Results], list[Results]]:
    """Run the cells that have not finished, write tables and page, and return the rows of results and ranking."""
    from unlora.bench import Progress, rows_of, run_cells, waves
    from unlora.bench.executors import EXECUTORS
    from unlora.bench.ranking import ranked, write_community
    from unlora.bench.table import markdown, sections, to_csv
    from unlora.common.files import write_text
    from unlora.report.compare_page import write_comparison

    cells, references = plan.prepare()
    unfinished = [cell for cell in cells if not cell.finished]
    progress = Progress(len(unfinished))
    with EXECUTORS[args.executor]() as execute:
        for wave in waves(unfinished):
            run_cells(wave, args.processes, progress, args.num_processes, execute)

    def row_command(method: str, split: str) -> str:
        return command_of(args, method, split, {**forwarded, **plan.of_method.get(method, {})})

    rows = rows_of(cells, references, plan.benchmark, row_command, others)
    order = ranked(cells, references, plan.benchmark, rows)
    ranking = f"\n## Ranking\n\n{markdown(order, plan.benchmark)}" if order else ""
    write_text(args.output_dir / "results.md", markdown(rows, plan.benchmark) + ranking)
    write_text(args.output_dir / "results.csv", to_csv(rows))
    if plan.benchmark.name == "tofu":
        write_community(args.output_dir, cells, references, plan.benchmark, rows)
    write_comparison(sections(cells, references), args.output_dir / PAGE)
    return rows, order


def _other_logs(args: BenchConfig, plan: Plan) -> dict[str, dict[str, Path]]:
    """Return {split: {name: log}} for the extra rows of `--rows`, after checking that each log can be read.

    Raises:
        InputError: a row does not name a split and a log, or a log cannot be read.
    """
    splits = list(plan.splits or plan.benchmark.splits)
    found: dict[str, dict[str, Path]] = {}
    for row in args.rows:
        place, equals, log = row.partition("=")
        split, colon, name = place.partition(":")
        split, name = (split, name) if colon else (splits[0] if len(splits) == 1 else "", place)
        if not equals or not name or split not in splits:
            fix = f"write it as {splits[0]}:{name or 'NAME'}=LOG.json"
            raise InputError(Problem("rows", row, f"each needs one of the splits {', '.join(splits)}", fix))
        plan.benchmark.read_log(log, "rows")
        found.setdefault(split, {})[name] = Path(log)
    return found


def command_of(args: BenchConfig, method: str, split: str, values: Mapping[str, Any]) -> str:
    """Return the command that repeats one row in a new folder. `values` are its settings for `unlora unlearn`."""
    from unlora.cli.arguments import as_argv
    from unlora.common import plugins

    own = {
        "methods": method,
        "splits": split,
        "seeds": args.seeds,
        "first_seed": args.first_seed or None,
        "output_dir": "NEW_FOLDER",
        "model_name_or_path": args.model_name_or_path,
        "data": args.data,
        "retrained": args.retrained or None,
        "num_processes": args.num_processes if args.num_processes > 1 else None,
    }
    return shlex.join(["unlora", "bench", args.benchmark, *as_argv({**own, **values}), *plugins.flags()])


def _plan_of(args: BenchConfig, forwarded: Mapping[str, Any]) -> Plan:
    """Return the plan for the flags, with the settings of requests and evaluations converted to their types."""
    from unlora.bench.plan import Plan
    from unlora.benchmarks import Options, find_benchmark
    from unlora.cli.arguments import converted
    from unlora.cli.unlearn import REQUEST
    from unlora.cli.values import check_consent

    benchmark = find_benchmark(args.benchmark)
    raise_if([*args.problems(), *_gpu_problems(args)])
    preset = _preset(forwarded)
    shared = {name: value for name, value in forwarded.items() if name != "config"}
    of_method = _read_settings(args.settings, args.methods)
    for values in (preset, *of_method.values()):
        check_consent(values, [f"--{name}" for name in forwarded])
    names = () if benchmark.evaluated_by_unlearn else benchmark.settings.__dataclass_fields__.keys()
    evaluation = {name: shared.pop(name) for name in names & shared.keys()}
    return Plan(
        benchmark=benchmark,
        options=Options(args.output_dir, args.model_name_or_path, args.data, _named(args.retrained)),
        methods=args.methods,
        splits=args.splits or (),
        seeds=range(args.first_seed, args.first_seed + args.seeds),
        preset=converted(REQUEST, preset),
        shared=converted(REQUEST, shared),
        of_method={m: converted(REQUEST, v) for m, v in of_method.items()},
        evaluation=converted((benchmark.settings,), evaluation),
    )


def _preset(forwarded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags in the file of `--config`. Those of the benchmark and of the user take precedence over them."""
    from unlora.cli.arguments import read_config

    return read_config(forwarded["config"]) if "config" in forwarded else {}


def _read_settings(path: Path | None, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of single methods from a YAML file, {method: {flag: value}}.

    Raises:
        InputError: the file is not such a mapping, or a method is not in the grid.
    """
    if path is None:
        return {}
    from unlora.cli.arguments import read_config

    values = read_config(str(path), "settings")
    if not all(isinstance(flags, dict) for flags in values.values()):
        fix = "write lines such as 'vila+ihl: {learning_rate: 1e-4}'"
        raise InputError(Problem("settings", str(path), "not a mapping of methods to flags", fix))
    raise_if(unknown_name("settings", name, methods) for name in values if name not in methods)
    return values


def _gpu_problems(args: BenchConfig) -> list[Problem]:
    """Return a problem if a cell has more processes than there are GPUs. Without any GPU, they share the CPU."""
    import torch

    gpus = torch.cuda.device_count()
    if not 0 < gpus < args.num_processes or args.num_processes == 1:
        return []
    return [Problem("num_processes", args.num_processes, f"there are {gpus} GPUs", f"use at most {gpus}")]


def _named(sources: list[str]) -> dict[str, str]:
    """Return {split: source} for arguments of the form "split=source". A source without a split is for all splits."""
    from unlora.benchmarks.interface import ALL

    pairs = (source.partition("=") for source in sources)
    return {split if source else ALL: source or split for split, _, source in pairs}


def flags(rest: list[str]) -> dict[str, Any]:
    """Return the flags that are forwarded to `unlora unlearn`, as {name: text or list of texts}."""
    values: dict[str, Any] = {}
    name = None
    for part in rest:
        if part.startswith("--"):
            name, equals, value = part.removeprefix("--").partition("=")
            values[name] = [value] if equals else []
        elif name is None:
            raise InputError(Problem("arguments", part, "no flag takes it", "write --flag value"))
        else:
            values[name].append(part)
    return {name: {0: "true", 1: (*given, "")[0]}.get(len(given), given) for name, given in values.items()}
