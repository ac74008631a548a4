"""Helpers for distributed jobs, in a single process. tests/pipeline/test_distributed.py starts several processes."""

import pickle

import pytest
import torch

from unlora.common import distributed
from unlora.common.errors import InputError, Problem


def test_a_single_process_has_all_items_and_all_values():
    assert distributed.processes() == (0, 1)
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.gather("x") == ["x"]
    assert distributed.merge({"a": 1}) == {"a": 1}
    assert distributed.add_columns([[1, 2.5], [3, 4.5]]) == [4, 7]
    tensor = torch.ones(2)
    distributed.add_up([tensor])
    assert tensor.tolist() == [1, 1]


def test_every_nth_item_of_n_processes_is_shared_unless_they_run_in_lockstep(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: (1, 3))
    assert distributed.share(range(8)) == range(1, 8, 3)
    monkeypatch.setattr(distributed, "_lockstep", True)
    assert distributed.share(range(8)) == range(8)


@pytest.mark.parametrize(("rank", "main"), [(None, True), ("0", True), ("1", False)])
def test_the_main_process_is_known_from_the_environment(rank, main, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert distributed.is_main() == main


def test_an_error_of_one_process_is_raised_by_the_others(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda value: [value, RuntimeError("process 1 failed")])

    def work():
        with distributed.together():
            pass

    with pytest.raises(RuntimeError, match="process 1 failed"):
        work()


def test_an_input_error_reaches_the_other_processes_with_all_its_problems():
    error = InputError(Problem("r", 0, "too small", "use 1"), Problem("loss", "x", "unknown", "use ihl"))
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_the_result_of_the_main_process_is_returned_and_its_error_raised():
    assert distributed.on_main(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        distributed.on_main(lambda: 1 / 0)
