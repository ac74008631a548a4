import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.models import ARCHITECTURES
from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, TextFormat, encode_records, pad_batch
from unlora.models.forward import (
    HiddenStates,
    LabelledTokens,
    causal_lm,
    check_layer,
    decoder_layers,
    hidden_states,
    labelled_tokens,
)
from unlora.models.memory import enable_checkpointing

ROWS = [
    {"question": "Where was Ada Lovelace born?", "answer": "London."},
    {"question": "Why?", "answer": "Nobody minds at all, and the gardener of the old house keeps two dogs."},
    {"text": "The quick brown fox jumps."},  # labelled from its first token on, which no position predicts
]


@pytest.fixture
def examples(tokenizer):
    return encode_records(ROWS, TextFormat(tokenizer))


def alone(model, example):
    """Run the model on one row without padding, and return the logits and targets of its labelled tokens."""
    logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
    places = [t for t, label in enumerate(example["labels"]) if label != IGNORE_INDEX and t > 0]
    return logits[[t - 1 for t in places]], [example["labels"][t] for t in places]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_predictions_of_labels_are_the_models_own(tiny_model, examples, name, side):
    model = tiny_model(name)
    out = labelled_tokens(model, pad_batch(examples, 0, side))
    for row, example in enumerate(examples):
        logits, targets = alone(model, example)
        part = out.rows(row, row + 1)
        assert part.targets.tolist() == targets
        torch.testing.assert_close(part.logits, logits, atol=2e-5, rtol=1e-4)
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["labels"]])
        loss = model(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(-part.logp.mean(), loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_inside_a_peft_model_the_adapter_counts(tiny_model, examples, side):
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    out = labelled_tokens(model.eval(), pad_batch(examples, 0, side))
    expected = torch.cat([alone(model, example)[0] for example in examples])
    torch.testing.assert_close(out.logits, expected, atol=2e-5, rtol=1e-4)
    with model.disable_adapter():
        assert not torch.allclose(labelled_tokens(model, pad_batch(examples, 0, side)).logits, expected, atol=1e-2)


def test_the_first_token_is_predicted_from_nothing_on_either_side(tiny_model, examples):
    for side in ("left", "right"):
        out = labelled_tokens(tiny_model("llama"), pad_batch(examples, 0, side))
        assert out.counts.tolist() == [
            *(sum(label != IGNORE_INDEX for label in example["labels"]) for example in examples[:2]),
            len(examples[2]["labels"]) - 1,
        ]


def test_sums_and_counts_follow_the_rows_of_the_batch():
    """Row 0 has tokens with the probabilities 1/2 and 1/4, row 1 has none, and row 2 has one with 1/4."""
    logits = torch.tensor([[0.5, 0.25, 0.25]] * 3).log()
    out = LabelledTokens(logits, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2]), 3)
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(out.logp, -log2 * torch.tensor([1, 2, 2]))
    torch.testing.assert_close(out.example_logp, -log2 * torch.tensor([3, 0, 2]))
    assert out.counts.tolist() == [2, 0, 1]


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 3), (1, 3), (0, 3), (1, 2), (1, 1)])
def test_rows_are_what_the_batch_of_those_rows_alone_would_give(start, stop):
    example = torch.tensor([0, 0, 2, 2, 2])  # row 1 has no label
    logits, targets = torch.randn(5, 7), torch.arange(5)
    part = LabelledTokens(logits, targets, example, 3).rows(start, stop)
    chosen = (example >= start) & (example < stop)
    torch.testing.assert_close(part.logits, logits[chosen])
    assert part.targets.tolist() == targets[chosen].tolist()
    assert part.example.tolist() == (example[chosen] - start).tolist()
    assert part.examples == stop - start


def test_a_batch_without_labels_gives_no_tokens(tiny_model, examples):
    batch = pad_batch(examples, 0)
    out = labelled_tokens(tiny_model("llama"), {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)})
    assert out.logits.shape[0] == 0
    assert out.counts.tolist() == [0, 0, 0]


