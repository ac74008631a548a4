import copy
import math

import pytest
import torch

from helpers.models import ARCHITECTURES, with_lora
from helpers.scoring import PAIRS, QUESTIONS, answer_nll
from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, encode_records, encode_turns
from unlora.data.encoding import encode_prompt
from unlora.evals import scoring
from unlora.evals.generation import generate_answers
from unlora.evals.scoring import example_nll, score_tokens


@torch.no_grad()
def slow_nll(model, question, answer, text_format):
    """Return the summed NLL of one answer and its number of labels, computed in float64 without padding."""
    example = encode_turns(question, answer, text_format)
    ids = torch.tensor([example["input_ids"]])
    logp = copy.deepcopy(model).double()(input_ids=ids).logits[0].log_softmax(-1)
    chosen = [place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX]
    return -sum(float(logp[place - 1, example["labels"][place]]) for place in chosen), len(chosen)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_scores_equal_a_plain_loop(tiny_model, base, name):
    model = tiny_model(name)
    sums, tokens = answer_nll(model, PAIRS, base, batch_size=3)
    expected = [slow_nll(model, *pair, base) for pair in PAIRS]
    assert sums == pytest.approx([nll for nll, _ in expected], rel=1e-5)
    assert tokens.tolist() == [count for _, count in expected]


def test_chat_scores_equal_a_plain_loop(chat_model, chat):
    sums, tokens = answer_nll(chat_model, PAIRS, chat, batch_size=2)
    expected = [slow_nll(chat_model, *pair, chat) for pair in PAIRS]
    assert sums == pytest.approx([nll for nll, _ in expected], rel=1e-5)
    assert tokens.tolist() == [count for _, count in expected]


def test_the_batch_size_changes_nothing(tiny_model, base):
    model = tiny_model("llama")
    whole, _ = answer_nll(model, PAIRS, base, batch_size=8)
    single, _ = answer_nll(model, PAIRS, base, batch_size=1)
    assert whole == pytest.approx(single, rel=1e-5)


def test_an_adapter_counts_unless_it_is_disabled(tiny_model, base):
    base_model = tiny_model("llama")
    sums, _ = answer_nll(base_model, PAIRS, base, batch_size=8)
    model = with_lora(base_model)
    changed, _ = answer_nll(model, PAIRS, base, batch_size=8)
    assert changed == pytest.approx([slow_nll(model, *pair, base)[0] for pair in PAIRS], rel=1e-5)
    assert abs(changed - sums).min() > 1e-2
    with model.disable_adapter():
        assert answer_nll(model, PAIRS, base, batch_size=8)[0] == pytest.approx(sums)


def test_dropout_is_off_while_scoring_and_each_module_gets_its_mode_back(tiny_model, base):
    model = tiny_model("gpt2")  # GPT-2 has dropout
    sums, _ = answer_nll(model, PAIRS, base, batch_size=8)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert answer_nll(model, PAIRS, base, batch_size=8)[0] == pytest.approx(sums)
    generate_answers(model, QUESTIONS[:1], base, max_new_tokens=2)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_can_be_trained_after_it_was_scored(tiny_model, base, name):
    model = with_lora(tiny_model(name))
    answer_nll(model, PAIRS, base, batch_size=8)
    generate_answers(model, QUESTIONS[:2], base, max_new_tokens=2)
    ids = torch.tensor([encode_prompt(QUESTIONS[0], base)])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


def test_progress_counts_finished_items(tiny_model, base):
    done = []
    answer_nll(tiny_model("llama"), PAIRS, base, batch_size=2, progress=done.append)
    assert done == [2, 4, 5]


@pytest.mark.parametrize(
    ("pairs", "batch_size", "message"),
    [
        ([], 1, "questions_answers='0 pairs'"),
        ([("Why?", " ")], 1, r"questions_answers\[0\].*no tokens"),
        (PAIRS, 0, "batch_size=0.*at least 1"),
        ([("Why?", "no " * 300)], 1, "max_length=512.*use at most 256"),
    ],
)
def test_wrong_input_is_named(tiny_model, base, pairs, batch_size, message):
    with pytest.raises(InputError, match=message):
        answer_nll(tiny_model("gpt2"), pairs, base, batch_size)


@torch.no_grad()
def slow_tokens(model, example):
    """Return logp, mean, std and match of each label, [4, labels], computed in float64 without padding."""
    logits = copy.deepcopy(model).double()(input_ids=torch.tensor([example["input_ids"]])).logits[0]
    rows = []
    for place, label in enumerate(example["labels"]):
        if place and label != IGNORE_INDEX:
            logp = logits[place - 1].log_softmax(-1)
            probability = logp.exp()
            mean = sum(p * value for p, value in zip(probability, logp, strict=True))
            variance = sum(p * (value - mean) ** 2 for p, value in zip(probability, logp, strict=True))
            rows.append((logp[label], mean, variance.sqrt(), float(logp.argmax() == label)))
    return torch.tensor(rows).T.numpy()


