"""The suggested next steps: without a retrained model, and if hardly anything was forgotten."""

from __future__ import annotations

import pytest

from helpers.reported import FAR, NEAR, judged, log, logs, make_run, membership
from unlora.report.advice import Place
from unlora.report.read import read_run
from unlora.report.summary import summarise_run
from unlora.report.unseen import rows_that_settle
from unlora.report.verdict import verdict

ALONE = logs(retrained=None)


def verdict_of(folder, *args, here=False, **files):
    run = read_run(make_run(folder, *args, **files))
    return verdict(run, summarise_run(run), Place.here(run) if here else None)


def test_how_many_unseen_rows_a_test_needs_by_hand():
    """The variance of an AUC, (n + m + 1) / (12 n m), may be at most (0.25 / 1.96)² = 0.01627.

    For 40 forget rows, 7 unseen rows are enough: 48 / 3,360 = 0.01429. With 6, it is 47 / 2,880 = 0.01632.
    """
    assert rows_that_settle(5) is None
    for rows in (6, 8, 40, 400):
        needed = rows_that_settle(rows)
        variances = [(rows + more + 1) / (12 * rows * more) for more in (needed - 1, needed)]
        assert variances[0] > (0.25 / 1.96) ** 2 >= variances[1]


def test_without_a_retrained_model_the_next_step_is_a_command(tmp_path):
    settings = {"forget_data": "some folder", "forget_name": "forget", "forget_split": "train"}
    (step,) = verdict_of(tmp_path, ALONE, settings, here=True).steps
    assert "At least 7 rows like the 40 of the forget set" in step.text
    assert step.command == (
        f"unlora membership --on {tmp_path} --forget_data 'some folder' --forget_name forget "
        f"--holdout_data UNSEEN.jsonl && unlora report {tmp_path}"
    )


def test_a_page_s_commands_do_not_say_where_the_run_is(tmp_path):
    (step,) = verdict_of(tmp_path, ALONE, {"forget_data": f"{tmp_path}/f.jsonl"}).steps
    assert step.command.startswith("unlora membership --on RUN --forget_data f.jsonl ")


def test_few_forget_rows_are_too_few_for_any_test(tmp_path):
    few = {model: judged(log(p, FAR[:4])) for model, p in (("original", 0.99), ("unlearned", 0.1))}
    (step,) = verdict_of(tmp_path, few).steps
    assert "4 forget rows are too few for a test" in step.text


def test_a_verdict_that_rests_on_a_test_needs_no_next_step(tmp_path):
    assert verdict_of(tmp_path / "a").steps == ()
    assert verdict_of(tmp_path / "b", ALONE, membership=membership()).steps == ()


HARDLY = logs(retrained=None, original=judged(log(0.99, FAR), 0, 40), unlearned=judged(log(0.9, FAR), 0, 38))


@pytest.mark.parametrize(
    ("settings", "train", "flags"),
    [
        ({}, {}, "--init lora --loss distil --until_taught true --max_steps -1"),
        ({"loss_kwargs": {"beta": 1}}, {}, "--max_steps -1 --loss_kwargs {}"),
        ({"alternate_key": "x"}, {}, "--learning_rate 0.0003 --num_train_epochs 15 --max_steps -1"),
        ({"loss": "distil"}, {"teacher_excess": 0.3}, "--learning_rate 0.0003"),
        ({"loss": "distil"}, {"teacher_excess": 0.01}, "--forget_names NAME"),
    ],
)
def test_if_hardly_anything_was_forgotten_the_run_says_what_to_change(tmp_path, settings, train, flags):
    rows = [{"step": 5, "forget_loss": 1.0, **train}]
    found = verdict_of(tmp_path, HARDLY, settings, metrics={"train": rows})
    assert (found.state, found.label) == ("apart", "Hardly anything was forgotten")
    assert "38 of 40 answers still reveal the fact" in found.answers
    change, compare = found.steps
    assert change.command.startswith("unlora unlearn --config RUN/config.yaml --output_dir RUN-again ")
    assert change.command.endswith(flags)
    assert "unlora membership" in compare.command


@pytest.mark.parametrize(
    ("probability", "given_away"),
    [(0.5, 40), (0.9, 10)],
)
def test_something_was_forgotten_if_one_measure_fell(tmp_path, probability, given_away):
    found = verdict_of(tmp_path, HARDLY | {"unlearned": judged(log(probability, FAR), 0, given_away)})
    assert found.state == "untested"


def test_what_a_retrained_model_knows_too_need_not_be_forgotten(tmp_path):
    """The probability is still 0.75, originally 0.99, but this is only 0.05 above the retrained model's."""
    found = verdict_of(tmp_path, logs(unlearned=log(0.75, FAR * 3), retrained=log(0.7, NEAR)))
    assert found.label == "Still distinguishable"
