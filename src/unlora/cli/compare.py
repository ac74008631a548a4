"""`unlora compare`: runs side by side, as a table and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlora.cli.output import Answer

EXAMPLE = "unlora compare run-a run-b --output compare.html"


def run(argv: list[str]) -> Answer:
    """Writes the page, and shows the table."""
    args = parser().parse_args(argv)
    from unlora.report.compare import Group, Section, as_json, labels_of, markdown, print_comparison, write_comparison
    from unlora.report.read import read_run

    folders = list(dict.fromkeys(path.resolve() for path in args.runs))
    groups = [Group(label, [read_run(path)]) for path, label in zip(folders, labels_of(folders), strict=True)]
    section = Section("", groups)
    write_comparison([section], args.output)

    def show() -> None:
        if args.markdown:
            print(markdown(section))
        else:
            print_comparison(section)

    return Answer({"runs": as_json(section)}, show, args.output)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="unlora compare", allow_abbrev=False)
    flags.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of finished `unlora unlearn`")
    flags.add_argument("--output", type=Path, default=Path("compare.html"), help="the page (default: compare.html)")
    flags.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")
    return flags
