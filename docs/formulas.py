"""Formulas as MathML, which browsers show without a script or a network.

Pages have TeX between dollars. The tables of losses are what `unlora ls` prints in a terminal, so that their formulas
are plain text, which is translated to TeX here.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

# Headings of columns that hold formulas.
_COLUMNS = ("forget loss", "retain loss")
_FUNCTIONS = {"mean", "log", "max", "KL", "softmax", "sg", "NLL"}
_SIGNS = {
    **{"·": r"\cdot ", "−": "-", "‖": r"\| ", "≠": r"\ne ", "∞": r"\infty ", "←": r"\leftarrow ", "²": "^2"},
    **{"Σ": r"\sum ", "₁": "_1", "₂": "_2", "ℓ": r"\ell ", "α": r"\alpha ", "β": r"\beta ", "δ": r"\delta "},
    **{"ε": r"\varepsilon ", "η": r"\eta ", "λ": r"\lambda ", "μ": r"\mu ", "π": r"\pi ", "σ": r"\sigma "},
    "τ": r"\tau ",
}


def inline(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def tex(formula: str) -> str:
    """Return TeX for a formula of the tables: `mean_t log p(y_t)` is the mean over t of a logarithm."""
    text = re.sub(r"_ref,(\w)", r"_{ref,\1}", formula)
    text = re.sub(r"([_^])(ref|[α-ωa-z][₁₂]?)(?![a-z])", r"\1{\2}", text)
    text = re.sub(r"[A-Za-z]{2,}|(?<= )a(?= [a-z]{2})", _word, text)
    return re.sub("|".join(_SIGNS), lambda sign: _SIGNS[sign[0]], text)


def _word(found: re.Match[str]) -> str:
    """Return a function's name, an index, or a word of the text around a formula."""
    word = found[0]
    if word in _FUNCTIONS:
        return rf"\{word} " if word in ("log", "max") else rf"\operatorname{{{word}}}"
    return r"\text{ref}" if word == "ref" else rf"\text{{ {word} }}"


def typeset_tables(app: Any, page: str, source: list[str]) -> None:
    """Put dollars around the formulas of a page's tables before it is parsed."""
    lines, columns = source[0].split("\n"), []
    for place, line in enumerate(lines):
        cells = line.split(" | ")
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = [at for at, cell in enumerate(cells) if cell in _COLUMNS]
        elif "---" not in line:
            for at in columns:
                if " " in cells[at]:  # otherwise it is the name of a loss
                    cells[at] = f"${tex(cells[at])}$"
            lines[place] = " | ".join(cells)
    source[0] = "\n".join(lines)
