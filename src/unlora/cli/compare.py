"""`unlora compare`: runs side by side, as a table and as a page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLE = "unlora compare run-a run-b --output compare.html"


def run(argv: list[str]) -> int:
    """Writes the page; prints the table, or JSON or Markdown alone, and of the former the page's path last."""
    args = parser().parse_args(argv)
    from unlora.report import Group, Section, read_run, write_comparison
    from unlora.report.compare import as_json, labels_of, markdown, print_comparison

    folders = list(dict.fromkeys(path.resolve() for path in args.runs))
    groups = [Group(label, [read_run(path)]) for path, label in zip(folders, labels_of(folders), strict=True)]
    section = Section("", groups)
    write_comparison([section], args.output)
    if args.json:
        print(json.dumps(as_json(section), indent=2, ensure_ascii=False))
    elif args.markdown:
        print(markdown(section))
    else:
        print_comparison(section)
        print(args.output)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="unlora compare", epilog=f"example: {EXAMPLE}", allow_abbrev=False)
    flags.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of finished `unlora unlearn`")
    flags.add_argument("--output", type=Path, default=Path("compare.html"), help="the page (default: compare.html)")
    printed = flags.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print JSON instead of a table")
    printed.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")
    return flags
