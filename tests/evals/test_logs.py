import json
import math

import pytest

from unlora.common.errors import InputError
from unlora.evals import read_log, write_log
from unlora.evals.log_format import TASKS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "none of the tasks eval_log.json"),
        ('{"retain": {}}', "none of the tasks"),
        ('{"eval_log.json": {"avg_gt_loss": 1}}', "eval_log.json is not"),
        ('{"eval_log.json": {"avg_gt_loss": {"0": 1}, "rougeL_recall": {"1": 1}}}', "not have the same examples"),
        ('{"eval_log.json": {"avg_gt_loss": {"a": 1}}}', "not numbered"),
        ('{"eval_log.json": {"avg_gt_loss": {"0": "1"}}}', "avg_gt_loss of eval_log.json is not a number"),
        ('{"eval_log.json": {"average_perturb_loss": {"0": []}}}', "not a list of numbers"),
        ('{"eval_log.json": {"average_perturb_loss": {"0": 1}}}', "not a list of numbers"),
        ('{"eval_log.json": {"avg_gt_loss": {"7": -0.1}}}', "avg_gt_loss of eval_log.json is -0.1 at example 7"),
        ('{"eval_log.json": {"rougeL_recall": {"7": 1.1}}}', r"rougeL_recall .* is 1.1 at example 7: not in \[0, 1\]"),
        ('{"eval_log.json": {"average_perturb_loss": {"7": [1, -1]}}}', "is -1 at example 7: a loss is at least 0"),
        (
            '{"eval_log.json": {"average_perturb_loss": {"0": [1, 1], "7": [1]}}}',
            "average_perturb_loss of eval_log.json does not have 2 wrong answers at example 7",
        ),
        (
            '{"eval_log.json": {"average_perturb_loss": {"0": [1]}, "num_token_perturb": {"0": [3, 3]}}}',
            "num_token_perturb of eval_log.json does not have 1 wrong answers at example 0",
        ),
        ('{"eval_log.json": {"generated_text": {"0": ["a", "b"]}}}', "generated_text of eval_log.json is not prompt"),
    ],
)
def test_a_file_that_is_no_log_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "log.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_log(path)


def test_a_log_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "log.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="nan is not a finite number"):
        write_log({"eval_log.json": {"gt_loss": {"0": math.nan}}}, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rounding_may_make_a_loss_of_zero_slightly_negative(tmp_path):
    write_log(log := {TASKS["retain"]: {"avg_gt_loss": {"0": -1e-7}}}, tmp_path / "log.json")
    assert read_log(tmp_path / "log.json") == log


def test_rows_are_read_in_the_order_of_their_numbers(tmp_path):
    columns = {"avg_gt_loss": {"0": 0.0, "10": 1.0, "2": 0.2}}  # sorted as text, "10" comes before "2"
    (tmp_path / "log.json").write_text(json.dumps({TASKS["retain"]: columns}))
    [column] = read_log(tmp_path / "log.json")[TASKS["retain"]].values()
    assert list(column.items()) == [("0", 0.0), ("2", 0.2), ("10", 1.0)]
