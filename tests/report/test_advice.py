"""The next step without a retrained model, and what to change if hardly anything was forgotten."""

from __future__ import annotations

import pytest

from helpers.reported import FAR, NEAR, judged, log, logs, make_run, membership
from unlora.report.advice import Place
from unlora.report.read import read_run
from unlora.report.summary import summarise_run
from unlora.report.unseen import rows_that_settle
from unlora.report.verdict import verdict

ALONE = logs(retrained=None)


def told(folder, *args, here=False, **files):
    run = read_run(make_run(folder, *args, **files))
    return verdict(run, summarise_run(run), Place.here(run) if here else None)


def test_how_many_unseen_rows_settle_it_by_hand():
    """(n + m + 1) / (12 n m) ≤ (0.25 / 1.96)²: of 40 rows 47 / 3,360 = 0.0140 does, 46 / 2,880 = 0.0160 does, too."""
    assert rows_that_settle(5) is None
    for rows in (6, 8, 40, 400):
        needed = rows_that_settle(rows)
        variances = [(rows + more + 1) / (12 * rows * more) for more in (needed - 1, needed)]
        assert variances[0] > (0.25 / 1.96) ** 2 >= variances[1]


def test_without_a_retrained_model_the_next_step_is_a_command(tmp_path):
    settings = {"forget_data": "some folder", "forget_name": "forget", "forget_split": "train"}
    (step,) = told(tmp_path, ALONE, settings, here=True).steps
    assert "At least 7 rows like the 40 of the forget set" in step.text
    assert step.command == (
        f"unlora membership --on {tmp_path} --forget_data 'some folder' --forget_name forget "
        f"--holdout_data UNSEEN.jsonl && unlora report {tmp_path}"
    )


def test_a_page_s_commands_do_not_say_where_the_run_is(tmp_path):
    (step,) = told(tmp_path, ALONE, {"forget_data": f"{tmp_path}/f.jsonl"}).steps
    assert step.command.startswith("unlora membership --on RUN --forget_data f.jsonl ")


def test_few_rows_are_told_that_no_test_can_settle_it(tmp_path):
    few = {model: judged(log(p, FAR[:4])) for model, p in (("original", 0.99), ("unlearned", 0.1))}
    (step,) = told(tmp_path, few).steps
    assert "4 forget rows are too few for a test" in step.text


def test_a_verdict_that_rests_on_a_test_needs_no_next_step(tmp_path):
    assert told(tmp_path / "a").steps == ()
    assert told(tmp_path / "b", ALONE, membership=membership()).steps == ()


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
    found = told(tmp_path, HARDLY, settings, metrics={"train": rows})
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
def test_one_measure_that_fell_is_not_hardly_anything(tmp_path, probability, given_away):
    found = told(tmp_path, HARDLY | {"unlearned": judged(log(probability, FAR), 0, given_away)})
    assert found.state == "untested"


def test_what_a_retrained_model_knows_too_need_not_be_forgotten(tmp_path):
    """0.75 of the original's 0.99, but only 0.05 above the retrained model's."""
    found = told(tmp_path, logs(unlearned=log(0.75, FAR * 3), retrained=log(0.7, NEAR)))
    assert found.label == "Still distinguishable"
