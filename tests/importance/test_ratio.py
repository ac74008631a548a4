import pytest
import torch

from helpers.moments import F_FORGET, F_RETAIN, FORGET, RETAIN, moments_of, random_moments
from unlora.common.errors import InputError
from unlora.importance import Moments, relative_importance
from unlora.importance.ratio import normalised_rows


def scaled(given, factor):
    """Return the moments of a loss that is `factor` times as large."""
    mean = {name: factor * value for name, value in given.mean.items()}
    second = {name: factor**2 * value for name, value in given.second.items()}
    return Moments(mean, second, given.tokens, given.examples)


@pytest.mark.parametrize(
    ("smoothing", "epsilon", "denominator"),
    [
        ("relative", 0.5, F_RETAIN + 0.5 * 4),
        ("relative", None, F_RETAIN + 0.1 * 4),
        ("absolute", 0.5, F_RETAIN + 0.5),
        ("absolute", None, F_RETAIN + 1e-5),
    ],
)
def test_importance_is_forget_over_smoothed_retain_information(smoothing, epsilon, denominator):
    importance = relative_importance(moments_of(**FORGET), moments_of(**RETAIN), smoothing=smoothing, epsilon=epsilon)
    assert importance.keys() == {"layers.0.q_proj"}
    torch.testing.assert_close(importance["layers.0.q_proj"], F_FORGET / denominator)


def test_the_relative_floor_is_each_layers_own():
    """In layer 1 each factor's retain variance is 100 times as large, so F and its floor are 10,000 times as large."""
    larger = ([0.0, 0.0], [100.0, 100.0], [0.0, 0.0], [200.0, 600.0])
    retain = moments_of(**RETAIN, **{"1": larger})
    importance = relative_importance(moments_of(**FORGET, **{"1": FORGET["0"]}), retain)
    torch.testing.assert_close(importance["layers.1.q_proj"], importance["layers.0.q_proj"] / 10_000)


@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_relative_smoothing_does_not_depend_on_the_scale_of_the_loss(factor):
    forget, retain = random_moments(0), random_moments(1)
    of_one, of_other = (relative_importance(scaled(forget, f), scaled(retain, f)) for f in (1.0, factor))
    for name, value in of_one.items():
        torch.testing.assert_close(of_other[name], value, rtol=1e-4, atol=0)
    absolute = [relative_importance(scaled(forget, f), scaled(retain, f), smoothing="absolute") for f in (1.0, 1e-3)]
    assert not torch.allclose(*(values["layers.0.q_proj"] for values in absolute), rtol=0.5)


@pytest.mark.parametrize("smoothing", ["relative", "absolute"])
def test_rows_are_the_sums_over_each_row(smoothing):
    whole, rows = (
        relative_importance(random_moments(0), random_moments(1), smoothing=smoothing, rows=rows)
        for rows in (False, True)
    )
    assert {name: value.shape for name, value in whole.items()} == dict.fromkeys(rows, (5, 7))
    for name, value in whole.items():
        torch.testing.assert_close(rows[name], value.sum(1))


def test_the_order_of_the_layers_does_not_matter():
    forget, retain = random_moments(0), random_moments(1)
    backwards = Moments(dict(reversed(retain.mean.items())), retain.second, retain.tokens, retain.examples)
    expected = relative_importance(forget, retain)
    for name, value in relative_importance(forget, backwards).items():
        torch.testing.assert_close(value, expected[name])


def test_the_moments_are_left_as_they_were():
    forget, retain = random_moments(0), random_moments(1)
    relative_importance(forget, retain)
    for given, seed in ((forget, 0), (retain, 1)):
        again = random_moments(seed)
        assert all(torch.equal(given.mean[name], again.mean[name]) for name in again.mean)
        assert all(torch.equal(given.second[name], again.second[name]) for name in again.second)


@pytest.mark.parametrize("smoothing", ["relative", "absolute"])
def test_a_layer_without_retain_gradient_stays_finite(smoothing):
    nothing = {"0": ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])}
    importance = relative_importance(moments_of(**FORGET), moments_of(**nothing), smoothing=smoothing)[
        "layers.0.q_proj"
    ]
    assert importance.isfinite().all()
    assert (importance > 0).tolist() == (F_FORGET > 0).tolist()


def test_centring_is_the_method_s_own_unless_it_is_given():
    forget, retain = moments_of(**FORGET), moments_of(**RETAIN)
    own, centred, not_centred = (relative_importance(forget, retain, centred=value) for value in (None, True, False))
    torch.testing.assert_close(own, centred)
    assert not torch.allclose(own["layers.0.q_proj"], not_centred["layers.0.q_proj"])


def test_per_token_smoothing_divides_both_informations_by_their_tokens_first():
    """Two forget tokens and four retain tokens: (F_f / 2) / (ε + F_r / 4)."""
    retain = moments_of(**RETAIN)
    retain.tokens = 4
    importance = relative_importance(moments_of(**FORGET), retain, smoothing="per_token", epsilon=0.5)
    torch.testing.assert_close(importance["layers.0.q_proj"], (F_FORGET / 2) / (0.5 + F_RETAIN / 4))


@pytest.mark.parametrize("smoothing", ["relative", "absolute"])
def test_normalised_importance_has_mean_row_sum_one_in_each_layer(smoothing):
    forget, retain = random_moments(0), random_moments(1)
    plain = relative_importance(forget, retain, smoothing=smoothing)
    normalised = relative_importance(forget, retain, smoothing=smoothing, normalised=True)
    rows = relative_importance(forget, retain, smoothing=smoothing, normalised=True, rows=True)
    torch.testing.assert_close(
        normalised_rows(relative_importance(forget, retain, smoothing=smoothing, rows=True)), rows
    )
    for name, value in normalised.items():
        assert value.sum(1).mean().item() == pytest.approx(1)
        torch.testing.assert_close(rows[name], value.sum(1))
        torch.testing.assert_close(value / value.sum(), plain[name] / plain[name].sum())


@pytest.mark.parametrize(("method", "measured"), [("fila", "LoRA factors"), ("vila", "whole weights")])
def test_moments_of_the_wrong_kind_are_refused(method, measured):
    values = {"q.weight": torch.ones(2, 3)}
    given = random_moments(0) if method == "fila" else Moments(values, values, tokens=1, examples=1)
    with pytest.raises(InputError, match=f"moments of {measured}.*method="):
        relative_importance(given, given, method)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "villa"}, "method='villa'.*did you mean 'vila'"),
        ({"smoothing": "relativ"}, "smoothing='relativ'.*did you mean 'relative'"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": -1e-5}, "epsilon=-1e-05"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        relative_importance(moments_of(**FORGET), moments_of(**RETAIN), **settings)


def test_moments_of_different_parameters_are_refused_by_name():
    with pytest.raises(InputError, match=r"retain=.*layers\.1\.q_proj.*measured on one set only"):
        relative_importance(moments_of(**FORGET), moments_of(**RETAIN, **{"1": RETAIN["0"]}))
