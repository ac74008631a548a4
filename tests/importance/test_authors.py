"""With the right settings, the importance and the initial factors equal those of the code that VILA's authors released.

The procedure of their code is written out here. Random LoRA factors change the model. There are ten passes over the
forget set in batches of four, padded to 500 tokens. The gradient of each batch's mean loss is weighted by its number of
labelled tokens. The Fisher information is divided by the number of tokens a second time before an absolute ε is added.
Rows are weighted by the square root of their summed importance, and the product of the initial factors is subtracted
from the weight. Their truncated SVD is a randomised one of exactly r columns, which depends on the random state. Here
the SVD is exact.

FILA's procedure uses the mean square of the gradients of whole weights. It makes one pass, and does not divide by the
number of tokens a second time.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.models import tiny_config
from unlora.adapter import attach_adapters
from unlora.adapter.offset import lora_layers
from unlora.adapter.targets import target_shapes
from unlora.data import TextFormat, encode_records
from unlora.importance import INITIALISERS, attach_probe, gradient_moments, relative_importance
from unlora.pipeline.importance import measurement_for
from unlora.pipeline.job import Job, Rows
from unlora.pipeline.request import Request
from unlora.settings import ImportanceConfig, ModelConfig
from unlora.training.config import UnlearnConfig

SETTINGS = ImportanceConfig(
    moments_per="batch",
    importance_batch_size=4,
    forget_passes=10,
    retain_samples=60,
    smoothing="per_token",
    normalised=False,
    probe_offset=False,
)
FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i} and the gardener {i * i}."} for i in range(6)]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The quick fox {i * 3}."} for i in range(60)]
PADDED, RANK, SCALING, DELTA, EPSILON = 500, 4, 2.0, 1e-5, 1e-5
THEIR_LORA = LoraConfig(r=RANK, lora_alpha=RANK * SCALING, target_modules="all-linear")


@pytest.fixture
def model(tokenizer):
    config = tiny_config("llama", len(tokenizer))
    config.max_position_embeddings = PADDED
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def measure(model, tokenizer, folder, settings):
    text_format = TextFormat(tokenizer)
    forget, retain = (encode_records(rows, text_format) for rows in (FORGET, RETAIN))
    args = UnlearnConfig(output_dir=str(folder), r=RANK, lora_alpha=RANK * SCALING)
    request = Request(ModelConfig("tiny"), None, settings, None, args)
    rows = Rows(FORGET, RETAIN, FORGET, RETAIN)
    return measurement_for(Job(request, model, text_format, rows, forget, retain, {}), retain)


@pytest.fixture
def measurement(model, tokenizer, tmp_path):
    return measure(model, tokenizer, tmp_path, SETTINGS)


def padded(batch):
    gap = PADDED - batch["input_ids"].shape[1]
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {name: F.pad(values, (0, gap), value=fill[name]) for name, values in batch.items()}


def released_moments(model, batches, parameters):
    """Return Σ count · gradient and Σ count · gradient² over the batches, each divided by Σ count, and Σ count."""
    first, second, total = dict.fromkeys(parameters, 0.0), dict.fromkeys(parameters, 0.0), 0
    for batch in batches:
        count = int((batch["labels"] != -100).sum())
        gradients = torch.autograd.grad(model(**padded(batch)).loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            first[name] = first[name] + count * gradient
            second[name] = second[name] + count * gradient**2
        total += count
    return *({name: value / total for name, value in sums.items()} for sums in (first, second)), total


def released_importance(model, forget, retain):
    """Return VILA's importance, computed from the gradient variances of the factors."""
    factors = {name: p for name, p in model.named_parameters() if "lora_" in name and p.requires_grad}

    def information(batches):
        mean, square, tokens = released_moments(model, batches, factors)
        variance = {name: (square[name] - mean[name] ** 2).clamp(min=0) for name in factors}
        products = {
            name: variance[name.replace("lora_A", "lora_B")] @ variance[name] for name in factors if "lora_A" in name
        }
        return {name: product / tokens for name, product in products.items()}

    of_forget, of_retain = information(forget), information(retain)
    return {
        name.removeprefix("base_model.model.").partition(".lora_A")[0]: of_forget[name] / (EPSILON + of_retain[name])
        for name in of_forget
    }


def released_start(weight, importance):
    w = importance.sum(1).sqrt()
    u, s, vh = torch.linalg.svd(w[:, None] * weight)
    s = (s[:RANK] / SCALING).sqrt()
    return s[:, None] * vh[:RANK], (1 / (w + DELTA))[:, None] * (u[:, :RANK] * s)


