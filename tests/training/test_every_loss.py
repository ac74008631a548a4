"""Training with every loss, including its retain loss, its reference model and the answers that it reads."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch

from helpers.models import ARCHITECTURES
from helpers.trainer import FORGET, RETAIN, adapter_state, config, examples, make_trainer
from unlora import InputError, UnlearnTrainer, attach_adapters
from unlora.adapter import reference_model
from unlora.data import TextFormat, alternate_answers, encode_answers, iter_batches, pad_batch
from unlora.importance import INITIALISERS, Measurement
from unlora.losses.table import LOSSES
from unlora.models.forward import hidden_states, labelled_tokens
from unlora.settings import ImportanceConfig
from unlora.teachers import TEACHERS, Teaching

pytestmark = pytest.mark.slow

SETTINGS = {"rmu": {"layer": 1}}  # the tiny models have only two layers, so the default of 7 is too high


@pytest.fixture(scope="module")
def trained_model(tiny_model, tokenizer):
    """Return a factory of tiny Llamas that have learned all answers.

    Some losses have a gradient that vanishes with the probability of the answer, so that they hardly change a model
    that has not learned it.
    """
    model = tiny_model("llama")
    batch = pad_batch([example for part in examples(tokenizer) for example in part], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = -labelled_tokens(model, batch).logp.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    return lambda name: copy.deepcopy(model)


def alternates_for(loss, tokenizer):
    """Return refusals as alternate answers if the loss reads them, or None."""
    if "alternate" not in LOSSES[loss].reads:
        return None
    return encode_answers(alternate_answers(FORGET, None, seed=0), TextFormat(tokenizer))


def examples_and_lessons(loss, model, tokenizer):
    """Return the examples to forget, and the teacher's lesson for each if the loss distils a teacher."""
    if not LOSSES[loss].needs_teacher:
        return examples(tokenizer)[0], None
    teaching = Teaching(model, TextFormat(tokenizer), FORGET, RETAIN, names=[("Ada",)])
    return [list(part) for part in zip(*TEACHERS["changed_names"].teach(teaching), strict=True)]


def trainer_for(loss, tiny_model, tokenizer, folder, init="pissa", architecture="llama", callbacks=None, **settings):
    base = tiny_model(architecture)
    args = config(folder, loss=loss, **{"loss_kwargs": SETTINGS.get(loss), **settings})
    forget, retain = examples(tokenizer)
    batches = (lambda part=slice(None), rows=rows: iter_batches(rows[part], 2, 0) for rows in (forget, retain))
    measurement = Measurement(base, args, ImportanceConfig(), *batches, len(retain))
    taught, lessons = examples_and_lessons(loss, base, tokenizer)
    model = attach_adapters(base, args, INITIALISERS[init].row_importance(measurement))
    alternates = alternates_for(loss, tokenizer)
    return UnlearnTrainer(model, args, taught, retain, tokenizer, alternates, lessons, callbacks=callbacks)


def outputs_before_and_after(trainer, part, forward=labelled_tokens, **settings):
    """Return the model's outputs for the examples `part` before and after training."""
    results = []
    for train in (lambda: None, trainer.train):
        train()
        with torch.no_grad():
            results.append(forward(trainer.model.eval(), pad_batch(part, 0), **settings))
    return results


def losses_of(trainer):
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("init", INITIALISERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_one_step_changes_the_adapter_alone_and_logs_finite_losses(tiny_model, tokenizer, tmp_path, loss, init):
    trainer = trainer_for(loss, tiny_model, tokenizer, tmp_path, init, max_steps=1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".unlearn." in name}
    [row] = losses_of(trainer)
    assert all(math.isfinite(value) for value in row.values())
    assert ("retain_loss" in row) == (LOSSES[loss].retain != "none")
    expected = row["forget_loss"] + row.get("retain_loss", 0.0)
    assert row["loss"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"idk", "rmu", "pdu"}))
def test_training_makes_true_answers_less_likely(trained_model, tokenizer, tmp_path, loss):
    trainer = trainer_for(loss, trained_model, tokenizer, tmp_path, num_train_epochs=4, retain_weight=0.0)
    before, after = outputs_before_and_after(trainer, examples(tokenizer)[0])
    assert after.logp.mean() < before.logp.mean()


