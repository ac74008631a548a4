import pytest
import torch

from unlora.adapter.targets import target_shapes
from unlora.importance import Moments, fila, gradient_moments, relative_importance


@pytest.mark.parametrize("most", [2**28, 4000, 1], ids=["one group", "some groups", "layer by layer"])
def test_fila_does_not_depend_on_how_many_layers_are_measured_at_a_time(measurement, monkeypatch, most):
    monkeypatch.setattr(fila, "GROUP_SIZE", most)
    given = measurement(init="fila")
    names = list(target_shapes(given.model, None))
    moments = (gradient_moments(given.model, b(), weights=names) for b in (given.forget, given.retain))
    expected = relative_importance(*moments, "fila", rows=True)
    torch.testing.assert_close(fila.row_importance(given), expected, rtol=1e-5, atol=0)


def test_groups_hold_at_most_the_given_number_of_weights_unless_one_layer_has_more():
    shapes = {"a": (2, 3), "b": (1, 4), "c": (5, 5), "d": (1, 1)}
    assert list(fila._groups(shapes, 10)) == [["a", "b"], ["c"], ["d"]]
    assert list(fila._groups(shapes, 36)) == [["a", "b", "c", "d"]]
    assert list(fila._groups({}, 10)) == []


def test_information_of_whole_weights_is_the_mean_square_unless_centred():
    moments = Moments(
        {"q.weight": torch.tensor([[1.0, 2.0]])}, {"q.weight": torch.tensor([[3.0, 4.5]])}, tokens=2, examples=2
    )
    [(name, information)] = fila.fisher(moments, centred=False)
    assert name == "q"
    assert information.tolist() == [[3.0, 4.5]]
    [(_, information)] = fila.fisher(moments, centred=True)
    assert information.tolist() == [[2.0, 0.5]]
