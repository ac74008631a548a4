"""Tokens and their probabilities as HTML."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from unlora.chat.answers import Scored
from unlora.chat.tokens import percent, token_sections, visible


def scored(tokens, original, unlearned):
    return Scored(tokens, {"original": np.log(np.float32(original)), "unlearned": np.log(np.float32(unlearned))})


def test_every_token_stands_above_both_probabilities():
    shown = token_sections({"Reference answer": scored([" Ada", "."], [0.9, 0.5], [0.1, 0.001])})
    rows = re.findall(r'<span class="text">(.*?)</span>.*?</span>(\S+?)</span>.*?</span>(\S+?)</span></li>', shown)
    assert rows == [("␣Ada", "90%", "10%"), (".", "50%", "&lt;1%")]
    assert "Reference answer" in shown
    assert f"original {math.sqrt(0.45):.3f}, unlearned {math.sqrt(0.0001):.3f}" in shown


def test_no_text_of_data_or_models_becomes_markup():
    evil = "<img src=x onerror=\"alert(1)\"> & 'quoted'"
    shown = token_sections({evil: scored([evil, "</li>"], [0.5, 0.5], [0.5, 0.5])})
    assert "<img" not in shown
    assert 'onerror="' not in shown
    assert shown.count("</li>") == 2


def test_equal_answers_are_shown_once_and_different_ones_apart():
    one, other = scored(["a"], [0.5], [0.5]), scored(["b"], [0.5], [0.5])
    shown = token_sections({"Reference answer": one, "Original model's answer": one, "Unlearned model's answer": other})
    titles = re.findall("<h3>(.*?)</h3>", shown)
    assert titles == ["Reference answer = Original model&#x27;s answer", "Unlearned model&#x27;s answer"]


def test_without_an_answer_it_says_what_to_do():
    assert "Ask a question" in token_sections({})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (0.004, "<1%"), (0.006, "1%"), (0.5, "50%"), (0.994, "99%"), (0.996, ">99%"), (1.0, "100%")],
)
def test_percentages_claim_no_certainty(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(("token", "shown"), [(" a b", "␣a␣b"), ("\n", "↵"), ("\t", "⇥"), ("", "⋯")])
def test_blanks_can_be_seen(token, shown):
    assert visible(token) == shown
