"""Training until the model agrees with its teacher."""

import math

import pytest
import torch

from helpers.trainer import FORGET, RETAIN, adapter_state, config, examples, ones
from unlora import InputError, UnlearnTrainer, attach_adapters
from unlora.data import TextFormat
from unlora.teachers import TEACHERS, Teaching
from unlora.training.taught import StopWhenTaught


class Measurer:
    """A stand-in for the trainer, for tests of the schedule alone."""

    def __init__(self):
        self.update_means = {}


def make_trainer(tiny_model, tokenizer, folder, **settings):
    base = tiny_model("llama")
    args = config(folder, **{"loss": "distil", "num_train_epochs": 5.0, "learning_rate": 3e-2, **settings})
    taught = TEACHERS["changed_names"].teach(Teaching(base, TextFormat(tokenizer), FORGET, RETAIN, names=[("Ada",)]))
    model = attach_adapters(base, args, ones(base))
    forget, lessons = (list(part) for part in zip(*taught, strict=True))
    return UnlearnTrainer(model, args, forget, examples(tokenizer)[1], tokenizer, lessons=lessons)


def test_the_learning_rate_rises_holds_and_falls_over_as_many_updates_as_it_took():
    rule = StopWhenTaught(Measurer(), per_pass=3)
    assert [rule.factor(step) for step in (0, 4, 9, 500)] == pytest.approx([0.1, 0.5, 1, 1])
    rule.reached = 40
    assert [rule.factor(step) for step in (40, 60, 80)] == pytest.approx([1, 0.5, 0])
    rule.reached = 2  # a decay over two updates would be too short, so it takes ten
    assert rule.factor(12) == 0


def test_the_limit_grows_with_the_forget_set():
    assert StopWhenTaught(Measurer(), per_pass=1).most_steps == 400
    assert StopWhenTaught(Measurer(), per_pass=250).most_steps == 5000


def test_training_ends_when_the_model_agrees_with_its_teacher(tiny_model, tokenizer, tmp_path):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "teacher_kl" in row]
    assert 40 <= trainer.taught.reached < trainer.state.global_step < trainer.state.max_steps == 400
    assert trainer.state.global_step == 2 * trainer.taught.reached
    assert rows[-1]["teacher_kl"] < min(0.1, rows[0]["teacher_kl"])
    assert rows[-1]["teacher_excess"] < 0.1
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}


def test_the_limit_ends_a_training_that_never_agrees(tiny_model, tokenizer, tmp_path, caplog):
    trainer = make_trainer(tiny_model, tokenizer, tmp_path, max_steps=44, until_taught=True, learning_rate=1e-9)
    trainer.train()
    assert trainer.taught.reached == 22
    assert trainer.state.global_step == 44
    assert "does not agree with its teacher" in caplog.text


def test_a_resumed_run_ends_as_the_whole_run(tiny_model, tokenizer, tmp_path):
    """Resume from a checkpoint before the model agrees with its teacher, and from one after it."""
    whole = make_trainer(tiny_model, tokenizer, tmp_path / "run", save_strategy="steps", save_steps=15)
    whole.train()
    after = 15 * math.ceil((whole.taught.reached + 1) / 15)
    for step in (15, after):
        resumed = make_trainer(tiny_model, tokenizer, tmp_path / f"again-{step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert resumed.state.global_step == whole.state.global_step
        for name, value in adapter_state(whole.model).items():
            assert torch.equal(adapter_state(resumed.model)[name], value)


@pytest.mark.parametrize("given", [{"num_train_epochs": 3}, {"max_steps": 7}, {"loss": "ihl"}, {"until_taught": False}])
def test_a_length_that_was_asked_for_is_kept(tmp_path, given):
    assert not config(tmp_path, **{"loss": "distil", "num_train_epochs": 5.0, **given}).until_taught


def test_an_unknown_teacher_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(InputError, match=r"teacher='changed_name'.*did you mean 'changed_names'"):
        config(tmp_path, loss="distil", teacher="changed_name")


def test_a_loss_without_a_teacher_cannot_be_trained_until_taught(tmp_path):
    with pytest.raises(InputError, match="no teacher to agree with"):
        config(tmp_path, loss="ihl", until_taught=True)


@pytest.mark.parametrize(("lessons", "message"), [(None, "distils a teacher"), ([], "there are 6 forget examples")])
def test_lessons_of_every_example_are_needed(tiny_model, tokenizer, tmp_path, lessons, message):
    base, args = tiny_model("llama"), config(tmp_path, loss="distil")
    model = attach_adapters(base, args, ones(base))
    with pytest.raises(InputError, match=message):
        UnlearnTrainer(model, args, *examples(tokenizer), tokenizer, lessons=lessons)
