"""The figures of the explanation, drawn from what a small model computes.

They are kept in `docs/_static/figures`, so that building the site trains no model. `python docs/figures.py` draws them
again, in about a minute.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback

from unlora import Moments, UnlearnConfig, UnlearnTrainer, attach_adapters, gradient_moments, relative_importance
from unlora.adapter import detach_adapters, weighted_low_rank
from unlora.benchmarks.builtin.persona_data import generate
from unlora.benchmarks.builtin.persona_models import Recipe, train_from_nothing, train_tokenizer
from unlora.data import Example, TextFormat, encode_records, iter_batches, padding_id
from unlora.evals.scoring import example_nll
from unlora.importance import attach_probe
from unlora.models.load import load_model
from unlora.settings import ModelConfig

matplotlib.use("svg")
from matplotlib import pyplot as plt

RECIPE = Recipe(vocab_size=600, hidden_size=64, intermediate_size=192, layers=3, epochs=22, learning_rate=5e-3)
ADAPTER = LoraConfig(r=8, lora_alpha=16)
TUNING_SEED = 3
FOLDER = Path(__file__).parent / "_static" / "figures"
RUNS = Path(__file__).parent / "data" / "ablation-ihl.jsonl"
BLUE, ORANGE, GREY, GREEN = "#2a6f97", "#e07a3f", "#8d99a6", "#4f8a5b"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "unlora",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Study:
    """A small model that knows twenty invented people, two of whom are to be forgotten, and what VILA measures."""

    model: Any
    text_format: TextFormat
    forget: list[Example]
    retain: list[Example]
    moments: Mapping[str, Moments]


def study() -> Study:
    """Trains the model from nothing and takes the moments of its gradients, as `unlora unlearn` does."""
    sets = generate(seed=0, people=20)
    texts = (f"Question: {row['question']}\nAnswer: {row['answer']}" for row in sets["full"])
    with tempfile.TemporaryDirectory() as folder:
        train_from_nothing(sets["full"], train_tokenizer(texts, RECIPE.vocab_size), RECIPE, Path(folder) / "model")
        model, tokenizer = load_model(ModelConfig(f"{folder}/model"))
    text_format = TextFormat(tokenizer)
    forget, retain = (encode_records(sets[name], text_format) for name in ("forget", "retain"))
    probe = attach_probe(model, ADAPTER)
    moments = {
        name: gradient_moments(probe, iter_batches(examples, 16, padding_id(tokenizer)))
        for name, examples in (("forget", forget), ("retain", retain))
    }
    return Study(detach_adapters(probe), text_format, forget, retain, moments)


def draw_mean_and_variance(data: Study) -> Any:
    """How much of the mean squared gradient is the mean's own square."""
    figure, axes = plt.subplots(figsize=(7.2, 3.0))
    bins = np.geomspace(1e-6, 1, 61)
    for (name, moments), colour in zip(data.moments.items(), (ORANGE, BLUE), strict=True):
        share = torch.cat(
            [(moments.mean[key].square() / moments.second[key].clamp(min=1e-30)).flatten() for key in moments.mean]
        )
        label = f"{name} set, {moments.examples} answers (median {share.median():.3f})"
        axes.hist(share.clamp(1e-6, 1), bins, histtype="step", linewidth=1.8, color=colour, label=label)
        axes.axvline(1 / moments.examples, color=colour, linestyle=":", linewidth=1.2)
    axes.set(xscale="log", yticks=[], xlabel="E[g]² / E[g²] of one entry of a LoRA factor", ylabel="entries")
    axes.set_title("The mean gradient is a small part of E[g²]; dotted: 1/n, what chance alone gives n answers")
    axes.legend(loc="upper left")
    return figure


def draw_importance(data: Study) -> Any:
    """Relative importance of every adapted weight, and of the rows within each."""
    measured = relative_importance(data.moments["forget"], data.moments["retain"])
    # "model.layers.0.self_attn.q_proj" is layer 0's q_proj.
    weights = {(name.split(".")[2], name.split(".")[-1]): weight for name, weight in measured.items()}
    layers, kinds = (list(dict.fromkeys(parts)) for parts in zip(*weights, strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.3), width_ratios=(1, 1.5))
    means = [[float(weights[layer, kind].mean()) for layer in layers] for kind in kinds]
    shown = left.imshow(means, aspect="auto", cmap="Blues", vmin=0)
    left.set(xticks=range(len(layers)), xticklabels=layers, yticks=range(len(kinds)), yticklabels=kinds, xlabel="layer")
    left.spines[:].set_visible(False)
    left.set_title("mean over a weight")
    figure.colorbar(shown, ax=left)
    rows = {at: weight.sum(1) / weight.sum(1).mean() for at, weight in weights.items()}
    spread = [torch.cat([rows[layer, kind] for layer in layers]).numpy() for kind in kinds]
    median = {"color": ORANGE, "linewidth": 2}
    right.boxplot(spread, orientation="horizontal", whis=(5, 95), showfliers=False, medianprops=median)
    right.set(xscale="log", xticks=(0.25, 0.5, 1, 2), xticklabels=("¼", "½", "1", "2"), yticklabels=kinds)
    right.minorticks_off()
    right.set_xlabel("a row's importance, relative to the mean row")
    right.invert_yaxis()
    right.axvline(1, color=GREY, linestyle=":")
    right.set_title("rows of a weight")
    return figure


