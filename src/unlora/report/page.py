"""One run's page: every part of it that the run's folder has, and a word on those that it has not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from unlora.common.files import write_text
from unlora.report import plots, tables
from unlora.report.read import Run, read_run
from unlora.report.statistics import Estimate, Values
from unlora.report.summary import Summary, p_value, summarise_run
from unlora.report.verdict import verdict
from unlora.runs.command import ELSEWHERE, repeat_command
from unlora.runs.folder import REPORT

# The settings that are shown first.
MAIN = (
    *("model_name_or_path", "model_revision", "on", "forget_data", "forget_name", "retain_data", "retain_name"),
    *("init", "loss", "retain_weight", "r", "lora_alpha", "learning_rate", "num_train_epochs", "max_steps", "seed"),
)

# What a plane says, by which of its values are better.
PLANE = {
    1: "Utility to the right, forgetting up: the retrained model marks the goal.",
    -1: "Utility to the right, forgetting down: a retrained model would mark the goal.",
    0: "Utility against the probability of the answers to forget. Lower is not better in itself: only a retrained "
    "model's value would say how low it should be.",
}


@dataclass(frozen=True)
class Plot:
    """A drawing, what it shows, and its numbers."""

    svg: Markup
    caption: str
    table: tables.Table | None = None


def write_report(folder: str | Path) -> Path:
    """Writes the page of a run into its folder, whole or not at all, and returns its path.

    Raises:
        InputError: as `read_run`.
    """
    run = read_run(folder)
    path = run.folder / REPORT
    write_text(path, run_page(run))
    return path


def run_page(run: Run) -> str:
    """The page as HTML."""
    summary = summarise_run(run)
    parts = {
        "run": run,
        "summary": summary,
        "verdict": verdict(run, summary),
        "tiles": tiles(run, summary),
        "plane": plane(summary),
        "scores": tables.scores_table(run, summary) if run.scores else None,
        "distributions": distributions(summary),
        "metrics": tables.metrics_table(run, summary) if run.logs else None,
        "membership": membership(run),
        "attacks": attacks(run),
        "samples": {name: tables.samples(run, name) for name in tables.SAMPLES},
        "counts": tables.reads(run),
        "training": training(run),
        "training_table": tables.training_table(run),
        "importance": tables.importance_tables(run),
        "main_settings": tables.pairs_table(
            "What was asked for", {name: run.settings[name] for name in MAIN if run.settings.get(name) is not None}
        ),
        "settings": tables.pairs_table("All settings", run.settings),
        "record": tables.pairs_table("Record of the run", run.record) if run.record else None,
        "command": command(run),
    }
    return render("report.html.j2", **parts)


def render(template: str, **values: Any) -> str:
    """A page; every value is escaped, but for drawings, whose texts are."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("unlora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written


def tiles(run: Run, summary: Summary) -> list[tuple[str, str, str]]:
    """The numbers to see first: a name, the value, and what to compare it with."""

    def three(name: str, metric: str) -> str:
        found = {model: summary.mean(name, metric, model) for model in ("original", "retrained")}
        return ", ".join(f"{model} {value.value:.3f}" for model, value in found.items() if value is not None)

    rows = []
    forget = summary.mean("forget", "probability", "unlearned")
    if forget is not None:
        rows.append(("Probability of the answers to forget", f"{forget.value:.3f}", three("forget", "probability")))
    if "unlearned" in summary.quality:
        before = summary.quality.get("original")
        note = "above 0.05: not told apart" + ("" if before is None else f"; original {p_value(before)}")
        rows.append(("Forget quality, p", p_value(summary.quality["unlearned"]), note))
    if summary.kept is not None:
        kept = summary.kept
        note = f"95 % interval {100 * kept.low:.1f} to {100 * kept.high:.1f} %"
        rows.append(("Utility kept", f"{100 * kept.value:.1f} %", note))
    retain = summary.mean("retain", "probability", "unlearned")
    if retain is not None:
        rows.append(("Probability of the answers to keep", f"{retain.value:.3f}", three("retain", "probability")))
    if not summary.means:
        for name, values in summary.scores.items():
            if "unlearned" in values:
                found = {model: value for model, value in values.items() if model != "unlearned"}
                note = ", ".join(f"{model} {value.value:.3g}" for model, value in found.items())
                rows.append((name, f"{values['unlearned'].value:.3g}", note))
    return rows


