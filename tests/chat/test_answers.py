"""Answers and token probabilities of the original and the unlearned model, which match those of the evaluation."""

from __future__ import annotations

import copy
import time
from threading import Event, Thread, current_thread

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.scoring import answer_nll
from unlora import InputError
from unlora.chat.answers import SIDES, Sampling, SideBySide
from unlora.data import TextFormat
from unlora.data.encoding import encode_prompt
from unlora.evals.generation import generate_answers

QUESTION, ANSWER = "Where was Ada Lovelace born?", "Ada was born in London."
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(params=["base", "chat"])
def text_format(request, tokenizer):
    own = copy.deepcopy(tokenizer)
    if request.param == "chat":
        own.chat_template = CHATML
    return TextFormat(own)


@pytest.fixture
def base(tiny_model):
    """The original model, without an adapter."""
    return tiny_model("llama")


@pytest.fixture
def models(tiny_model, text_format):
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return SideBySide(get_peft_model(tiny_model("llama"), settings), text_format)


def last(answers):
    *_, final = answers
    return final


def test_greedy_answers_are_those_of_the_evaluation(base, models):
    tokens = last(models.answers(QUESTION, Sampling(12)))
    found = {side: models.text(tokens[side]) for side in SIDES}
    expected = {
        side: generate_answers(model, [QUESTION], models.text_format, max_new_tokens=12)[0]
        for side, model in (("original", base), ("unlearned", models.model))
    }
    assert found == expected
    assert found["original"] != found["unlearned"]


def test_the_answers_grow_token_by_token(models):
    steps = [tuple(len(tokens[side]) for side in SIDES) for tokens in models.answers(QUESTION, Sampling(5))]
    first, second = steps[-1]
    assert steps == [(n + 1, 0) for n in range(first)] + [(first, n + 1) for n in range(second)]


def test_each_token_has_its_probability_in_a_plain_forward_pass(base, models):
    tokens = last(models.answers(QUESTION, Sampling(6)))["unlearned"]
    prompt = encode_prompt(QUESTION, models.text_format)
    scored = models.score(QUESTION, tokens)
    for side, model in (("original", base), ("unlearned", models.model)):
        with torch.no_grad():
            logp = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert scored.logp[side] == pytest.approx(logp[range(len(tokens)), tokens].numpy(), rel=1e-4)
    # Greedy decoding chooses the most likely tokens, so each is more likely than the average token.
    assert (np.exp(scored.logp["unlearned"]) > 1 / len(models.text_format.tokenizer)).all()


def test_a_given_answer_has_the_probability_that_the_evaluation_gives_it(base, models):
    scored = models.score(QUESTION, ANSWER)
    for side, model in (("original", base), ("unlearned", models.model)):
        (nll,), (count,) = answer_nll(model, [(QUESTION, ANSWER)], models.text_format, 1)
        assert len(scored.tokens) == len(scored.logp[side]) == count
        assert scored.probability(side) == pytest.approx(np.exp(-nll / count), rel=1e-5)
    assert scored.probability("original") != pytest.approx(scored.probability("unlearned"), rel=1e-2)


def test_the_tokens_of_an_answer_are_its_text_and_its_end(models):
    scored = models.score(QUESTION, "Zoë ate.")
    text = "".join(scored.tokens).strip()
    assert text.startswith("Zoë ate.")
    assert text.endswith("<eos>")
    assert scored.tokens.count("") == 1  # the first of the two bytes of ë adds no text


def test_whoever_stops_reading_stops_the_generation(models):
    calls = []
    models.model.get_base_model().register_forward_hook(lambda *_: calls.append(1))
    answers = models.answers(QUESTION, Sampling(100))
    next(answers)
    answers.close()
    assert len(calls) < 100
    done = len(calls)
    assert models.score(QUESTION, ANSWER).tokens  # the lock has been released
    assert len(calls) == done + 2
    assert models.model.active_adapters == ["default"]


def test_what_goes_wrong_while_generating_reaches_the_reader(models):
    def fail(*_):
        raise RuntimeError("out of memory")

    hook = models.model.get_base_model().register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(models.answers(QUESTION, Sampling(3)))
    hook.remove()
    assert list(models.answers(QUESTION, Sampling(3)))


def test_two_who_ask_at_once_get_what_each_would_get_alone(models):
    questions = [QUESTION, "What does the gardener keep?"]
    alone = [last(models.answers(question, Sampling(20))) for question in questions]
    found = {}

    def ask(place):
        found[place] = last(models.answers(questions[place], Sampling(20)))

    threads = [Thread(target=ask, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(2)] == alone


def test_a_short_question_is_answered_while_a_long_one_is(models):
    begun, finished, order = Event(), Event(), []

    def ask():
        begun.wait()
        last(models.answers(QUESTION, Sampling(3)))
        finished.set()

    def before_each_token(*_):
        order.append(current_thread())
        begun.set()
        while current_thread() is order[0] and not finished.is_set() and not models._lock.contended:
            time.sleep(0.001)

    short = Thread(target=ask)
    short.start()
    hook = models.model.get_base_model().register_forward_pre_hook(before_each_token)
    long = last(models.answers("What does the gardener keep?", Sampling(60)))
    short.join()
    hook.remove()
    # Each answer has a thread of its own. The short question's second answer begins before the long question's first
    # one ends.
    sides = list(dict.fromkeys(order))
    assert len(sides) == 4
    assert order.index(sides[2]) < max(place for place, side in enumerate(order) if side is sides[0])
    assert last(models.answers("What does the gardener keep?", Sampling(60))) == long


def test_answers_end_after_the_time_that_they_have(models):
    short = SideBySide(models.model, models.text_format, max_seconds=1e-9)
    answers = short.answers(QUESTION, Sampling(50))
    *_, found = [copy.deepcopy(next(answers)) for _ in SIDES]
    assert [len(found[side]) for side in SIDES] == [1, 1]
    with pytest.raises(InputError, match="took more than 1e-09 seconds, and were cut"):
        next(answers)


def test_question_and_answer_may_only_be_so_long(models):
    short = SideBySide(models.model, models.text_format, max_tokens=40)
    assert short.longest == 40
    for wrong in (lambda: next(short.answers(QUESTION, Sampling(39))), lambda: short.score(QUESTION, "London " * 40)):
        with pytest.raises(InputError, match="and may have 40"):
            wrong()


def test_a_temperature_draws_tokens(models):
    torch.manual_seed(0)
    drawn = [last(models.answers(QUESTION, Sampling(8, 2.0)))["original"] for _ in range(2)]
    assert drawn[0] != drawn[1]
    torch.manual_seed(0)
    assert last(models.answers(QUESTION, Sampling(8, 2)))["original"] == drawn[0]


@pytest.mark.parametrize(
    ("question", "sampling", "message"),
    [
        (" \n", Sampling(5), "question=.*nothing to ask"),
        (QUESTION, Sampling(0), "max_new_tokens=0"),
        (QUESTION, Sampling(5, -1), "temperature=-1"),
        (QUESTION, Sampling(256), "max_new_tokens=256.*model's 256 positions"),
    ],
)
def test_what_cannot_be_asked_is_refused(models, question, sampling, message):
    with pytest.raises(InputError, match=message):
        next(models.answers(question, sampling))


def test_an_empty_answer_cannot_be_scored(models):
    with pytest.raises(InputError, match="no tokens"):
        models.score(QUESTION, " ")