def draw_start(data: Study) -> Any:
    """What part of a weight the start of rank k holds: of all of it, and of what matters for the forget set."""
    importance = relative_importance(data.moments["forget"], data.moments["retain"], rows=True)
    ranks = [1, 2, 4, 8, 16, 32, 48]
    starts = {"PiSSA: all rows alike": (torch.ones_like, BLUE), "VILA: rows by importance": (lambda rows: rows, ORANGE)}
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
    for label, (weighting, colour) in starts.items():
        held = np.array(
            [
                [held_parts(data.model.get_submodule(name).weight, rows, weighting(rows), rank) for rank in ranks]
                for name, rows in importance.items()
            ]
        ).mean(0)
        for panel, values in zip(panels, held.T, strict=True):
            panel.plot(ranks, 100 * values, marker="o", markersize=4, color=colour, label=label)
    for panel, title in zip(panels, ("of Σ importance·W²", "of Σ W²"), strict=True):
        panel.set(xscale="log", xticks=ranks, xticklabels=ranks, xlabel="rank of the start", ylim=(0, 102))
        panel.minorticks_off()
        panel.set_title(f"percent {title} in the start")
    panels[0].legend(loc="lower right")
    return figure


def held_parts(weight: Tensor, importance: Tensor, row_weights: Tensor, rank: int) -> tuple[float, float]:
    """1 − ‖W − B0·A0‖² / ‖W‖², weighted by the importance of the rows and not weighted."""
    weight = weight.detach()
    a0, b0 = weighted_low_rank(weight, row_weights, rank, scaling=1.0)
    missed, whole = (weight - b0 @ a0).square().sum(1), weight.square().sum(1)
    return float(1 - (importance @ missed) / (importance @ whole)), float(1 - missed.sum() / whole.sum())


class Watch(TrainerCallback):
    """Notes the mean probability of forget and retain answers every few steps."""

    def __init__(self, data: Study, every: int = 5) -> None:
        self.data, self.every = data, every
        self.steps: list[int] = []
        self.probabilities: list[list[float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The model as it was."""
        self.on_step_end(*args, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scores the answers."""
        if state.global_step % self.every == 0:
            self.steps.append(state.global_step)
            parts = (self.data.forget, self.data.retain[:48])
            scored = (example_nll(kwargs["model"], part, self.data.text_format, 64) for part in parts)
            self.probabilities.append([float(np.exp(-sums / tokens).mean()) for sums, tokens in scored])


def draw_training(data: Study) -> Any:
    """The same training from two starts."""
    rows = relative_importance(data.moments["forget"], data.moments["retain"], normalised=True, rows=True)
    figure, axes = plt.subplots(figsize=(7.2, 3.0))
    for (label, start), colour in zip({"VILA": rows, "plain LoRA": None}.items(), (ORANGE, BLUE), strict=True):
        watch = Watch(data)
        train(data, start, watch)
        forget, retain = zip(*watch.probabilities, strict=True)
        axes.plot(watch.steps, forget, color=colour, label=f"{label}: forget set")
        axes.plot(watch.steps, retain, color=colour, linestyle="--", label=f"{label}: retain set")
    axes.set(xlabel="optimiser steps", ylabel="mean probability of an answer", ylim=(0, 1.02))
    axes.set_title("Forgetting two of twenty people, with the same settings from two starts")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def train(data: Study, importance: dict[str, Tensor] | None, watch: Watch) -> None:
    """Unlearns from a start, and leaves the model as it was."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = UnlearnConfig(
            output_dir=folder,
            loss="ihl",
            learning_rate=1e-3,
            retain_weight=2.0,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=1,
            max_steps=60,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model = attach_adapters(data.model, config, importance)
        tokenizer = data.text_format.tokenizer
        UnlearnTrainer(model, config, data.forget, data.retain, processing_class=tokenizer, callbacks=[watch]).train()
    detach_adapters(model)


def draw_trade_off() -> Any:
    """Forgetting against utility in the runs behind docs/results.md: ihl from four starts."""
    runs = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    colours = {"lora": BLUE, "pissa": GREEN, "fila": GREY, "vila": ORANGE}
    for method, colour in colours.items():
        own = [run for run in runs if (run["cell"]["method"], run["cell"]["loss"]) == (method, "ihl")]
        for tuning, look in ((True, {"s": 16, "alpha": 0.35, "linewidths": 0}), (False, {"s": 34, "label": method})):
            results = [run["result"] for run in own if (run["cell"]["seed"] == TUNING_SEED) == tuning]
            points = [(result["utility"], result["log10_forget_quality"]) for result in results]
            axes.scatter(*zip(*points, strict=True), color=colour, **look)
    axes.axhline(np.log10(0.05), color="black", linestyle=":", linewidth=1)
    axes.text(0.9205, np.log10(0.05) + 0.15, "p = 0.05", fontsize=9)
    axes.set(xlabel="utility kept (1: that of the original)", ylabel="log10 forget quality", xlim=(0.92, 1.018))
    axes.set_title("Persona, ihl: twelve seeds at the chosen settings; pale: all settings on the tuning seed")
    axes.legend(loc="lower left")
    return figure


FIGURES: dict[str, Callable[[Study], Any]] = {
    "mean-and-variance": draw_mean_and_variance,
    "importance": draw_importance,
    "start": draw_start,
    "training": draw_training,
    "trade-off": lambda data: draw_trade_off(),
}


def draw(folder: Path) -> None:
    """Draws every figure as an SVG into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        data = study()
        for name, drawn in FIGURES.items():
            figure = drawn(data)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small a model gains nothing from more, and the result does not depend on them
    draw(FOLDER)
