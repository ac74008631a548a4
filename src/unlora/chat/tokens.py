"""The tokens of an answer as HTML, each above its probability under both models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from unlora.chat.answers import SIDES, Scored

_CAPTION = "Below each token is its probability, given the question and the tokens before it, for"


def token_sections(answers: Mapping[str, Scored]) -> str:
    """Return {title: answer} as HTML, with all text escaped. Equal answers are shown once, under all their titles."""
    if not answers:
        return '<div class="tokens"><p>Ask a question, or write one together with a reference answer.</p></div>'
    together: dict[tuple[str, ...], list[str]] = {}
    for title, scored in answers.items():
        together.setdefault(tuple(scored.tokens), []).append(title)
    names = " and ".join(f'<span class="p name {side}" style="--p:1">{side}</span>' for side in SIDES)
    sections = "".join(_section(" = ".join(titles), answers[titles[0]]) for titles in together.values())
    return f'<div class="tokens"><p>{_CAPTION} {names}</p>{sections}</div>'


def _section(title: str, scored: Scored) -> str:
    """Return the HTML of one answer."""
    whole = ", ".join(f"{side} {scored.probability(side):.3f}" for side in SIDES)
    items = "".join(_item(place, scored) for place in range(len(scored.tokens)))
    return (
        f"<section><h3>{escape(title)}</h3><p>Probability, normalised for length as in the evaluation: {whole}</p>"
        f'<ol aria-label="{escape(title)}, token by token">{items}</ol></section>'
    )


def _item(place: int, scored: Scored) -> str:
    """Return the HTML of one token."""
    values = {side: math.exp(scored.logp[side][place]) for side in SIDES}
    cells = "".join(
        f'<span class="p {side}" style="--p:{value:.3f}" title="{side}: {value:.3g}">'
        f'<span class="spoken">{side} </span>{escape(percent(value))}</span>'
        for side, value in values.items()
    )
    return f'<li><span class="text">{escape(visible(scored.tokens[place]))}</span>{cells}</li>'


def percent(value: float) -> str:
    """Format a probability in whole percent. Only exact values become 0% or 100%; others near them are <1% or >99%."""
    if 0 < value < 0.005:
        return "<1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{100 * value:.0f}%"


def visible(token: str) -> str:
    """Make whitespace in a token visible. A token without text, which only starts a character, becomes an ellipsis."""
    return token.translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥"}) or "⋯"
