"""`unlora bench`: a grid of methods, splits and seeds on a benchmark, resumable, one table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.errors import InputError, Problem, raise_if, unknown_name

if TYPE_CHECKING:
    from unlora.bench import Cell

EXAMPLE = "unlora bench persona --methods vila+ihl lora+gd --seeds 3 --output_dir bench --learning_rate 6e-4"


def run(argv: list[str]) -> int:
    """Runs the cells that are not finished, prints the table, and writes it as results.md and results.csv."""
    args, rest = parser().parse_known_args(argv)
    from unlora.bench import rows_of, run_cells
    from unlora.bench.table import markdown, print_table, sections, to_csv
    from unlora.files import write_text
    from unlora.report import write_comparison

    cells = prepared(args, flags(rest))
    run_cells([cell for cell in cells if cell.metrics is None], args.processes)
    rows = rows_of(cells)
    write_text(args.output_dir / "results.md", markdown(rows))
    write_text(args.output_dir / "results.csv", to_csv(rows))
    print_table(rows)
    write_comparison(sections(cells), args.output_dir / "compare.html")
    print(args.output_dir / "compare.html")
    print(args.output_dir / "results.md")
    return 1 if any(row.failed for row in rows) else 0


def prepared(args: argparse.Namespace, shared: dict[str, Any]) -> list[Cell]:
    """The cells with their configurations written, after everything has been checked that can be checked."""
    from unlora.bench import BENCHMARKS, Options, grid
    from unlora.bench.cells import RUN, method_flags, read_settings
    from unlora.bench.logs import shared_logs

    if args.benchmark not in BENCHMARKS:
        raise InputError(unknown_name("benchmark", args.benchmark, BENCHMARKS))
    benchmark = BENCHMARKS[args.benchmark]
    splits = args.splits or list(benchmark.splits)
    raise_if(unknown_name("splits", split, benchmark.splits) for split in splits if split not in benchmark.splits)
    options = Options(args.output_dir, args.model_name_or_path, args.data, named(args.retrained))
    raise_if([*benchmark.check(options), *count_problems(args)])
    cells = grid(args.methods, splits, range(args.seeds), args.output_dir)
    settings = read_settings(args.settings, args.methods)
    own = {method: {**shared, **method_flags(method), **settings.get(method, {})} for method in args.methods}
    for values in own.values():
        request({"model_name_or_path": "any", **values})  # before models are made and evaluated
    for cell in cells:
        given = {**benchmark.flags(options, cell.split, cell.seed), **shared}
        logs = shared_logs(args.output_dir, request(given), benchmark.retrained(options, cell.split, cell.seed))
        values = {**given, **logs, **own[cell.method]}
        cell.prepare(values)
        if cell.metrics is None:
            request({**values, "output_dir": str(cell.folder / RUN)}).check()
    return cells


def parser() -> argparse.ArgumentParser:
    """The command's own flags; those of `unlora unlearn` are handed on."""
    flags = argparse.ArgumentParser(
        prog="unlora bench",
        epilog=f"All flags of `unlora unlearn` work too, and hold for every cell. example: {EXAMPLE}",
        allow_abbrev=False,
    )
    flags.add_argument("benchmark", help="persona (makes its own models and data) or tofu")
    flags.add_argument("--output_dir", type=Path, required=True, help="one folder a bench; finished cells are kept")
    flags.add_argument("--methods", nargs="+", default=["vila+ihl"], help="initialiser+loss, see `unlora ls`")
    flags.add_argument("--splits", nargs="+", help="all of the benchmark if not given")
    flags.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (default: 3)")
    flags.add_argument("--processes", type=int, default=1, help="cells that run at a time, a GPU each (default: 1)")
    flags.add_argument("--settings", type=Path, help="YAML of flags for single methods: {vila+ihl: {r: 4}}")
    flags.add_argument("--model_name_or_path", help="the model that is to forget (tofu)")
    flags.add_argument("--data", help="the benchmark's data: a folder or a hub dataset (tofu)")
    flags.add_argument("--retrained", nargs="+", default=[], help="SPLIT=LOG.json or SPLIT=MODEL, for forget quality")
    return flags


def count_problems(args: argparse.Namespace) -> list[Problem]:
    """Numbers that leave nothing to run."""
    values = {"seeds": args.seeds, "processes": args.processes}
    return [Problem(name, value, "nothing would run", "use at least 1") for name, value in values.items() if value < 1]


def named(pairs: list[str]) -> dict[str, str]:
    """{split: source} of "split=source" arguments."""
    odd = [pair for pair in pairs if "=" not in pair]
    raise_if(Problem("retrained", pair, "it names no split", "write it as forget10=log.json") for pair in odd)
    return dict(pair.split("=", 1) for pair in pairs)


def flags(rest: list[str]) -> dict[str, Any]:
    """The flags that are handed on, as values for a YAML file."""
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


def request(values: dict[str, Any]) -> Any:
    """The request that flags describe."""
    from unlora.cli.unlearn import request_from

    parts = ([f"--{name}", *as_texts(value)] for name, value in values.items() if value is not None)
    return request_from([part for flag in parts for part in flag], "unlearn", EXAMPLE)


def as_texts(value: Any) -> list[str]:
    """A flag's value as it stands on the command line."""
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]
