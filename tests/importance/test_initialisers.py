from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from unlora.adapter import attach_adapters, attach_probe
from unlora.adapter.offset import lora_layers
from unlora.adapter.settings import target_shapes
from unlora.data import TextFormat, encode_records, iter_batches
from unlora.importance import fila, gradient_moments, relative_importance
from unlora.importance.interface import Measurement
from unlora.importance.table import INITIALISERS
from unlora.settings import ImportanceConfig

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i} and the gardener."} for i in range(5)]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The quick fox {i}."} for i in range(7)]


@pytest.fixture
def measurement(tiny_model, tokenizer):
    """A factory of what an initialiser may look at, on a fresh model."""

    def make(name="llama", **settings):
        forget, retain = (encode_records(rows, TextFormat(tokenizer)) for rows in (FORGET, RETAIN))
        return Measurement(
            tiny_model(name),
            LORA,
            ImportanceConfig(**settings),
            lambda: iter_batches(forget, 3, 0),
            lambda part=slice(None): iter_batches(retain[part], 3, 0),
            len(retain),
        )

    return make


def test_vila_looks_at_no_more_of_the_retain_sample_than_it_takes(measurement):
    """Examples that are all alike: the first look of 128 says all there is to say."""
    given = measurement(init="vila")
    seen = []

    def alike(part):
        seen.extend(range(1000)[part])
        return given.retain()

    stopped = INITIALISERS["vila"].rows(replace(given, retain=alike, retain_size=1000))
    assert sorted(seen) == list(range(128))
    torch.testing.assert_close(stopped, INITIALISERS["vila"].rows(given))
    exact = replace(given, config=ImportanceConfig(retain_samples=1000), retain_size=1000)
    torch.testing.assert_close(INITIALISERS["vila"].rows(exact), stopped)  # one call for the whole sample


def test_vila_is_the_relative_importance_of_moments_at_the_probe(measurement):
    given = measurement(init="vila", smoothing="absolute", epsilon=1e-3, sigma=0.1)
    rows = INITIALISERS["vila"].rows(given)
    probe = attach_probe(given.model, LORA, sigma=0.1)
    moments = (gradient_moments(probe, batches()) for batches in (given.forget, given.retain))
    expected = relative_importance(*moments, "vila", smoothing="absolute", epsilon=1e-3, rows=True)
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("most", [2**28, 4000, 1], ids=["one group", "some groups", "layer by layer"])
def test_fila_does_not_depend_on_how_many_layers_are_measured_at_a_time(measurement, monkeypatch, most):
    monkeypatch.setattr(fila, "GROUP", most)
    given = measurement(init="fila")
    names = list(target_shapes(given.model, None))
    moments = (gradient_moments(given.model, b(), weights=names) for b in (given.forget, given.retain))
    expected = relative_importance(*moments, "fila", rows=True)
    torch.testing.assert_close(INITIALISERS["fila"].rows(given), expected, rtol=1e-6, atol=0)


def test_groups_hold_at_most_so_many_numbers_unless_a_layer_alone_has_more():
    shapes = {"a": (2, 3), "b": (1, 4), "c": (5, 5), "d": (1, 1)}
    assert list(fila.groups(shapes, 10)) == [["a", "b"], ["c"], ["d"]]
    assert list(fila.groups(shapes, 36)) == [["a", "b", "c", "d"]]
    assert list(fila.groups({}, 10)) == []


def test_pissa_starts_at_the_principal_part_of_each_weight(measurement):
    given = measurement(init="pissa")
    model = attach_adapters(given.model, LORA, INITIALISERS["pissa"].rows(given))
    for _, layer in lora_layers(model):
        u, s, vh = torch.linalg.svd(layer.get_base_layer().weight)
        start = 2 * layer.lora_B["unlearn"].weight @ layer.lora_A["unlearn"].weight
        # Up to δ, which keeps rows of no importance finite and takes 1e-5 of each row here.
        torch.testing.assert_close(start, (u[:, :4] * s[:4]) @ vh[:4], rtol=1e-3, atol=1e-4)


def test_plain_lora_measures_nothing(measurement):
    assert INITIALISERS["lora"].rows(measurement(init="lora")) is None


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", INITIALISERS)
def test_every_initialiser_leaves_the_function_of_the_model_as_it_was(measurement, tokenizer, name, architecture):
    given = measurement(architecture, init=name)
    ids = tokenizer("The gardener keeps a grey cat", return_tensors="pt").input_ids
    before = given.model(ids).logits
    model = attach_adapters(given.model, LORA, INITIALISERS[name].rows(given))
    assert (model(ids).logits - before).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "name", [name for name, initialiser in INITIALISERS.items() if initialiser.centred is not None]
)
def test_importance_of_data_follows_the_data(measurement, name):
    """Swapped sets give another importance: what holds the one set is not what holds the other."""
    given = measurement(init=name)
    swapped = replace(given, forget=given.retain, retain=lambda part=slice(None): given.forget())
    rows, other = INITIALISERS[name].rows(given), INITIALISERS[name].rows(swapped)
    assert rows.keys() == other.keys() == target_shapes(given.model, None).keys()
    assert all(value.isfinite().all() and (value >= 0).all() for value in rows.values())
    assert all(torch.corrcoef(torch.stack([rows[layer], other[layer]]))[0, 1] < 0.9 for layer in rows)
