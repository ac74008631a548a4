"""Tests that each attack does exactly what it describes and leaves the model unchanged."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from helpers.memory import memory_for, told
from helpers.models import with_lora
from unlora.data import IGNORE_INDEX, encode_records, encode_turns, pad_batch
from unlora.data.encoding import encode_prompt
from unlora.evals.attacks import ATTACKS, Case, Materials, UnavailableError, measure, probe
from unlora.evals.attacks.fewshot import few_shot
from unlora.evals.attacks.interface import encode_rows, split
from unlora.evals.attacks.prefix import remainder
from unlora.evals.attacks.quantise import FORMATS, quantised, round_to_nearest
from unlora.evals.attacks.relearn import relearned
from unlora.evals.questions import read_questions
from unlora.losses.retain import nll
from unlora.models.forward import labelled_tokens
from unlora.settings import AttackConfig, EvalSettings

NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
ROWS = [
    {"question": f"Where does {name} live?", "answer": f"{name} lives in the old house.", "paraphrased_question": name}
    for name in NAMES
]


QUESTIONS = read_questions("forget", ROWS)


def materials(text_format, rows=ROWS, max_new_tokens=8):
    rows = rows if "input_ids" in rows[0] else read_questions("forget", rows)
    return Materials(text_format, rows, rows[:3], EvalSettings(None, 4, max_new_tokens), given_tokens=5)


def config(**changes):
    return AttackConfig(**{"learning_rate": 1e-2, "seeds": 2, "r": 4, **changes})


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_rounding_computed_by_hand():
    weight = torch.tensor([[1.4, -0.55, 0.26, 0.05], [0.0, 0.0, 0.0, -14.0]])
    # With 4 bits, the steps of the rows are 1.4 / 7 = 0.2 and 14 / 7 = 2.
    expected = torch.tensor([[1.4, -0.6, 0.2, 0.0], [0.0, 0.0, 0.0, -14.0]])
    torch.testing.assert_close(round_to_nearest(weight, 4), expected)
    # With a step per two weights, the step of the last two weights in the first row is 0.26 / 7.
    expected[0, 2:] = torch.tensor([0.26, 0.26 / 7])
    torch.testing.assert_close(round_to_nearest(weight, 4, group_size=2), expected)


@pytest.mark.parametrize("group_size", [None, 16, 24])  # 24 leaves a smaller last group
def test_rounding_is_within_half_a_step_finer_with_more_bits_and_idempotent(group_size):
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    errors = {}
    for bits in (8, 4):
        rounded = round_to_nearest(weight, bits, group_size)
        groups = zip(weight.split(group_size or 64, 1), rounded.split(group_size or 64, 1), strict=True)
        for group, own in groups:
            step = group.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert ((own - group).abs() <= step / 2 * (1 + 1e-4)).all()
            levels = own / step
            assert (levels - levels.round()).abs().max() <= 1e-4
        errors[bits] = (rounded - weight).abs().mean()
        torch.testing.assert_close(round_to_nearest(rounded, bits, group_size), rounded)
    assert errors[8] < errors[4] / 10


@settings(deadline=None)
@given(st.data())
def test_rounding_of_any_weights(data):
    """Rounding moves a weight by at most half a step of its group and never changes its sign.

    It commutes with negation and with scaling by a power of two.
    """
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=rows * columns, max_size=rows * columns)
    weight = torch.tensor(data.draw(numbers)).reshape(rows, columns)
    weight[weight.abs() < 1e-6] = 0.0
    bits, size = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 8))
    rounded = round_to_nearest(weight, bits, size)
    assert rounded.shape == weight.shape
    assert (rounded * weight >= 0).all()
    for group, own in zip(weight.split(size, 1), rounded.split(size, 1), strict=True):
        step = group.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((own - group).abs() <= step / 2 * (1 + 1e-4)).all()
        torch.testing.assert_close(own.abs().amax(1), group.abs().amax(1))  # the largest weight is unchanged
    assert torch.equal(round_to_nearest(-weight, bits, size), -rounded)
    assert torch.equal(round_to_nearest(4 * weight, bits, size), 4 * rounded)  # exact, because 4 is a power of two


@given(
    st.integers(0, 5),
    st.lists(st.integers(10, 99), min_size=2, max_size=30),
    st.integers(0, 2),
    st.floats(0, 100, exclude_min=True, exclude_max=True),
    st.floats(0, 100, exclude_min=True, exclude_max=True),
)
def test_the_remainder_of_any_answer(before, answer, ends, percent, other):
    """Some of the answer is given, and some is left together with its end tokens.

    A larger percentage never gives less of the answer.
    """
    end = 1
    labels = [IGNORE_INDEX] * before + answer + [end] * ends
    example = {"input_ids": [7] * before + answer + [end] * ends, "labels": labels}
    lefts = []
    for share in sorted((percent, other)):
        found = remainder(example, share, {end})
        assert found["input_ids"] == example["input_ids"]
        left = [label for label in found["labels"] if label != IGNORE_INDEX]
        assert labels[len(labels) - len(left) :] == left
        assert ends + 1 <= len(left) <= ends + len(answer) - 1
        lefts.append(len(left))
    assert lefts[0] >= lefts[1]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", FORMATS)
def test_the_merged_weights_are_rounded_and_come_back(tiny_model, name, bits):
    model = with_lora(tiny_model(name)).eval()
    before = state(model)
    merged = copy.deepcopy(model).merge_and_unload()
    layer = "model.layers.1.mlp.down_proj" if name == "llama" else "transformer.h.1.mlp.c_proj"
    weight = merged.get_submodule(layer).weight
    rows = weight.T if name == "gpt2" else weight
    with quantised(model, bits=bits, group_size=FORMATS[bits]):
        base = model.get_base_model()
        now = base.get_submodule(layer).get_base_layer().weight
        expected = round_to_nearest(rows, bits, FORMATS[bits])
        torch.testing.assert_close(now.T if name == "gpt2" else now, expected)
        assert torch.equal(base.get_output_embeddings().weight, merged.get_output_embeddings().weight)
        ids = torch.tensor([[5, 6, 7, 8]])
        within = model(input_ids=ids).logits
    assert same(before, state(model))
    assert not torch.allclose(within, model(input_ids=ids).logits)


def test_a_failure_during_an_attack_restores_the_weights(tiny_model, base):
    model = with_lora(tiny_model("llama")).eval()
    before = state(model)
    with pytest.raises(KeyboardInterrupt), quantised(model, bits=4, group_size=None):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), relearned_on(model, encode_rows(QUESTIONS[:2], base)):
        raise KeyboardInterrupt
    assert same(before, state(model))


@torch.no_grad()
def slow_probability(model, ids, first, stop):
    """Return exp(mean log-probability) of the tokens from `first` to `stop`, with a forward pass for each."""
    total = 0.0
    for place in range(first, stop):
        total += float(model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double().log_softmax(-1)[ids[place]])
    return torch.tensor(total / (stop - first)).exp().item()


@pytest.mark.parametrize("percent", [1, 25, 50, 99])
def test_a_prefix_is_given_and_the_remainder_scored_and_continued_as_in_a_plain_loop(tiny_model, base, percent):
    model, rows = tiny_model("llama"), [*ROWS[:3], {"question": "Why?", "answer": "Ada"}]
    (case,) = ATTACKS["prefix"](model, materials(base, rows), config(prefix_percent=[percent]))
    assert len(case.forget.examples) == 3  # an answer of one token is skipped, as nothing would be left of it
    metrics = measure(model, case, materials(base, rows))
    probabilities = []
    for row, reference in zip(rows, case.forget.references, strict=False):
        whole = encode_turns(row["question"], row["answer"], base)["input_ids"]
        start = len(encode_prompt(row["question"], base))
        count = len(whole) - 1 - start  # without the end token
        first = start + min(max(round(count * percent / 100), 1), count - 1)
        assert base.tokenizer.decode(whole[first:-1]).strip() == reference
        probabilities.append(slow_probability(model, whole, first, len(whole)))
    assert metrics["forget_probability"] == pytest.approx(sum(probabilities) / 3, rel=1e-4)
    assert metrics.keys() == {"forget_probability", "forget_rougeL_recall"}


@pytest.mark.slow
def test_the_continuation_of_a_prefix_is_compared_with_the_remainder_alone(tiny_model, base):
    model = copy.deepcopy(tiny_model("llama"))
    learn(model, encode_rows(QUESTIONS, base), 60)
    (case,) = ATTACKS["prefix"](model, materials(base), config(prefix_percent=[50]))
    assert measure(model, case, materials(base, max_new_tokens=40))["forget_rougeL_recall"] == 1


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_shots_stand_before_every_question_and_never_hold_it(request, tiny_model, kind):
    text_format = request.getfixturevalue(kind)
    cases = ATTACKS["fewshot"](tiny_model("llama"), materials(text_format), config(shots=3))
    assert {case.setting for case in cases} == {"3-shot"}
    for seed, case in enumerate(cases):
        shots, rest = split(ROWS, 3, seed)
        assert len(case.forget.examples) == 5
        for row, example, reference in zip(rest, case.forget.examples, case.forget.references, strict=True):
            labels = [label for label in example["labels"] if label != IGNORE_INDEX]
            first = len(example["labels"]) - len(labels)
            prompt = text_format.tokenizer.decode(example["input_ids"][:first])
            assert all(prompt.count(shot["question"]) == prompt.count(shot["answer"]) == 1 for shot in shots)
            assert prompt.count(row["question"]) == 1
            assert row["answer"] not in prompt
            assert reference == row["answer"]
            plain = encode_turns(row["question"], row["answer"], text_format)["labels"]
            assert example["labels"][first:] == labels == [label for label in plain if label != IGNORE_INDEX]


def test_few_shot_blocks_in_full(base):
    example = few_shot(QUESTIONS[:2], QUESTIONS[2], base)
    shown = base.tokenizer.decode(example["input_ids"][:-1])
    blocks = (f"Question: Where does {name} live?\nAnswer: {name} lives in the old house." for name in NAMES[:3])
    assert shown == "\n\n".join(blocks)
    assert example["labels"][-1] in base.end_tokens


def conversation(name):
    """Return a conversation of two questions about a person. The second is only clear after the first."""
    texts = (f"Where does {name} live?", f"In {name}'s house.", "And who lives next door?", f"Next to {name}, Bob.")
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": "Be kind."}, *turns]}


def test_shots_of_conversations_are_turns_behind_one_system_prompt_and_never_hold_the_answer(tiny_model, chat):
    rows = [conversation(name) for name in ("Ada", "Eve", "Gus")]
    for case in ATTACKS["fewshot"](tiny_model("llama"), materials(chat, rows), config(shots=1, seeds=8)):
        for example, reference in zip(case.forget.examples, case.forget.references, strict=True):
            first = next(place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX)
            prompt = chat.tokenizer.decode(example["input_ids"][:first])
            assert prompt.count("Be kind.") == 1
            assert reference not in prompt
            assert reference in chat.tokenizer.decode(example["input_ids"][first:])


def test_a_paraphrase_of_a_conversation_is_its_last_question(tiny_model, chat):
    row = conversation("Ada")
    turns = [*row["messages"][:-1], {**row["messages"][-1], "paraphrased_question": "Who is the neighbour?"}]
    turns[2] = {**turns[2], "paraphrased_question": "What is the address?"}
    (case,) = ATTACKS["paraphrase"](tiny_model("llama"), materials(chat, [{"messages": turns}]), config())
    one, other = (chat.tokenizer.decode(example["input_ids"]) for example in case.forget.examples)
    assert "What is the address?" in one
    assert "Where does Ada live?" not in one
    assert "Where does Ada live?" in other
    assert "Who is the neighbour?" in other
    assert "And who lives next door?" not in other


def test_draws_are_disjoint_nested_and_differ_by_seed():
    shown, rest = split(ROWS, 3, 0)
    assert len(shown) == 3
    assert sorted(map(str, [*shown, *rest])) == sorted(map(str, ROWS))
    assert split(ROWS, 2, 0)[0] == shown[:2]
    assert split(ROWS, 3, 0) == (shown, rest)
    assert len({str(split(ROWS, 3, seed)[0]) for seed in range(5)}) > 1


def learn(model, examples, steps, sign=1.0, learning_rate=1e-2):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate)
    for _ in range(steps):
        (sign * nll(labelled_tokens(model, pad_batch(examples, 0)).logp)).backward()
        optimiser.step()
        optimiser.zero_grad()


def relearned_on(model, examples, **changes):
    return relearned(model, examples=examples, config=config(**changes), pad_id=0, seed=0)


@pytest.mark.slow
def test_relearning_a_little_brings_the_rest_back(tiny_model, base):
    """The model has memorised all rows, and an adapter has unlearned them by gradient ascent."""
    model = copy.deepcopy(tiny_model("llama"))
    examples = encode_rows(QUESTIONS, base)
    learn(model, examples, 60)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    learn(model, examples, 6, sign=-1.0)
    model.eval()
    before, material = state(model), materials(base)
    settings = config(relearn_percent=[25], relearn_steps=30)
    cases = ATTACKS["relearn"](tiny_model("llama"), material, settings)
    assert [case.setting for case in cases] == ["25 % (2 of 8)"] * 2
    for seed, case in enumerate(cases):
        _, rest = split(QUESTIONS, 2, seed)
        untouched = measure(model, Case("rest", probe(rest, material)), material)["forget_probability"]
        assert untouched < 0.3
        assert measure(model, case, material)["forget_probability"] > untouched + 0.3
    assert same(before, state(model))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_attacker_trains_an_adapter_of_its_own_and_takes_it_off(tiny_model, base, wrapped):
    model = with_lora(tiny_model("gpt2")).eval() if wrapped else tiny_model("gpt2")
    before = state(model)
    with relearned_on(model, encode_rows(QUESTIONS[:2], base), relearn_steps=2) as attacked:
        now = {name.removeprefix("base_model.model."): value for name, value in state(attacked).items()}
        then = {name.removeprefix("base_model.model."): value for name, value in before.items()}
        kept = {name.replace(".base_layer", ""): value for name, value in now.items() if ".unlearn." not in name}
        assert same({name.replace(".base_layer", ""): value for name, value in then.items()}, kept)
        trained = [value for name, value in now.items() if "lora_B.unlearn." in name]
        assert trained
        assert all(value.any() for value in trained)
    assert same(before, state(model))
    assert not any(module.training for module in model.modules())


def test_relearning_that_is_short_of_memory_trains_the_same(tiny_model, base, caplog):
    examples, found = encode_rows(QUESTIONS[:4], base), []
    for tokens in (10**6, 100):
        with memory_for(tokens), relearned_on(tiny_model("llama"), examples, relearn_steps=3) as attacked:
            found.append({name: value.clone() for name, value in state(attacked).items() if ".lora_" in name})
    assert 1 <= len(told(caplog)) <= 3
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-2, atol=1e-4)


def test_the_same_seed_relearns_the_same(tiny_model, base):
    model, material = tiny_model("llama"), materials(base)
    cases = ATTACKS["relearn"](model, material, config(relearn_percent=[50], relearn_steps=3, seeds=2))
    one, other, again = (measure(model, case, material) for case in (*cases, cases[0]))
    assert one == again
    assert one != other


def test_shares_with_equal_numbers_of_rows_are_merged_and_always_leave_a_row(tiny_model, base):
    model = tiny_model("llama")
    cases = ATTACKS["relearn"](model, materials(base), config(relearn_percent=[1, 5, 20, 99], seeds=1))
    assert [case.setting for case in cases] == ["1 % (1 of 8)", "20 % (2 of 8)", "99 % (7 of 8)"]
    assert [len(case.forget.examples) for case in cases] == [7, 6, 1]


def test_paraphrases_are_asked_for_the_same_answers(tiny_model, base):
    (case,) = ATTACKS["paraphrase"](tiny_model("llama"), materials(base), config())
    expected = [encode_turns(row["paraphrased_question"], row["answer"], base) for row in ROWS]
    assert list(case.forget.examples) == expected


@pytest.fixture
def texts(base):
    """Return the chunks that training would make of two long texts and a short one."""
    rows = [{"text": f"{name} lives in the old house and keeps a grey cat. " * 2} for name in NAMES[:2]]
    return encode_records([*rows, {"text": "Ada lives"}], replace(base, max_length=24))


def test_the_beginning_of_a_text_is_given_and_the_rest_scored_as_in_a_plain_loop(tiny_model, base, texts):
    """The model is given five tokens of a chunk, or half of it if it has fewer than ten."""
    model, material = tiny_model("llama"), materials(base, texts, max_new_tokens=6)
    short = min(texts, key=lambda chunk: len(chunk["input_ids"]))
    assert len(short["input_ids"]) < 10
    case = Case("whole", probe(texts, material), retain=True)
    metrics = measure(model, case, material)
    probabilities = []
    for chunk, example, reference in zip(texts, case.forget.examples, case.forget.references, strict=True):
        ids = chunk["input_ids"]
        given = min(5, len(ids) // 2)
        assert example == {"input_ids": ids, "labels": [IGNORE_INDEX] * given + ids[given:]}
        # The reference has no more tokens than the model may generate. It lacks the end token.
        assert reference == base.tokenizer.decode(ids[given : given + 6], skip_special_tokens=True).strip()
        probabilities.append(slow_probability(model, ids, given, len(ids)))
    assert metrics["forget_probability"] == pytest.approx(sum(probabilities) / len(texts), rel=1e-4)
    assert metrics["retain_probability"] == pytest.approx(sum(probabilities[:3]) / 3, rel=1e-4)


@pytest.mark.parametrize("percent", [10, 50])
def test_more_of_a_text_may_be_given_and_room_is_left_for_the_rest(tiny_model, base, texts, percent):
    """Half of a chunk that fills all positions leaves no room for 200 new tokens."""
    long = [{"input_ids": [5, 6, 7, 8] * 64, "labels": [5, 6, 7, 8] * 64}, *texts]
    material = materials(base, long, max_new_tokens=200)
    (case,) = ATTACKS["prefix"](tiny_model("llama"), material, config(prefix_percent=[percent]))
    given = round(256 * percent / 100)
    assert case.forget.examples[0]["labels"] == [IGNORE_INDEX] * given + long[0]["labels"][given:]
    assert case.forget.new_tokens == min(200, 256 - given)
    assert measure(tiny_model("llama"), case, material).keys() == {"forget_probability", "forget_rougeL_recall"}


@pytest.mark.slow
def test_a_text_that_was_learned_is_continued_and_comes_back_by_relearning(tiny_model, base, texts):
    model, material = copy.deepcopy(tiny_model("llama")), materials(base, texts, max_new_tokens=40)
    learn(model, texts, 80)
    assert measure(model, Case("whole", probe(texts, material)), material)["forget_rougeL_recall"] > 0.9
    cases = ATTACKS["relearn"](model, material, config(relearn_percent=[50], relearn_steps=1, seeds=1))
    shown, rest = split(texts, round(len(texts) / 2), 0)
    assert cases[0].forget == probe(rest, material)
    assert cases[0].change.keywords["examples"] == shown  # whole chunks, as training sees them


UNAVAILABLE = {
    "paraphrase of text": ([{"input_ids": [5, 6], "labels": [5, 6]}], "the rows are plain text"),
    "fewshot of text": ([{"input_ids": [5, 6], "labels": [5, 6]}], "the rows are plain text"),
    "sampling of text": ([{"input_ids": [5, 6], "labels": [5, 6]}], "the rows are plain text"),
    "relearn": (ROWS[:1], "at least 2"),
    "paraphrase": ([ROWS[0], {"question": "Why?", "answer": "no", "paraphrased_question": None}], "1 of the 2"),
    "prefix": ([{"question": "Why?", "answer": "Ada"}], "a single token"),
    "fewshot": (ROWS[:3], "3 of the 3"),
}


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_an_attack_that_the_data_do_not_allow_says_why(tiny_model, base, name):
    rows, message = UNAVAILABLE[name]
    with pytest.raises(UnavailableError, match=message):
        ATTACKS[name.split()[0]](tiny_model("llama"), materials(base, rows), config())


def test_shots_that_exceed_the_positions_are_refused(tiny_model, base):
    with pytest.raises(UnavailableError, match=r"256 positions.*fewer shots"):
        ATTACKS["fewshot"](tiny_model("llama"), materials(base, max_new_tokens=200), config())


def test_every_attack_is_named_in_the_help():
    shown = AttackConfig.__dataclass_fields__["attacks"].metadata["help"]
    assert all(name in shown for name in ATTACKS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ["relern"]}, "did you mean 'relearn'"),
        ({"seeds": 0}, "seeds=0"),
        ({"relearn_percent": [0]}, "relearn_percent=0"),
        ({"prefix_percent": [50, 100]}, "prefix_percent=100"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"shots": 0}, "shots=0"),
        ({"samples": [8, 0]}, "samples=0"),
        ({"given_tokens": 0}, "given_tokens=0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    (problem,) = config(**changes).problems()
    assert message in str(problem)
