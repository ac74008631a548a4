"""Tables and samples of a run as they are shown: formatted, but not yet HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlora.evals.tofu import TASKS, example_values
from unlora.report.names import METRICS, SETS
from unlora.report.read import Run
from unlora.report.statistics import Estimate, Measured, Values
from unlora.report.summary import Summary, p_value, prompts
from unlora.runs.folder import MODELS

# How many examples of a set are shown.
SAMPLES = {"forget": 20, "retain": 10}
MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A value, a smaller note below it, and how strongly it is tinted (0 to 1)."""

    text: str
    note: str = ""
    tint: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under column headings; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class ShownToken:
    """A token of the reference answer, its probability by model, and what unlearning changed, if that is known.

    `end` says that it only ends the text.
    """

    text: str
    probability: Mapping[str, float]
    change: float | None
    end: bool


@dataclass(frozen=True)
class Sample:
    """One example: what was asked, what is right, what each model says, and how likely the right answer is to it."""

    question: str
    reference: str
    tokens: Sequence[ShownToken]
    answers: Mapping[str, str]
    probability: Mapping[str, float]


def estimate_cell(estimate: Estimate | None, digits: int = 3) -> Cell:
    """The value, and its interval below it."""
    if estimate is None:
        return Cell(MISSING)
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{end:.{digits}f}".replace("-", "−") for end in ends)
    return Cell(value, "" if low == high else f"{low} to {high}")


def metrics_table(run: Run, summary: Summary) -> Table:
    """Every mean of every model."""
    rows = []
    for name, metrics in summary.means.items():
        for metric, by_model in metrics.items():
            cells = [estimate_cell(by_model.get(model)) for model in run.logs]
            label = f"{SETS[name].capitalize()}: {METRICS[metric]}"
            rows.append([Cell(label, f"{summary.examples[name]} examples"), *cells])
    if summary.terms:
        utility = [estimate_cell(summary.utility.get(model)) for model in run.logs]
        rows.append([Cell("Model utility", f"harmonic mean of {summary.terms} means"), *utility])
    if summary.quality:
        quality = [Cell(*_quality(summary, model)) for model in run.logs]
        rows.append([Cell("Forget quality (p)", "log₁₀ p below it"), *quality])
    return Table("Means over the examples with 95 % intervals", ["Metric", *map(str.capitalize, run.logs)], rows)


def scores_table(run: Run, summary: Summary) -> Table:
    """Every metric of another benchmark."""
    benchmark = next(iter(run.scores.values())).benchmark
    models = [model for model in MODELS if model in run.scores]
    rows = [
        [Cell(name), *(estimate_cell(values.get(model)) for model in models)] for name, values in summary.scores.items()
    ]
    return Table(f"{benchmark}, with 95 % intervals", ["Metric", *map(str.capitalize, models)], rows)


def _quality(summary: Summary, model: str) -> tuple[str, str]:
    log = summary.log_quality(model)
    return (MISSING, "") if log is None else (p_value(summary.quality[model]), f"{log:.2f}".replace("-", "−"))


def membership_table(run: Run) -> Table:
    """Every membership attack."""
    assert run.membership is not None
    models = run.membership.by_model()
    rows = [[Cell(name), *(_area_cell(areas.get(name)) for areas in models.values())] for name in run.membership.areas]
    return Table("AUC ± standard error (DeLong)", ["Attack", *map(str.capitalize, models)], rows)


def _area_cell(area: Measured | None) -> Cell:
    return Cell(MISSING) if area is None else Cell(f"{area.value:.3f}", f"± {area.standard_error:.3f}")


def attacks_table(run: Run) -> Table:
    """Every attack, with the probability and the recall of the answers to forget."""
    assert run.attacks is not None
    models = {"original": "Original", "unlearned": "Unlearned", "retrained": "Retrained"}
    models["unlearned_minus_retrained"] = "Unlearned − retrained"
    rows = [
        [Cell(f"{attack.name}: {attack.setting}"), *(_attack_cell(attack.models.get(model)) for model in models)]
        for attack in run.attacks.found
    ]
    caption = "Probability of the answers to forget (± standard error over draws); below it their ROUGE-L recall"
    return Table(caption, ["Attack", *models.values()], rows)


def _attack_cell(values: Mapping[str, float] | None) -> Cell:
    if not values:
        return Cell(MISSING)
    probability, recall = (_with_error(values, metric) for metric in ("forget_probability", "forget_rougeL_recall"))
    return Cell(probability, recall)


def _with_error(values: Mapping[str, float], metric: str) -> str:
    value, error = values.get(metric), values.get(f"{metric}_se")
    return MISSING if value is None else f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def training_table(run: Run) -> Table:
    """The trainer's log."""
    rows = [row for row in run.train if "step" in row]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "step"]
    body = [
        [Cell(f"{row['step']:g}"), *(Cell(f"{row[n]:.4g}" if n in row else MISSING) for n in names)] for row in rows
    ]
    return Table("The trainer's log", ["step", *names], body)