def test_pdu_flattens_the_logits_of_true_answers(tiny_model, tokenizer, tmp_path):
    trainer = trainer_for("pdu", tiny_model, tokenizer, tmp_path, num_train_epochs=4, retain_weight=0.0)
    before, after = outputs_before_and_after(trainer, examples(tokenizer)[0])
    assert LOSSES["pdu"](after) < LOSSES["pdu"](before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("loss", ["rmu", "undial", "dpo"])
def test_gradient_checkpointing_trains_to_the_same_adapter(tiny_model, tokenizer, tmp_path, loss, reentrant):
    states = []
    for switch in (False, True):
        settings = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}} if switch else {}
        trainer = trainer_for(
            loss, tiny_model, tokenizer, tmp_path, gradient_checkpointing=switch, max_steps=3, **settings
        )
        start = adapter_state(trainer.model)
        trainer.train()
        states.append(adapter_state(trainer.model))
        assert any(not torch.equal(start[name], states[-1][name]) for name in start)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


def test_forget_loss_kl_holds_on_to_the_original_predictions(tiny_model, tokenizer, tmp_path):
    trainer = trainer_for("kl", tiny_model, tokenizer, tmp_path)
    trainer.train()
    values = [row["retain_loss"] for row in losses_of(trainer)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert max(values) > 1e-4


# References


@pytest.mark.parametrize("loss", ["npo", "npo_mean", "dpo"])
def test_reference_log_probabilities_are_those_of_the_original_model(tiny_model, tokenizer, tmp_path, loss):
    trainer = trainer_for(loss, tiny_model, tokenizer, tmp_path)
    trainer.get_train_dataloader()
    answers = {"forget": examples(tokenizer)[0], "alternate": alternates_for(loss, tokenizer)}
    assert set(trainer.pairs.ref_logp) == set(LOSSES[loss].reads)
    for column, values in trainer.pairs.ref_logp.items():
        with torch.no_grad():
            original = labelled_tokens(tiny_model("llama"), pad_batch(answers[column], 0)).example_logp
        torch.testing.assert_close(torch.tensor(values), original, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("loss", ["npo", "npo_mean", "dpo"])
def test_losses_of_log_ratios_begin_at_twice_ln_2_over_beta(tiny_model, tokenizer, tmp_path, loss):
    """Before the first step every ratio is 1, so the loss is −(2/β)·ln σ(0) = 20·ln 2 with β = 0.1."""
    trainer = trainer_for(loss, tiny_model, tokenizer, tmp_path, max_steps=1)
    trainer.train()
    assert losses_of(trainer)[0]["forget_loss"] == pytest.approx(20 * math.log(2), rel=1e-3)


@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
def test_forget_and_retain_rows_get_their_own_reference_in_one_pass(tiny_model, tokenizer, tmp_path, retain_loss):
    trainer = trainer_for("undial", tiny_model, tokenizer, tmp_path, retain_loss=retain_loss)
    trainer.train()
    inputs = next(iter(trainer.get_train_dataloader()))
    passes = []
    hook = trainer.model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    forget, retain = trainer._outputs(trainer.model, inputs)
    hook.remove()
    assert passes == [True, False]
    with reference_model(trainer.model):
        original = labelled_tokens(trainer.model, inputs)
    split, rows = inputs["forget_examples"], len(inputs["labels"])
    torch.testing.assert_close(forget.ref_logits, original.rows(0, split).logits, rtol=1e-4, atol=1e-5)
    if retain_loss == "kl":
        torch.testing.assert_close(retain.ref_logits, original.rows(split, rows).logits, rtol=1e-4, atol=1e-5)
    else:
        assert retain.ref_logits is None


# Alternates


def test_idk_passes_refusals_and_no_true_answers_through_the_model(tiny_model, tokenizer, tmp_path):
    trainer = trainer_for("idk", tiny_model, tokenizer, tmp_path)
    inputs = next(iter(trainer.get_train_dataloader()))
    refusals = [example["input_ids"] for example in alternates_for("idk", tokenizer)]
    rows = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    assert inputs["forget_examples"] == 3
    assert len(rows) == 6
    assert all(row in refusals for row in rows[:3])
    assert not any(row in refusals for row in rows[3:])


def test_idk_makes_refusals_likely_and_dpo_prefers_them(tiny_model, tokenizer, tmp_path):
    answers = examples(tokenizer)[0] + alternates_for("idk", tokenizer)
    for loss in ("idk", "dpo"):
        trainer = trainer_for(loss, tiny_model, tokenizer, tmp_path, num_train_epochs=6)
        before, after = outputs_before_and_after(trainer, answers)
        true, refusal = (after.example_logp - before.example_logp).chunk(2)
        assert (refusal > true).all()
        if loss == "idk":
            assert (refusal > 0).all()


@pytest.mark.parametrize("loss", ["idk", "dpo"])
def test_a_loss_that_reads_alternates_refuses_to_begin_without_one_for_each_example(
    tiny_model, tokenizer, tmp_path, loss
):
    base = tiny_model("llama")
    args = config(tmp_path, loss=loss)
    model = attach_adapters(base, args)
    forget, retain = examples(tokenizer)
    with pytest.raises(InputError, match=r"alternates=None.*one tokenised example for each forget example"):
        UnlearnTrainer(model, args, forget, retain, tokenizer)
    with pytest.raises(InputError, match="alternates='5 examples': there are 6 forget examples"):
        UnlearnTrainer(model, args, forget, retain, tokenizer, alternates=alternates_for(loss, tokenizer)[:5])


# Hidden states


def test_rmu_trains_no_layer_after_its_own(tiny_model, tokenizer, tmp_path):
    trainer = trainer_for("rmu", tiny_model, tokenizer, tmp_path, loss_kwargs={"layer": 0})
    before = adapter_state(trainer.model)
    trainer.train()
    after = adapter_state(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers.0." in name}
    values = [row["retain_loss"] for row in losses_of(trainer)]
    assert values[0] == pytest.approx(0, abs=1e-8)
    assert max(values) > 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rmu_pulls_forget_states_to_its_direction_and_holds_retain_states(
    tiny_model, tokenizer, tmp_path, architecture
):
    trainer = trainer_for("rmu", tiny_model, tokenizer, tmp_path, architecture=architecture, num_train_epochs=10)
    forget, retain = examples(tokenizer)
    before, after = outputs_before_and_after(trainer, forget + retain, hidden_states, layer=1)
    drift = (after.states - before.states).square().mean(1)
    kept = before.example >= len(forget)
    assert drift[kept].mean() < 0.5 * drift[~kept].mean()
    split = (0, len(forget))
    assert LOSSES["rmu"](after.rows(*split)) < LOSSES["rmu"](before.rows(*split))


def test_a_layer_that_the_model_does_not_have_is_refused_before_training(tiny_model, tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"loss_kwargs\['layer'\]=2: the model has 2 decoder layers.*from 0 to 1"):
        trainer_for("rmu", tiny_model, tokenizer, tmp_path, loss_kwargs={"layer": 2})
    with pytest.raises(InputError, match=r"loss_kwargs\['layer'\]=7"):
        trainer_for("rmu", tiny_model, tokenizer, tmp_path, loss_kwargs=None)


# The dual variable


def test_the_retain_weight_of_pdu_follows_the_mean_retain_loss_of_each_step(tiny_model, tokenizer, tmp_path):
    settings = {"dual_step_size": 0.5, "epsilon": 5.0}
    trainer = trainer_for(
        "pdu",
        tiny_model,
        tokenizer,
        tmp_path,
        loss_kwargs=settings,
        retain_weight=0.3,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
    )
    trainer.train()
    logs = losses_of(trainer)
    assert len(logs) == 9
    weight = 0.3
    for row in logs:
        assert row["loss"] == pytest.approx(row["forget_loss"] + weight * row["retain_loss"], rel=1e-2, abs=1e-3)
        weight = max(0.0, weight + 0.5 * (row["retain_loss"] - 5.0))
        assert row["retain_weight"] == pytest.approx(weight, abs=1e-6)
    assert trainer.retain_weight == logs[-1]["retain_weight"]


def test_a_constant_retain_weight_is_not_logged(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, max_steps=1)
    trainer.train()
    assert "retain_weight" not in losses_of(trainer)[0]


def test_a_resumed_pdu_run_has_the_weights_and_the_adapter_of_the_whole_run(tiny_model, tokenizer, tmp_path):
    def run(folder, resume=None):
        trainer = trainer_for(
            "pdu", tiny_model, tokenizer, folder, save_strategy="steps", save_steps=2, num_train_epochs=3
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    resumed = run(tmp_path / "resumed", str(tmp_path / "resumed" / "checkpoint-4"))
    assert [row["retain_weight"] for row in losses_of(resumed)] == [row["retain_weight"] for row in losses_of(whole)]
    assert resumed.retain_weight == whole.retain_weight != whole.args.retain_weight
    expected = adapter_state(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in adapter_state(resumed.model).items())
