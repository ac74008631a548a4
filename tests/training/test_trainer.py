"""`UnlearnTrainer` on a tiny Llama: which weights change, what is logged and saved, and when training stops."""

from __future__ import annotations

import math
import multiprocessing
import signal

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

from helpers.trainer import adapter_state, config, examples, make_trainer, ones, train_twelve_steps
from unlora import DivergenceError, InputError, UnlearnConfig, UnlearnTrainer, attach_adapters
from unlora.adapter import reference_model
from unlora.data import pad_batch
from unlora.models.forward import labelled_tokens


def test_only_the_unlearn_adapter_moves(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".unlearn." in name}


def test_the_model_with_its_adapters_off_is_the_original_after_training(tiny_model, tokenizer, tmp_path):
    batch = pad_batch(examples(tokenizer)[0], tokenizer.pad_token_id)
    original = labelled_tokens(tiny_model("llama"), batch).logits
    trainer = make_trainer(tiny_model, tokenizer, tmp_path)
    trainer.train()
    with reference_model(trainer.model):
        assert torch.equal(labelled_tokens(trainer.model, batch).logits, original)


@pytest.mark.parametrize("loss", ["gd", "ihl", "npo"])
def test_the_forget_loss_falls_and_both_losses_are_logged_apart(tiny_model, tokenizer, tmp_path, loss):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, loss=loss, num_train_epochs=4, retain_weight=0.1)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 8
    assert logs[-1]["forget_loss"] < logs[0]["forget_loss"]
    for row in logs:
        assert row["loss"] == pytest.approx(row["forget_loss"] + 0.1 * row["retain_loss"], rel=1e-3, abs=1e-4)


def test_total_loss_weighs_both_losses(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, forget_weight=0.5, retain_weight=2.5, max_steps=1)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["loss"] == pytest.approx(0.5 * row["forget_loss"] + 2.5 * row["retain_loss"], rel=1e-4)


def test_the_retain_weight_of_pdu_changes_after_the_warm_up(tiny_model, tokenizer, tmp_path):
    """An epoch has two updates, so the warm-up of one epoch covers the first two."""
    own = {"loss": "pdu", "loss_kwargs": {"dual_warmup_epochs": 1.0, "dual_step_size": 0.1}}
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, num_train_epochs=2, **own)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["retain_weight"] for row in rows[:3]] == [1, 1, pytest.approx(1 + 0.1 * rows[2]["retain_loss"])]
    assert rows[3]["retain_weight"] > rows[2]["retain_weight"]


def test_a_model_may_be_evaluated_while_it_trains(tiny_model, tokenizer, tmp_path):
    """There are three epochs of two updates. The evaluations do not change the result of the training."""
    plain = make_trainer(tiny_model, tokenizer, tmp_path, num_train_epochs=3)
    plain.train()
    args, base, seen = config(tmp_path, num_train_epochs=3, eval_strategy="epoch"), tiny_model("llama"), []

    def evaluator(model):
        seen.append(model)
        return {"answers": len(seen)}

    model = attach_adapters(base, args, ones(base))
    with pytest.raises(InputError, match="evaluator=None: eval_strategy='epoch' asks for evaluations"):
        UnlearnTrainer(model, args, *examples(tokenizer), tokenizer)
    trainer = UnlearnTrainer(model, args, *examples(tokenizer), tokenizer, evaluator=evaluator)
    trainer.train()
    assert all(one is model for one in seen)
    rows = [row for row in trainer.state.log_history if "eval_answers" in row]
    assert [(row["eval_answers"], row["epoch"], row["step"]) for row in rows] == [(1, 1, 2), (2, 2, 4), (3, 3, 6)]
    before, after = adapter_state(plain.model), adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_accumulated_batches_are_logged_as_their_mean(tiny_model, tokenizer, tmp_path):
    """A step has two batches of 3, and its loss is the mean of the two, not their sum."""
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, gradient_accumulation_steps=2, max_steps=1)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["loss"] == pytest.approx(row["forget_loss"] + row["retain_loss"], rel=1e-4)


def test_ga_trains_without_a_retain_set(tiny_model, tokenizer, tmp_path):
    base = tiny_model("llama")
    args = config(tmp_path, loss="ga", max_steps=2)
    forget, _ = examples(tokenizer)
    trainer = UnlearnTrainer(attach_adapters(base, args, ones(base)), args, forget, [], tokenizer)
    trainer.train()
    assert all("retain_loss" not in row for row in trainer.state.log_history)


def test_kl_retain_loss_is_zero_at_the_start_and_positive_later(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, retain_loss="kl", num_train_epochs=3)
    trainer.train()
    values = [row["retain_loss"] for row in trainer.state.log_history if "loss" in row]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert max(values) > 1e-3
    assert not any(p.requires_grad for n, p in trainer.model.named_parameters() if ".unlearn." not in n)


