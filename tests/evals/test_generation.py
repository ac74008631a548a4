import copy
import warnings

import pytest
import torch

from helpers.chat import CHATML
from helpers.models import ARCHITECTURES, with_lora
from helpers.scoring import PAIRS, QUESTIONS
from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, TextFormat, encode_turns
from unlora.data.encoding import encode_prompt
from unlora.evals.generation import generate_answers


@torch.no_grad()
def slow_answer(model, question, text_format, new):
    """Return the greedy answer to one question, generated token by token without a cache."""
    ids = encode_prompt(question, text_format)
    answer = []
    while len(answer) < new:
        token = int(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
        if token in text_format.end_tokens:
            break
        answer.append(token)
    return text_format.tokenizer.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_answers_equal_a_plain_loop(tiny_model, base, name):
    model = tiny_model(name)
    # A random model whose output head is tied to the input embedding repeats one token, whatever the prompt.
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape))
    answers = generate_answers(model, QUESTIONS, base, max_new_tokens=12, batch_size=3)
    assert answers == [slow_answer(model, question, base, 12) for question in QUESTIONS]
    assert len(set(answers)) > 1


def test_chat_answers_equal_a_plain_loop(chat_model, chat):
    answers = generate_answers(chat_model, QUESTIONS, chat, max_new_tokens=12, batch_size=4)
    assert answers == [slow_answer(chat_model, question, chat, 12) for question in QUESTIONS]


@pytest.mark.parametrize("text_format", ["base", "chat"])
def test_the_prompt_is_what_answers_are_scored_after(request, text_format):
    text_format = request.getfixturevalue(text_format)
    for question, answer in PAIRS:
        prompt = encode_prompt(question, text_format)
        scored = encode_turns(question, answer, text_format)
        assert scored["input_ids"][: len(prompt)] == prompt
        assert scored["labels"][: len(prompt)] == [IGNORE_INDEX] * len(prompt)
        assert IGNORE_INDEX not in scored["labels"][len(prompt) :]


def forced(model, token, at):
    """Make `token` the most likely one at generation step `at` (from 1) in every row, and return the hook's handle."""
    calls = 0

    def hook(module, args, logits):
        nonlocal calls
        calls += 1
        if calls == at:
            logits[..., token] += 1e4
        return logits

    return model.get_output_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize("end", ["<eos>", "<|im_end|>"])
def test_an_answer_ends_at_eos_and_at_the_end_of_turn(chat_model, chat, end):
    token = chat.tokenizer.convert_tokens_to_ids(end)
    short = generate_answers(chat_model, QUESTIONS[:1], chat, max_new_tokens=4)
    hook = forced(chat_model, token, at=5)
    ended = generate_answers(chat_model, QUESTIONS[:1], chat, max_new_tokens=12)
    hook.remove()
    assert ended == short
    assert generate_answers(chat_model, QUESTIONS[:1], chat, max_new_tokens=12) != short


def test_an_end_token_that_the_tokenizer_does_not_name_is_found(tokenizer):
    """Some tokenizers mark their end-of-turn token as special without listing it among the named special tokens."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    own.chat_template = CHATML
    assert "<|im_end|>" not in own.all_special_tokens
    expected = {own.eos_token_id, own.convert_tokens_to_ids("<|im_end|>")}
    assert TextFormat(own, "chat").end_tokens == expected


def test_base_answers_end_at_eos_alone(base, tokenizer):
    assert base.end_tokens == {tokenizer.eos_token_id}


def test_a_models_own_generation_settings_do_not_leak(tiny_model, base, capfd):
    model = tiny_model("llama")
    expected = generate_answers(model, QUESTIONS, base, max_new_tokens=12)
    own = model.generation_config
    own.update(do_sample=True, temperature=9.0, top_k=3, repetition_penalty=3.0, num_beams=2, max_length=7)
    own.update(suppress_tokens=list(range(40, 90)), no_repeat_ngram_size=1, eos_token_id=[45, 46])
    settings = own.to_dict()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate_answers(model, QUESTIONS, base, max_new_tokens=12) == expected
    assert capfd.readouterr().err == ""
    assert model.generation_config is own
    assert own.to_dict() == settings


def test_an_adapter_counts_unless_it_is_disabled(tiny_model, base):
    base_model = tiny_model("llama")
    answers = generate_answers(base_model, QUESTIONS, base, max_new_tokens=12)
    model = with_lora(base_model)
    changed = generate_answers(model, QUESTIONS, base, max_new_tokens=12)
    assert changed == [slow_answer(model, question, base, 12) for question in QUESTIONS]
    assert changed != answers
    with model.disable_adapter():
        assert generate_answers(model, QUESTIONS, base, max_new_tokens=12) == answers


def test_progress_counts_finished_questions(tiny_model, base):
    done = []
    generate_answers(tiny_model("llama"), QUESTIONS, base, max_new_tokens=1, batch_size=3, progress=done.append)
    assert done == [3, 4]


@pytest.mark.parametrize(
    ("questions", "max_new_tokens", "message"),
    [
        ([], 200, "questions='0 questions'"),
        (["Why?"], 0, "max_new_tokens=0"),
        (["Why?"], 256, "max_new_tokens=256.*256 positions.*at most"),
        (["Why? " * 200], 2, "shorten the questions"),
    ],
)
def test_wrong_input_is_named(tiny_model, base, questions, max_new_tokens, message):
    with pytest.raises(InputError, match=message):
        generate_answers(tiny_model("gpt2"), questions, base, max_new_tokens)