def importance_tables(run: Run) -> list[Table]:
    """By layer and module the mean importance of the rows, and how much single rows stand out."""
    means = {name: float(array.mean()) for name, array in run.importance.items()}
    spreads = {name: float(array.std()) / means[name] for name, array in run.importance.items() if means[name] > 0}
    captions = {
        "Mean importance of a layer's rows": means,
        "How much single rows stand out (standard deviation over mean)": spreads,
    }
    return [_heat(caption, values) for caption, values in captions.items() if values]


def _heat(caption: str, values: Mapping[str, float]) -> Table:
    places = {name: _place(name) for name in values}
    layers = sorted({layer for layer, _ in places.values()}, key=lambda layer: (not layer.isdecimal(), layer.zfill(9)))
    modules = sorted({module for _, module in places.values()})
    by_place = {places[name]: value for name, value in values.items()}
    low, high = min(values.values()), max(values.values())

    def cell(layer: str, module: str) -> Cell:
        value = by_place.get((layer, module))
        if value is None:
            return Cell(MISSING)
        return Cell(f"{value:.3g}", tint=(value - low) / (high - low) if high > low else 0.0)

    rows = [[Cell(layer), *(cell(layer, module) for module in modules)] for layer in layers]
    return Table(caption, ["layer", *modules], rows)


def _place(name: str) -> tuple[str, str]:
    """Layer and module of a name such as model.layers.3.mlp.up_proj."""
    match = re.search(r"\.(\d+)\.(.+)", name)
    return (match[1], match[2]) if match else (MISSING, name)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as rows of dotted names and texts."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat({str(k): v for k, v in value.items()}, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def pairs_table(caption: str, values: Mapping[str, Any]) -> Table:
    """Names and values."""
    return Table(caption, ["Name", "Value"], [[Cell(name), Cell(text)] for name, text in flat(values)])


def samples(run: Run, name: str) -> list[Sample]:
    """The examples to look at: of the forget set the answers that are likeliest still, else those that lost most."""
    models = [model for model in MODELS if _comparable(run, model, name)]
    if "unlearned" not in models:
        return []
    probability = {model: example_values(name, run.task(model, name)).get("probability") for model in models}
    after, before = probability.get("unlearned"), probability.get("original")
    count = len(prompts(run, "unlearned", name))
    if after is None:
        order: Sequence[int] = range(count)
    elif name == "forget" or before is None:
        order = np.argsort(-after, kind="stable").tolist()
    else:
        order = np.argsort(after - before, kind="stable").tolist()
    known = {model: values for model, values in probability.items() if values is not None}
    return [_sample(run, name, models, known, place) for place in order[: SAMPLES[name]]]


def _comparable(run: Run, model: str, name: str) -> bool:
    """Whether the model was asked what the unlearned one was."""
    return bool(prompts(run, model, name)) and prompts(run, model, name) == prompts(run, "unlearned", name)


def _sample(run: Run, name: str, models: Sequence[str], probability: Mapping[str, Values], place: int) -> Sample:
    rows = {}
    for model in models:
        column = run.task(model, name)["generated_text"]
        rows[model] = column[sorted(column, key=int)[place]]
    prompt, _, reference = rows["unlearned"]
    return Sample(
        question=prompt.removeprefix("Question: ").removesuffix("Answer:").rstrip(),
        reference=reference,
        tokens=_tokens(run, name, models, place, reference),
        answers={model: row[1] for model, row in rows.items()},
        probability={model: float(values[place]) for model, values in probability.items()},
    )


def _tokens(run: Run, name: str, models: Sequence[str], place: int, reference: str) -> list[ShownToken]:
    texts, losses = {}, {}
    for model in models:
        task = run.task(model, name)
        if {"gt_tokens", "gt_token_loss"} <= task.keys():
            index = sorted(task["gt_tokens"], key=int)[place]
            texts[model], losses[model] = task["gt_tokens"][index], task["gt_token_loss"][index]
    own = texts.get("unlearned", [])
    same = [model for model in texts if texts[model] == own]
    ends = "".join(own[:-1]).strip() == reference.strip()
    found = []
    for at, text in enumerate(own):
        chances = {model: float(np.exp(-losses[model][at])) for model in same}
        change = chances["unlearned"] - chances["original"] if "original" in chances else None
        found.append(ShownToken(text if at else text.lstrip(), chances, change, ends and at == len(own) - 1))
    return found


def reads(run: Run) -> dict[str, int]:
    """By set how many examples were evaluated."""
    return {name: len(prompts(run, "unlearned", name)) for name in TASKS if run.task("unlearned", name)}