def test_reference_log_probabilities_are_those_of_the_original(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, loss="npo")
    trainer.get_train_dataloader()
    batch = pad_batch(examples(tokenizer)[0], tokenizer.pad_token_id)
    with torch.no_grad():
        original = labelled_tokens(tiny_model("llama"), batch).example_logp
    torch.testing.assert_close(torch.tensor(trainer.pairs.ref_logp["forget"]), original, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_equal_settings_give_equal_adapters_and_another_seed_another(tiny_model, tokenizer, tmp_path):
    states = []
    for seed in (1, 1, 2):
        trainer = make_trainer(tiny_model, tokenizer, tmp_path, seed=seed)
        trainer.train()
        states.append(adapter_state(trainer.model))
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_trains_to_the_same_adapter(tiny_model, tokenizer, tmp_path, reentrant):
    states = []
    for switch in (False, True):
        settings = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}} if switch else {}
        trainer = make_trainer(tiny_model, tokenizer, tmp_path, gradient_checkpointing=switch, **settings)
        trainer.train()
        states.append(adapter_state(trainer.model))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


def test_checkpoint_is_an_adapter_for_the_original_base_and_holds_no_pickle(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert {file.suffix for file in checkpoint.iterdir()} == {".json", ".safetensors"}
    assert not list(tmp_path.glob(".*"))
    loaded = PeftModel.from_pretrained(tiny_model("llama"), checkpoint)
    batch = pad_batch(examples(tokenizer)[0], tokenizer.pad_token_id)
    trainer.model.eval()
    with torch.no_grad():
        ours, theirs = labelled_tokens(trainer.model, batch).logits, labelled_tokens(loaded, batch).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_old_checkpoints_are_removed_beyond_the_limit(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(
        tiny_model, tokenizer, tmp_path, save_strategy="steps", save_steps=1, max_steps=3, save_total_limit=1
    )
    trainer.train()
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-3"]


def test_explosion_of_the_retain_loss_puts_the_last_good_adapter_back(tiny_model, tokenizer, tmp_path):
    """Gradient ascent without a retain term diverges at a high learning rate.

    The restored adapter is the one from the start of the previous step, whose retain loss was within the limit.
    """
    kept = []

    class Record(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            kept.append(adapter_state(model))

    settings = {
        "loss": "gd",
        "retain_weight": 0.0,
        "learning_rate": 0.1,
        "num_train_epochs": 20,
        "max_retain_loss": 6.8,
    }
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, callbacks=[Record()], **settings)
    with pytest.raises(DivergenceError, match=r"the retain_loss is .*above its limit.*Fix: lower learning_rate"):
        trainer.train()
    now = adapter_state(trainer.model)
    step = next(i for i, state in enumerate(kept) if all(torch.equal(state[name], now[name]) for name in now))
    assert step == len(kept) - 2
    assert (tmp_path / "last-good-adapter" / "adapter_model.safetensors").is_file()


def test_a_loss_that_is_not_finite_stops_training_with_a_finite_adapter(tiny_model, tokenizer, tmp_path):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                next(p for n, p in model.named_parameters() if ".unlearn." in n).data.fill_(math.nan)

    trainer = make_trainer(tiny_model, tokenizer, tmp_path, callbacks=[Break()])
    with pytest.raises(DivergenceError, match="forget_loss is nan"):
        trainer.train()
    assert all(bool(torch.isfinite(value).all()) for value in adapter_state(trainer.model).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ihk"}, r"loss='ihk': unknown name. Fix: did you mean 'ihl'\?"),
        ({"retain_loss": "nl"}, "did you mean 'nll'"),
        ({"loss": "npo", "loss_kwargs": {"betta": 1.0}}, "did you mean 'beta'"),
        ({"loss": "ga", "retain_loss": "nll"}, "use 'gd'"),
        ({"r": 0}, "r=0: "),
        ({"lora_dropout": 0.1}, "lora_dropout=0.1: "),
        ({"retain_weight": -1}, "retain_weight=-1: "),
        ({"remove_unused_columns": True}, "remove_unused_columns=True: "),
        ({"loss_kwargs": "beta"}, "not a JSON object"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **settings)


def test_all_wrong_settings_are_named_at_once(tmp_path):
    with pytest.raises(InputError) as error:
        config(tmp_path, r=0, lora_dropout=0.5, loss="gaa")
    assert {problem.argument for problem in error.value.problems} == {"loss", "r", "lora_dropout"}


def test_empty_sets_and_a_model_without_adapters_are_refused(tiny_model, tokenizer, tmp_path):
    with pytest.raises(InputError) as error:
        UnlearnTrainer(tiny_model("llama"), config(tmp_path), [], [], tokenizer)
    assert [problem.argument for problem in error.value.problems] == ["model", "forget_dataset", "retain_dataset"]


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_to_the_same_adapter(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=train_twelve_steps, args=(tmp_path / "killed", 6))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {folder.name for folder in (tmp_path / "killed").iterdir()} == {f"checkpoint-{i}" for i in range(1, 6)}
    whole, resumed = train_twelve_steps(tmp_path / "whole"), train_twelve_steps(tmp_path / "killed", resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(("data_seed", "order"), [(None, 7), (0, 0), (3, 3)])
def test_the_order_of_the_data_has_the_data_seed_where_one_is_given(tmp_path, data_seed, order):
    args = UnlearnConfig(output_dir=str(tmp_path), seed=7, data_seed=data_seed, use_cpu=True)
    assert args.pairing_seed == order
