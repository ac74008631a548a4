"""The pages that are generated from the package: the reference, the index of papers and the published numbers."""

from __future__ import annotations

import pkgutil
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

import unlora
from unlora.common.files import write_text
from unlora.importance import INITIALISERS
from unlora.losses.table import LOSSES, RETAIN_LOSSES
from unlora.pipeline.choices import linked

# Commands are documented by `--help`. Their modules are not an interface.
WITHOUT_PAGE = ("cli", "__main__")


def everything(folder: Path) -> None:
    """Write all pages. A page that has not changed is not touched, so that Sphinx does not read it again."""
    pages = {f"reference/{name}.md": reference_page(name) for name in modules()}
    pages["papers.md"] = papers_table()
    pages |= {f"published-{name}.md": tables for name, tables in published_tables().items()}
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def modules() -> list[str]:
    """Return the modules and packages directly under `unlora` that have a page."""
    return sorted(found.name for found in pkgutil.iter_modules(unlora.__path__) if found.name not in WITHOUT_PAGE)


def reference_page(name: str) -> str:
    """Return the page of a module, or of a package and the modules in it."""
    full = f"unlora.{name}"
    package = Path(unlora.__path__[0]) / name
    inner = pkgutil.walk_packages([str(package)], f"{full}.") if package.is_dir() else ()
    sections = [f"# {full}", automodule(full)]
    for found in inner:
        sections += [f"## {found.name}", automodule(found.name)]
    return "\n\n".join(sections) + "\n"


def automodule(name: str) -> str:
    """Return the directive that documents a module's own names."""
    return f"```{{eval-rst}}\n.. automodule:: {name}\n```"


def papers_table() -> str:
    """Return a Markdown table of the papers of all losses and initialisers, with one row for each paper."""
    rows: dict[str, list[str]] = defaultdict(list)
    citations: dict[str, str] = {}
    kinds = {"initialiser": INITIALISERS, "loss": LOSSES, "retain loss": RETAIN_LOSSES}
    for kind, table in kinds.items():
        for name, choice in table.items():
            function = getattr(choice, "function", None) or choice.row_importance
            number = re.search(r"arXiv ([\d.]+\d)", choice.paper)
            key = number[1] if number else choice.paper
            citations.setdefault(key, choice.paper)
            rows[key].append(f"{kind} `{name}` (`{function.__module__}`)")
    titles = _data("titles")
    shown = {key: linked(citations[key]).replace(" ([", f", *{titles.get(key)}* ([") for key in rows}
    head = ["| paper | implemented as |", "| --- | --- |"]
    body = (f"| {shown[key]} | {', '.join(rows[key])} |" for key in sorted(rows))  # the oldest first
    return "\n".join([*head, *body]) + "\n"


def _data(name: str) -> Any:
    return yaml.safe_load((Path(__file__).parent / "data" / f"{name}.yaml").read_text(encoding="utf-8"))


def published_tables() -> dict[str, str]:
    """Return by page the tables of `data/published.yaml`: ours and those of papers, each with source and definition."""
    pages: dict[str, list[str]] = defaultdict(list)
    for entry in _data("published"):
        # Links within the site are relative to the page that includes the table.
        up = "" if entry["url"].startswith("https://") or entry["page"] == "speed" else "../"
        source = f"[{entry['source']}]({up}{entry['url']})"
        about = f"{entry['about']}. Numbers: {entry['definition']}."
        if "second_hand" in entry:
            about += f" **Second-hand**: {entry['second_hand']}."
        lines = [entry["columns"], ["---"] * len(entry["columns"]), *entry["rows"]]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        pages[entry["page"]].append(f"**{source}**: {about}\n\n{table}\n")
    return {name: "\n".join(tables) for name, tables in pages.items()}