def close(ours, theirs, relative=1e-4):
    return (ours - theirs).norm() <= relative * theirs.norm()


@pytest.mark.slow
def test_importance_and_start_are_those_of_the_released_procedure(measurement):
    ours = INITIALISERS["vila"].row_importance(measurement)
    lora = LoraConfig(r=RANK, lora_alpha=RANK * SCALING)
    # Copy the random factors to a model like that of the released code, with one adapter and no offset.
    probe = attach_probe(measurement.model, lora, SETTINGS.sigma, SETTINGS.importance_seed, offset=False)
    factors = {name: p.detach().clone() for name, p in probe.named_parameters() if ".unlearn." in name}
    moments = [gradient_moments(probe, batches(), "batch") for batches in (measurement.forget, measurement.retain)]
    maps = relative_importance(*moments, "vila", **SETTINGS.ratio())
    probe.unload()
    theirs = get_peft_model(measurement.model, THEIR_LORA)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(factors[name.replace(".default.", ".unlearn.")])
    forget, retain = list(measurement.forget()), list(measurement.retain())
    assert len(forget) == 10 * 2  # ten passes over six examples, in batches of four and two
    assert {len(batch["labels"]) for batch in forget} == {4, 2}
    importance = released_importance(theirs, forget, retain)
    theirs.unload()
    assert ours.keys() == maps.keys() == importance.keys()
    assert all(close(maps[name], importance[name]) for name in ours)
    assert all(close(ours[name], importance[name].sum(1)) for name in ours)
    check_start(measurement.model, ours, importance)


def check_start(base, ours, importance):
    """Check that A₀ and B₀ from our row importance equal the released ones, from the importance of every entry."""
    model = attach_adapters(base, LoraConfig(r=RANK, lora_alpha=RANK * SCALING), ours)
    for name, layer in lora_layers(model):
        a0, b0 = layer.lora_A["unlearn"].weight.detach(), layer.lora_B["unlearn"].weight.detach()
        a, b = released_start(layer.get_base_layer().weight.detach(), importance[name])
        signs = (a0 * a).sum(1).sign()  # an SVD does not determine the signs of singular vectors
        assert close(signs[:, None] * a0, a)
        assert close(signs * b0, b)


@pytest.mark.slow
def test_importance_and_start_of_fila_are_those_of_its_released_procedure(model, tokenizer, tmp_path):
    settings = replace(SETTINGS, init="fila", smoothing="absolute", forget_passes=1)
    given = measure(model, tokenizer, tmp_path, settings)
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in target_shapes(model, None)}
    sets = (given.forget, given.retain)
    of_forget, of_retain = (released_moments(model, batches(), weights)[1] for batches in sets)
    importance = {name.removesuffix(".weight"): of_forget[name] / (EPSILON + of_retain[name]) for name in weights}
    moments = (
        gradient_moments(model, batches(), "batch", weights=list(target_shapes(model, None))) for batches in sets
    )
    maps, ours = relative_importance(*moments, "fila", **settings.ratio()), INITIALISERS["fila"].row_importance(given)
    assert ours.keys() == maps.keys() == importance.keys()
    assert all(close(maps[name], importance[name]) for name in ours)
    assert all(close(ours[name], importance[name].sum(1)) for name in ours)
    check_start(model, ours, importance)


def test_the_offset_is_their_residual_weight(measurement):
    """The released code subtracts s·B₀A₀ from the weight instead. The logits and the factors' gradients are equal."""
    rows = INITIALISERS["vila"].row_importance(measurement)
    lora = LoraConfig(r=RANK, lora_alpha=RANK * SCALING)
    batch = next(iter(measurement.forget()))
    model = attach_adapters(measurement.model, lora, rows)
    factors = {n.replace(".unlearn.", ".default."): p for n, p in model.named_parameters() if ".unlearn." in n}
    output = model(**batch)
    ours = dict(zip(factors, torch.autograd.grad(output.loss, list(factors.values())), strict=True))
    values = {name: value.detach().clone() for name, value in factors.items()}
    logits = output.logits.detach()
    model.unload()

    theirs = get_peft_model(measurement.model, THEIR_LORA)
    parameters = {name: p for name, p in theirs.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
        for _, layer in theirs.named_modules():
            if hasattr(layer, "base_layer"):
                layer.base_layer.weight -= SCALING * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    output = theirs(**batch)
    assert (output.logits - logits).abs().max() <= 1e-4
    gradients = torch.autograd.grad(output.loss, list(parameters.values()))
    assert all(close(ours[name], g, 1e-3) for name, g in zip(parameters, gradients, strict=True))