def token_examples(text_format):
    """Return examples of questions with answers, and of a plain text, in which every token is labelled."""
    rows = [{"question": question, "answer": answer} for question, answer in PAIRS]
    return encode_records([*rows, {"text": "The quick brown fox jumps over the lazy dog."}], text_format)


def assert_scores(ours, theirs, tolerance):
    for mine, others in zip(ours, theirs, strict=True):
        for name, expected in zip(("logp", "mean", "std"), others, strict=False):
            assert getattr(mine, name) == pytest.approx(expected, rel=tolerance, abs=tolerance), name
        assert mine.matches.tolist() == others[3].astype(bool).tolist()


def greedy_labels(model, example, places):
    """Return the example with the model's most likely tokens at `places`, so that these labels match.

    All tokens except the first are labelled.
    """
    ids = list(example["input_ids"])
    for place in places:
        ids[place] = int(model(input_ids=torch.tensor([ids])).logits[0, place - 1].argmax())
    return {"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]]}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_token_scores_equal_a_plain_loop_in_float64(tiny_model, base, name, monkeypatch):
    model = tiny_model(name)
    examples = token_examples(base)
    examples.append(greedy_labels(model, examples[0], (3, 5, 6, 9)))
    monkeypatch.setattr(scoring, "BLOCK", 7 * len(base.tokenizer))  # the logits of seven tokens at a time
    ours = score_tokens(model, examples, base, batch_size=3)
    assert_scores(ours, [slow_tokens(model, example) for example in examples], 1e-4)
    assert 4 <= ours[-1].matches.sum() < len(ours[-1].matches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_scores_add_up_to_the_loss(tiny_model, base, dtype):
    model, examples = tiny_model("llama").to(dtype), token_examples(base)
    sums, tokens = example_nll(model, examples, base, batch_size=4)
    scores = score_tokens(model, examples, base, batch_size=4)
    assert [-row.logp.sum() for row in scores] == pytest.approx(sums, rel=1e-5)
    assert [len(row.matches) for row in scores] == tokens.tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_token_scores_depend_on_neither_the_batch_nor_its_blocks(tiny_model, base, name, monkeypatch):
    model, examples = with_lora(tiny_model(name)), token_examples(base)
    whole = score_tokens(model, examples, base, batch_size=8)
    monkeypatch.setattr(scoring, "BLOCK", 1)
    single = score_tokens(model, examples, base, batch_size=1)
    assert_scores(whole, [(row.logp, row.mean, row.std, row.matches) for row in single], 1e-5)


def test_token_scores_count_an_adapter_and_leave_the_model_as_it_was(tiny_model, base):
    examples = token_examples(base)
    plain = score_tokens(tiny_model("gpt2"), examples, base, batch_size=8)
    model = with_lora(tiny_model("gpt2")).train()
    model.base_model.model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    first, again = (score_tokens(model, examples, base, batch_size=8) for _ in range(2))
    assert all((one.logp == other.logp).all() for one, other in zip(first, again, strict=True))  # dropout was off
    assert abs(first[0].logp - plain[0].logp).max() > 1e-2
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    with model.disable_adapter():
        assert score_tokens(model, examples, base, batch_size=8)[0].logp == pytest.approx(plain[0].logp, abs=1e-6)


def test_tokens_of_probability_0_do_not_affect_the_statistics(tiny_model, base):
    """All logits are −∞ except two equal ones, so log p = μ = log ½ and σ = 0."""
    model = tiny_model("llama")
    logits = torch.full((len(base.tokenizer),), -torch.inf)
    logits[[40, 41]] = 0
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, out: logits.expand_as(out))
    [row] = score_tokens(model, [{"input_ids": [50, 40], "labels": [IGNORE_INDEX, 40]}], base, batch_size=1)
    hook.remove()
    assert row.logp == pytest.approx([math.log(0.5)])
    assert row.mean == pytest.approx([math.log(0.5)])
    assert row.std == pytest.approx([0], abs=1e-6)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "examples='0 examples'"),
        ([{"input_ids": [5, 6], "labels": [5, IGNORE_INDEX]}], r"examples\[0\]='2 tokens': it has no predicted label"),
        ([{"input_ids": [5] * 300, "labels": [5] * 300}], "max_length=512.*256 positions"),
    ],
)
def test_examples_that_cannot_be_scored_are_refused(tiny_model, base, examples, message):
    with pytest.raises(InputError, match=message):
        score_tokens(tiny_model("llama"), examples, base, batch_size=1)