def plane(summary: Summary) -> Plot | None:
    """Utility against forgetting, of all models."""
    axes = summary.axes
    if axes is None:
        return None
    points = [plots.Point(model, *place, plots.MODELS[model]) for model, place in axes.points.items()]
    caption = f"{PLANE[axes.better]} Whiskers: 95 % intervals."
    words = "; ".join(f"{point.label}: {point.x.value:.3f}, {point.y.value:.3g}" for point in points)
    svg = plots.plane(points, axes.x, axes.y, axes.level)
    return Plot(plots.figure(svg, "Forgetting against utility", words), caption)


def distributions(summary: Summary) -> Plot | None:
    """The truth ratios of all models that have them."""
    if "unlearned" not in summary.ratios:
        return None
    shown: tuple[str, ...] = ("unlearned", "original")
    ours = {model: summary.ratios[model] for model in shown if model in summary.ratios}
    retrained = summary.ratios.get("retrained")
    svg = plots.distributions(ours, retrained, plots.MODELS)
    caption = "Truth ratios of the forget set, as the share of examples at or below each value."
    if retrained is not None:
        caption += " The test compares the curves of the unlearned and the retrained model by their largest distance D."
    everything = ours if retrained is None else {**ours, "retrained": retrained}
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    rows = [
        [tables.Cell(f"{100 * share:g} %"), *(tables.Cell(f"{_quantile(v, share):.3g}") for v in everything.values())]
        for share in shares
    ]
    table = tables.Table("Quantiles of the truth ratios", ["Share", *map(str.capitalize, everything)], rows)
    words = ", ".join(f"{name} median {_quantile(values, 0.5):.3g}" for name, values in everything.items())
    return Plot(plots.figure(svg, "Distributions of the truth ratio", words), caption, table)


def _quantile(values: Values, share: float) -> float:
    return float(np.quantile(values, share))


def membership(run: Run) -> Plot | None:
    """AUC of every membership attack."""
    if run.membership is None:
        return None

    found = run.membership.by_model()
    rows = [
        plots.Row(name, {model: areas[name].estimate() for model, areas in found.items() if name in areas})
        for name in run.membership.areas
    ]
    words = ", ".join(f"{name} {area.value:.3f}" for name, area in run.membership.areas.items())
    svg = plots.dots(rows, plots.MODELS, "AUC (0.5: not told apart from unseen rows)", level=0.5)
    caption = "How well each attack tells the forget set from unseen rows. Whiskers: 1.96 standard errors."
    return Plot(plots.figure(svg, "Membership attacks", words, wide=True), caption, tables.membership_table(run))


def attacks(run: Run) -> Plot | None:
    """The answers' probability under every attack."""
    if run.attacks is None:
        return None
    rows = []
    for attack in run.attacks.found:
        values = {}
        for model in plots.MODELS:
            metrics = attack.models.get(model, {})
            if "forget_probability" in metrics:
                value, error = metrics["forget_probability"], metrics.get("forget_probability_se", 0.0)
                values[model] = Estimate(value, value - error, value + error)
        rows.append(plots.Row(f"{attack.name}: {attack.setting}", values))
    svg = plots.dots(rows, plots.MODELS, "probability of the answers to forget")
    words = ", ".join(f"{row.label} {row.values['unlearned'].value:.3f}" for row in rows if "unlearned" in row.values)
    caption = "What each attack brings back, beside the same attack on the other models. Whiskers: standard errors."
    return Plot(plots.figure(svg, "Attacks", words, wide=True), caption, tables.attacks_table(run))


def training(run: Run) -> list[Plot]:
    """The losses over the steps, and the stopping test where there was one."""
    curves = {
        "forget_loss": ("forget loss", None),
        "retain_loss": ("retain loss", None),
        "stop_auc": ("AUC against unseen rows", 0.5),
    }
    found = []
    for key, (label, level) in curves.items():
        rows = [(row["step"], row[key]) for row in run.train if key in row and "step" in row]
        if rows:
            svg = plots.curve(rows, "step", label, level)
            words = f"from {rows[0][1]:.3g} at step {rows[0][0]:g} to {rows[-1][1]:.3g} at step {rows[-1][0]:g}"
            title = f"{label[0].upper()}{label[1:]}"
            found.append(Plot(plots.figure(svg, title, words), f"{title}: {words}."))
    return found


def command(run: Run) -> str:
    """What repeats the run, said where it was started."""
    if isinstance(run.record.get("command"), str):
        return str(run.record["command"])
    return repeat_command(run.folder, ELSEWHERE)
