"""Sphinx configuration. Some pages are generated from the package before Sphinx reads this folder.

`_generated/` contains the reference (one page for each module or package), the index of papers and the published
numbers. No model is trained: the figures are kept in `_static/figures`.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import formulas  # noqa: E402
import generate  # noqa: E402

project, author = "unlora", "the unlora authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_math_renderer = "mathml"
exclude_patterns = ["_generated/papers.md", "_generated/published-*.md"]  # parts of other pages
html_theme, html_title = "furo", "unlora"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath"]

smartquotes = False
default_role = "code"  # docstrings write `name` for code
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
autodoc_preserve_defaults = True
toc_object_entries = False  # every page has the whole table of contents, which thousands of names would slow down
python_use_unqualified_type_names = True
# Other libraries' names have no page here, and private ones and type aliases have none at all.
nitpick_ignore_regex = [("py:.*", r"(?!unlora\.).*"), ("py:.*", r".*\._\w+"), ("py:.*", r"unlora\..*\.(K|T|V|Row)")]


def settings_of(obj: Any) -> list[Any]:
    """Return the fields of a settings dataclass that `--help` describes, or nothing for any other object."""
    if not (isinstance(obj, type) and dataclasses.is_dataclass(obj)):
        return []
    own = vars(obj).get("__annotations__", {})
    return [field for field in dataclasses.fields(obj) if field.name in own and "help" in field.metadata]


def describe(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Prepare a docstring for napoleon and reStructuredText, and list the settings of a settings dataclass."""
    lines[:] = ["`".join(escaped(part, code % 2 == 1) for code, part in enumerate(line.split("`"))) for line in lines]
    hide_types(what, lines)
    fields = settings_of(obj)
    if fields:
        lines += ["", "Args:"]
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        lines.append(f"    {field.name}: {field.metadata['help']}" + ("" if required else f" Default: `{default!r}`."))


def hide_types(what: str, lines: list[str]) -> None:
    """Give napoleon an empty type for properties and results, where it would take words before a colon for a type."""
    starts = [0] if what in ("property", "attribute", "data") else []
    starts += [at + 1 for at, line in enumerate(lines) if line.strip() in ("Returns:", "Yields:")]
    for at in starts:
        text = lines[at].lstrip()
        lines[at] = f"{lines[at].removesuffix(text)}: {text}"


def escaped(text: str, is_code: bool) -> str:
    """Escape what reStructuredText would take for a substitution or for bold."""
    return text if is_code else re.sub(r"\||(?<![\w*])\*\*(?=\w)", lambda found: "\\" + "\\".join(found[0]), text)


def without_settings(app: Any, what: str, name: str, obj: Any, *rest: Any) -> tuple[str, str] | None:
    """Hide a signature with a hundred settings. They are listed below it."""
    return ("(**settings)", "") if what == "class" and settings_of(obj) else None


def setup(app: Any) -> None:
    """Write the generated pages before Sphinx looks for pages."""
    generate.everything(HERE / "_generated")
    app.add_html_math_renderer("mathml", (formulas.inline, None), (formulas.block, None))
    app.connect("source-read", formulas.typeset_tables)
    app.connect("autodoc-process-docstring", describe, priority=400)  # before napoleon, at 500
    app.connect("autodoc-process-signature", without_settings)
