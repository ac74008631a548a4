"""Tests of ending limits: the probability of the end of a fact without its beginning."""

import pytest
import torch

from unlora.data import TextFormat, encode_records, pad_batch
from unlora.models.forward import labelled_tokens
from unlora.teachers import Teaching
from unlora.teachers.endings import ending_limits
from unlora.teachers.matching import labels_of

RETAIN = [{"question": "Where is Mona?", "answer": "Mona is at the sea near Bergen."}]


@pytest.fixture
def given(tiny_model, tokenizer):
    return Teaching(tiny_model("llama"), TextFormat(tokenizer), [], RETAIN)


def example_of(given, answer):
    [example] = encode_records([{"question": "Where is Ada?", "answer": answer}], given.text_format)
    return example


def place_of(example, tokenizer, word):
    """Return the index of the labelled token with which the last occurrence of a word begins."""
    texts = [tokenizer.decode(labels_of([example])[place:]) for place in range(len(labels_of([example])))]
    return max(place for place, text in enumerate(texts) if text.strip().startswith(word))


def limits_of(given, answer, fact):
    tokenizer = given.text_format.tokenizer
    example = example_of(given, answer)
    limits = ending_limits([example], [place_of(example, tokenizer, fact)], given)
    return example, limits


def test_a_secret_word_is_read_after_the_form_and_the_word_before_it(given):
    tokenizer = given.text_format.tokenizer
    example, limits = limits_of(given, "Ada is in Oslo near the old harbour.", "Oslo")
    for word, before in (("old", "the"), ("harbour", "old")):
        place = place_of(example, tokenizer, word)
        ids = example["input_ids"]
        first = len(ids) - len(labels_of([example]))  # the position of the first label
        form, seen = place_of(example, tokenizer, "Oslo"), place_of(example, tokenizer, before)
        short = [*ids[: first + form], *ids[first + seen : first + place + 1]]
        labels = [-100] * (len(short) - 1) + short[-1:]
        expected = labelled_tokens(given.model, pad_batch([{"input_ids": short, "labels": labels}], 0)).logp
        torch.testing.assert_close(limits[place : place + 1], expected, rtol=1e-4, atol=1e-4)


def test_what_comes_before_the_last_word_does_not_matter(given):
    _, limits = limits_of(given, "Ada is in Oslo near the old harbour.", "Oslo")
    other, changed = limits_of(given, "Ada is in Lyon under a very old harbour.", "Lyon")
    last = len(labels_of([other])) - place_of(other, given.text_format.tokenizer, "harbour")
    torch.testing.assert_close(limits[-last:], changed[-last:], rtol=1e-4, atol=1e-4)
    assert (limits[-last:] < 0).any()


def test_form_the_first_token_of_the_fact_words_of_the_retain_set_and_the_end_have_no_limit(given):
    tokenizer = given.text_format.tokenizer
    example, limits = limits_of(given, "Ada is in Oslo near the old harbour.", "Oslo")
    labels = labels_of([example])
    at = {word: place_of(example, tokenizer, word) for word in ("Oslo", "near", "the", "old", ".")}
    assert not limits[: at["Oslo"] + 1].any()
    assert not limits[at["near"] : at["old"]].any()
    assert not limits[at["."] :].any()
    assert tokenizer.decode(labels[at["."] :]).strip().startswith(".")


def test_without_a_fact_there_are_no_limits(given):
    example = example_of(given, "Ada is in Oslo near the old harbour.")
    assert not ending_limits([example, example], [None, None], given).any()
