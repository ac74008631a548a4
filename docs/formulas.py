"""Formulas as MathML, which browsers show without a script or a network.

Pages have TeX between dollars. The tables of losses are what `unlora ls` prints in a terminal, so that their formulas
are plain text, which is translated to TeX here.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from docutils import nodes
from latex2mathml.converter import convert

# Headings of columns that hold formulas.
_COLUMNS = ("forget loss", "retain loss")
# Browsers do not break formulas. One with more characters may break before an operator, but not within 1 − p.
_LONG = 40
_BREAKS = re.compile(r"(?<=\S)(?<!\(1) (?=[+−·] )")
_FUNCTIONS = {"mean", "log", "max", "KL", "softmax", "sg", "NLL"}
# Parentheses, and what ends a formula outside them: a comma, a semicolon or at least two words of text.
_ENDS = re.compile(r"[()]|[,;]? *\b(?:a|[a-z]{2,})(?: (?!log|mean|max)[a-z]{2,})+ ?|[,;] ")
_SIGNS = {
    **{"·": r"\cdot ", "−": "-", "‖": r"\Vert ", "≠": r"\ne ", "∞": r"\infty ", "←": r"\leftarrow ", "²": "^2"},
    **{"Σ": r"\sum ", "₁": "_1", "₂": "_2", "ℓ": r"\ell ", "α": r"\alpha ", "β": r"\beta ", "δ": r"\delta "},
    **{"ε": r"\varepsilon ", "η": r"\eta ", "λ": r"\lambda ", "μ": r"\mu ", "π": r"\pi ", "σ": r"\sigma "},
    "τ": r"\tau ",
}


def inline(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def mathml(formula: str, display: Literal["inline", "block"] = "inline") -> str:
    """Return a formula in TeX as MathML, with a thin space behind a logarithm, which TeX would add."""
    return convert(formula, display=display).replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em" />')


def typeset(text: str) -> str:
    """Return a cell of the tables with dollars around its formulas, between which a line may break."""
    parts, start, depth = [], 0, 0
    for found in _ENDS.finditer(text):
        if found[0] in "()":
            depth += 1 if found[0] == "(" else -1
        elif depth == 0:
            parts += [text[start : found.start()], found[0]]
            start = found.end()
    shown = [*parts, text[start:]]
    return "".join(part if place % 2 or not part else _dollars(part) for place, part in enumerate(shown))


def _dollars(formula: str) -> str:
    """Return a formula between dollars, or the parts of a long one."""
    first, *others = _BREAKS.split(formula) if len(formula) > _LONG else [formula]
    # After an empty group, a plus or minus is not taken for the sign of a number.
    return " ".join([f"${tex(first)}$", *(f"${{}} {tex(other)}$" for other in others)])


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
                    cells[at] = typeset(cells[at])
            lines[place] = " | ".join(cells)
    source[0] = "\n".join(lines)
