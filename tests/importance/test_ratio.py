import pytest
import torch

from unlora.common.errors import InputError
from unlora.importance import Moments, normalised_rows, relative_importance
from unlora.importance.ratio import fisher_of_factors, fisher_of_weights

LAYER = "base_model.model.layers.{}.q_proj.lora_{}.unlearn.weight"


def moments(**layers):
    """Moments of rank-1 layers by number; each is (mean A, second A, mean B, second B)."""
    mean, second = {}, {}
    for number, values in layers.items():
        tensors = [torch.tensor(value) for value in values]
        mean[LAYER.format(number, "A")], second[LAYER.format(number, "A")] = tensors[0][None], tensors[1][None]
        mean[LAYER.format(number, "B")], second[LAYER.format(number, "B")] = tensors[2][:, None], tensors[3][:, None]
    return Moments(mean, second, tokens=2, examples=2)


# V_A = [3 − 1, 0.5 − 0] = [2, 0.5]; V_B = [2 − 1, max(3 − 4, 0)] = [1, 0]; F = V_B·V_A.
FORGET = {"0": ([1.0, 0.0], [3.0, 0.5], [1.0, 2.0], [2.0, 3.0])}
F_FORGET = torch.tensor([[2.0, 0.5], [0.0, 0.0]])
# V_A = [1, 1]; V_B = [2, 6]; mean F = 4.
RETAIN = {"0": ([0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [3.0, 6.0])}
F_RETAIN = torch.tensor([[2.0, 2.0], [6.0, 6.0]])


def random_moments(seed, rank=3):
    generator = torch.Generator().manual_seed(seed)
    mean, second = {}, {}
    for number in (0, 1):
        for factor, shape in (("A", (rank, 7)), ("B", (5, rank))):
            name = LAYER.format(number, factor)
            mean[name] = torch.randn(shape, generator=generator)
            second[name] = mean[name].square() + torch.rand(shape, generator=generator)
    return Moments(mean, second, tokens=9, examples=4)


def scaled(given, factor):
    """The moments of a loss `factor` times as large."""
    mean = {name: factor * value for name, value in given.mean.items()}
    second = {name: factor**2 * value for name, value in given.second.items()}
    return Moments(mean, second, given.tokens, given.examples)


def test_vila_information_is_the_product_of_the_factors_variances():
    [(name, fisher)] = fisher_of_factors(moments(**FORGET), centred=True)
    assert name == "layers.0.q_proj"  # as in the base model
    torch.testing.assert_close(fisher, F_FORGET)
    [(_, fisher)] = fisher_of_factors(moments(**RETAIN), centred=True)
    torch.testing.assert_close(fisher, F_RETAIN)


def test_vila_information_of_two_examples_from_their_gradients():
    """One token each. A: gradients 1 and 3, so V = (1 + 9)/2 − 2² = 1; B: 0 and −2, so V = 4/2 − 1² = 1. F = 1·1.

    A sum over rank: with a second component of A: 5 and 5 (V = 0), B: 1 and 7 (V = 25 − 16 = 9), F stays 1 + 9·0 = 1.
    """
    gradients = {"A": torch.tensor([[[1.0], [5.0]], [[3.0], [5.0]]]), "B": torch.tensor([[[0.0, 1.0]], [[-2.0, 7.0]]])}
    mean = {LAYER.format(0, factor): g.mean(0) for factor, g in gradients.items()}
    second = {LAYER.format(0, factor): g.square().mean(0) for factor, g in gradients.items()}
    [(_, fisher)] = fisher_of_factors(Moments(mean, second, tokens=2, examples=2), centred=True)
    assert fisher.tolist() == [[1.0]]


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
    importance = relative_importance(moments(**FORGET), moments(**RETAIN), smoothing=smoothing, epsilon=epsilon)
    assert importance.keys() == {"layers.0.q_proj"}
    torch.testing.assert_close(importance["layers.0.q_proj"], F_FORGET / denominator)


def test_the_relative_floor_is_each_layers_own():
    """Layer 1 has a hundredfold retain information in each factor's variance: so has its floor."""
    larger = ([0.0, 0.0], [100.0, 100.0], [0.0, 0.0], [200.0, 600.0])
    retain = moments(**RETAIN, **{"1": larger})
    importance = relative_importance(moments(**FORGET, **{"1": FORGET["0"]}), retain)
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


def test_moments_are_not_changed():
    forget, retain = random_moments(0), random_moments(1)
    relative_importance(forget, retain)
    for given, seed in ((forget, 0), (retain, 1)):
        again = random_moments(seed)
        assert all(torch.equal(given.mean[name], again.mean[name]) for name in again.mean)
        assert all(torch.equal(given.second[name], again.second[name]) for name in again.second)


@pytest.mark.parametrize("smoothing", ["relative", "absolute"])
def test_a_layer_without_retain_gradient_stays_finite(smoothing):
    nothing = {"0": ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])}
    importance = relative_importance(moments(**FORGET), moments(**nothing), smoothing=smoothing)["layers.0.q_proj"]
    assert importance.isfinite().all()
    assert (importance > 0).tolist() == (F_FORGET > 0).tolist()


def test_information_of_whole_weights_is_the_mean_square_unless_centred():
    moments = Moments(
        {"q.weight": torch.tensor([[1.0, 2.0]])}, {"q.weight": torch.tensor([[3.0, 4.5]])}, tokens=2, examples=2
    )
    [(name, fisher)] = fisher_of_weights(moments, centred=False)
    assert name == "q"
    assert fisher.tolist() == [[3.0, 4.5]]
    [(_, fisher)] = fisher_of_weights(moments, centred=True)
    assert fisher.tolist() == [[2.0, 0.5]]


def test_information_that_is_not_centred_is_the_product_of_mean_squares():
    """V_A = [3, 0.5], V_B = [2, 3]."""
    [(_, fisher)] = fisher_of_factors(moments(**FORGET), centred=False)
    assert fisher.tolist() == [[6.0, 1.0], [9.0, 1.5]]


def test_centring_is_the_method_s_own_unless_it_is_given():
    forget, retain = moments(**FORGET), moments(**RETAIN)
    own, centred, not_centred = (relative_importance(forget, retain, centred=value) for value in (None, True, False))
    torch.testing.assert_close(own, centred)
    assert not torch.allclose(own["layers.0.q_proj"], not_centred["layers.0.q_proj"])


def test_per_token_smoothing_divides_both_informations_by_their_tokens_first():
    """Two forget tokens and four retain tokens: (F_f / 2) / (ε + F_r / 4)."""
    retain = moments(**RETAIN)
    retain.tokens = 4
    importance = relative_importance(moments(**FORGET), retain, smoothing="per_token", epsilon=0.5)
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
        relative_importance(moments(**FORGET), moments(**RETAIN), **settings)


def test_moments_of_different_parameters_are_refused_by_name():
    with pytest.raises(InputError, match=r"retain=.*layers\.1\.q_proj.*different parameters"):
        relative_importance(moments(**FORGET), moments(**RETAIN, **{"1": RETAIN["0"]}))
