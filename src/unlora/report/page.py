"""The page of one run: all results in the run's folder, and how to obtain those that are missing."""

from __future__ import annotations

from pathlib import Path

from unlora.common.files import write_text
from unlora.report import plots, tables
from unlora.report.names import SETS
from unlora.report.plots import Plot
from unlora.report.questions import cards
from unlora.report.read import Run, read_run
from unlora.report.samples import SAMPLES, sample_counts, samples
from unlora.report.statistics import estimate_of
from unlora.report.summary import Summary, summarise_run
from unlora.report.verdict import verdict
from unlora.runs.command import ELSEWHERE, repeat_command
from unlora.runs.folder import REPORT

# The settings that are shown first.
_MAIN = (
    *("model_name_or_path", "model_revision", "on", "forget_data", "forget_name", "retain_data", "retain_name"),
    *("init", "loss", "retain_weight", "r", "lora_alpha", "learning_rate", "num_train_epochs", "max_steps", "seed"),
)
# `Axes.better` -> caption of the forgetting-utility plane.
_PLANE = {
    1: "Utility increases to the right, forgetting upwards. The retrained model marks the goal.",
    -1: "Utility increases to the right, forgetting downwards. A retrained model would mark the goal.",
    0: "Utility against the probability of the forget answers. Lower is not better in itself: only a retrained "
    "model's value could tell how low it should be.",
}
# Plots of the trainer's log: key -> label, and the value at which a line is drawn.
_CURVES = {
    "forget_loss": ("forget loss", None),
    "retain_loss": ("retain loss", None),
    "stop_auc": ("AUC against unseen rows", 0.5),
}


def write_report(folder: str | Path) -> Path:
    """Write the page of a run into its folder, and return its path. If this fails, an earlier page is left as it was.

    Raises:
        InputError: as `read_run`.
    """
    run = read_run(folder)
    path = run.folder / REPORT
    write_text(path, _run_page(run))
    return path


def _run_page(run: Run) -> str:
    """Return the page as HTML."""
    summary = summarise_run(run)
    told = verdict(run, summary)
    main = {name: run.settings[name] for name in _MAIN if run.settings.get(name) is not None}
    recorded = run.record.get("command")
    return render(
        "report.html.j2",
        run=run,
        summary=summary,
        verdict=told,
        cards=cards(run, summary, told),
        plane=_plane(summary),
        scores=tables.scores_table(run, summary) if run.benchmark else None,
        distributions=_distributions(summary),
        metrics=tables.metrics_table(run, summary) if run.logs else None,
        membership=_membership(run),
        attacks=[plot for plot in (_brought_back(run), _revealed(run)) if plot is not None],
        samples={name: samples(run, name) for name in SAMPLES},
        counts=sample_counts(run),
        training=_training(run),
        training_table=tables.training_table(run),
        importance=tables.importance_tables(run),
        main_settings=tables.pairs_table("Main settings", main),
        settings=tables.pairs_table("All settings", run.settings),
        record=tables.pairs_table("Record of the run", run.record) if run.record else None,
        command=recorded if isinstance(recorded, str) else repeat_command(run.folder, ELSEWHERE),
    )


def render(template: str, **values: object) -> str:
    """Render a template. All values are escaped, except plots, whose texts are already escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("unlora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be encoded as UTF-8


def _plane(summary: Summary) -> Plot | None:
    """Draw utility against forgetting for all models."""
    if summary.axes is None:
        return None
    points = [plots.Point(model, *place, plots.MODELS[model]) for model, place in summary.axes.points.items()]
    caption = f"{_PLANE[summary.axes.better]} Whiskers are 95 % intervals."
    if summary.terms:
        sets = [SETS[name] for name in summary.means if name != "forget"]
        caption = f"Utility is measured on the {' and the '.join(sets)}. {caption}"
    return plots.plane(points, summary.axes, caption)


def _distributions(summary: Summary) -> Plot | None:
    """Draw the distributions of the truth ratios of all models that have them."""
    if "unlearned" not in summary.ratios:
        return None
    shown: tuple[str, ...] = ("unlearned", "original")
    ours = {model: summary.ratios[model] for model in shown if model in summary.ratios}
    retrained = summary.ratios.get("retrained")
    caption = "Truth ratios of the forget set: the share of examples at or below each value."
    if retrained is not None:
        caption += " The test is based on the largest distance between the unlearned and the retrained model's curves."
    return plots.distributions(ours, retrained, plots.MODELS, caption, quantiles=True)


def _membership(run: Run) -> Plot | None:
    """Draw the AUC of every membership attack."""
    if run.membership is None:
        return None
    models = run.membership.areas.items()
    rows = [
        plots.Row(name, {model: estimate_of(areas[name], (0, 1)) for model, areas in models if name in areas})
        for name in run.membership.attacks
    ]
    axis = "AUC (0.5: cannot be distinguished from unseen rows)"
    caption = "How well each attack distinguishes the forget set from unseen rows. Whiskers are 95 % intervals."
    table = tables.membership_table(run)
    return plots.dots("Membership attacks", rows, plots.MODELS, axis, caption, level=0.5, table=table)


def _brought_back(run: Run) -> Plot | None:
    """Draw the probability of the forget answers under every attack."""
    if run.attacks is None:
        return None
    axis = "probability of the forget answers"
    caption = (
        "What each attack brings back, and what the same attack finds on the other models. Whiskers are 95 % intervals "
        "over draws."
    )
    rows, table = _attack_rows(run, "forget_probability"), tables.attacks_table(run)
    return plots.dots("Attacks", rows, plots.MODELS, axis, caption, table=table)


def _revealed(run: Run) -> Plot | None:
    """Draw the share of facts that sampled answers reveal."""
    caption = "How many facts are in at least one of several sampled answers. Whiskers are 95 % intervals over facts."
    rows, table = _attack_rows(run, "revealed"), tables.revealed_table(run)
    return plots.dots("Sampled answers", rows, plots.MODELS, "share of the facts", caption, table=table)


def _attack_rows(run: Run, metric: str) -> list[plots.Row]:
    found = [] if run.attacks is None else run.attacks.found
    values = {attack.label: {m: attack.estimate(m, metric) for m in plots.MODELS} for attack in found}
    return [
        plots.Row(label, {m: v for m, v in by_model.items() if v is not None}) for label, by_model in values.items()
    ]


def _training(run: Run) -> list[Plot]:
    """Draw the losses over the training steps, and the AUC of the stopping test if there was one."""
    points = {key: [(row["step"], row[key]) for row in run.train if {key, "step"} <= row.keys()] for key in _CURVES}
    return [plots.curve(points[key], label, level) for key, (label, level) in _CURVES.items() if points[key]]