def test_the_head_sees_labelled_positions_only_and_is_left_alone_afterwards(tiny_model, examples):
    model = tiny_model("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:2]))
    batch = pad_batch(examples, 0)
    out = labelled_tokens(model, batch)
    assert seen == [(1, int(out.counts.sum()))]
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_a_failing_forward_pass_leaves_no_hook(tiny_model, examples):
    model = tiny_model("llama")
    batch = pad_batch(examples, 0)
    bad = {**batch, "input_ids": batch["input_ids"] + 100_000}
    with pytest.raises(IndexError):
        labelled_tokens(model, bad)
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_causal_lm_is_the_transformers_model_with_and_without_peft(tiny_model):
    base = tiny_model("llama")
    assert causal_lm(base) is base
    assert causal_lm(get_peft_model(base, LoraConfig(target_modules="all-linear"))) is base


@torch.no_grad()
def test_in_double_precision_the_log_probabilities_are_double(tiny_model, examples):
    model = copy.deepcopy(tiny_model("gpt2")).double()
    assert labelled_tokens(model, pad_batch(examples, 0)).logp.dtype == torch.float64


# Hidden states


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_hidden_states_are_the_layer_s_own_output_where_labels_are_predicted(tiny_model, examples, name, layer, side):
    model = tiny_model(name)
    out = hidden_states(model, pad_batch(examples, 0, side), layer)
    expected = []
    hook = decoder_layers(model)[2][layer].register_forward_hook(
        lambda module, args, output: expected.append((output[0] if isinstance(output, tuple) else output)[0])
    )
    for row, example in enumerate(examples):
        model(input_ids=torch.tensor([example["input_ids"]]))
        places = [t - 1 for t, label in enumerate(example["labels"]) if label != IGNORE_INDEX and t > 0]
        torch.testing.assert_close(out.rows(row, row + 1).states, expected[row][places], atol=2e-5, rtol=1e-4)
    hook.remove()


def count_calls(modules):
    """Return a list to which each module appends its index when it runs."""
    calls = []
    for place, module in enumerate(modules):
        module.register_forward_hook(lambda *_, place=place: calls.append(place))
    return calls


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_after_the_one_that_is_read_are_not_run_and_the_model_is_whole_afterwards(
    tiny_model, examples, name, wrapped
):
    model = tiny_model(name)
    batch = pad_batch(examples, 0)
    before = model(input_ids=batch["input_ids"]).logits
    _, _, layers = decoder_layers(model)
    calls = count_calls(layers)
    head_inputs = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, _: head_inputs.append(args[0].shape[:2]))
    outer = get_peft_model(model, LoraConfig(target_modules="all-linear")) if wrapped else model
    hidden_states(outer, batch, 0)
    assert calls == [0]
    assert head_inputs == [(1, 0)]
    assert decoder_layers(model)[2] is layers
    torch.testing.assert_close(outer(input_ids=batch["input_ids"]).logits, before)
    assert calls == [0, 0, 1]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_checkpoints_change_no_gradient_of_hidden_states(tiny_model, examples, name, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(name).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            enable_checkpointing(model, {"use_reentrant": reentrant})
        hidden_states(model, pad_batch(examples, 0), 1).states.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-4, atol=1e-6)


def test_a_failing_forward_pass_leaves_all_layers(tiny_model, examples):
    model = tiny_model("llama")
    layers = decoder_layers(model)[2]
    batch = pad_batch(examples, 0)
    with pytest.raises(IndexError):
        hidden_states(model, {**batch, "input_ids": batch["input_ids"] + 100_000}, 0)
    assert decoder_layers(model)[2] is layers
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_rows_of_hidden_states_are_those_of_their_examples():
    example = torch.tensor([0, 0, 2, 2, 2])  # row 1 has no label
    states = torch.randn(5, 3)
    part = HiddenStates(states, example, 3).rows(1, 3)
    assert torch.equal(part.states, states[2:])
    assert part.example.tolist() == [1, 1, 1]
    assert part.examples == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layer_is_checked_against_the_model_s_depth(tiny_model, name):
    model = get_peft_model(tiny_model(name), LoraConfig(target_modules="all-linear"))
    assert check_layer(model, 0) == check_layer(model, 1) == []
    [problem] = check_layer(model, 2)
    assert str(problem) == ("loss_kwargs['layer']=2: the model has 2 decoder layers. Fix: use a layer from 0 to 1.")


def test_a_model_without_a_list_of_layers_is_refused(tiny_model):
    model = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(InputError, match="it has no list of 5 decoder layers"):
        check_layer(model, 0)
