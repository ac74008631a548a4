import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch

from unlora.training.tensor_files import load_state, save_state


def same(a, b):
    """Return whether two nested values are exactly equal, including their types and dtypes."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def round_trip(value, folder):
    save_state(folder / "state.safetensors", value)
    return load_state(folder / "state.safetensors")


def make_training():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    return layer, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def train(layer, optimizer, scheduler, steps):
    for step in range(steps):
        optimizer.zero_grad()
        layer(torch.full((1, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()
        scheduler.step()


def test_optimiser_and_scheduler_go_on_as_if_nothing_had_happened(tmp_path):
    layer, optimizer, scheduler = make_training()
    train(layer, optimizer, scheduler, 3)
    states = (optimizer.state_dict(), scheduler.state_dict(), layer.state_dict())
    saved = round_trip([dict(state) for state in states], tmp_path)
    assert same(states[0], saved[0])
    assert same(states[1], saved[1])
    train(layer, optimizer, scheduler, 2)

    fresh, fresh_optimizer, fresh_scheduler = make_training()
    for part, state in zip((fresh_optimizer, fresh_scheduler, fresh), saved, strict=True):
        part.load_state_dict(state)
    train(fresh, fresh_optimizer, fresh_scheduler, 2)
    assert torch.equal(fresh.weight, layer.weight)
    assert fresh_scheduler.get_last_lr() == scheduler.get_last_lr()


def test_random_generators_go_on_as_if_nothing_had_happened(tmp_path):
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    expected = random.random(), np.random.rand(), torch.rand(1)
    saved = round_trip(state, tmp_path)
    assert same(state, saved)
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x", (1, [2], ())], 3: {}, (1, 2): "tuple key", None: float("inf")},
        [],
        "text",
        {"tensor": "a string that looks like a mark", "dict": {"list": [{"array": "0"}]}},
        {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "bf16": torch.ones(2, dtype=torch.bfloat16)},
        {"view": torch.arange(6).reshape(2, 3).T, "bool": np.array([True, False]), "zero-dim": np.array(2.0)},
    ],
)
def test_nested_values_come_back_equal_in_kind_and_content(tmp_path, value):
    assert same(value, round_trip(value, tmp_path))


def test_tensors_that_share_memory_are_both_written(tmp_path):
    whole = torch.arange(4.0)
    assert same([whole, whole[:2], whole], round_trip([whole, whole[:2], whole], tmp_path))


def test_kinds_of_dict_and_tuple_come_back_as_dict_and_tuple(tmp_path):
    point = namedtuple("point", "x y")(1, 2)
    assert same({"point": (1, 2), "size": (3,)}, round_trip(OrderedDict(point=point, size=torch.Size([3])), tmp_path))


@pytest.mark.parametrize("value", [{1, 2}, object(), {"deep": [print]}, b"bytes", 1j])
def test_other_kinds_of_value_are_a_type_error_and_leave_no_file(tmp_path, value):
    with pytest.raises(TypeError, match="cannot be saved in a state file"):
        save_state(tmp_path / "state.safetensors", value)
    assert not list(tmp_path.iterdir())
