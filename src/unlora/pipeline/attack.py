"""Does it stay forgotten? Run attacks on the original, the unlearned and, if there is one, the retrained model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unlora.common.errors import NOT_AVAILABLE, InputError, Problem, raise_if
from unlora.common.files import write_json
from unlora.common.progress import bar
from unlora.data import Example, TextFormat, check_rows, encode_records, load_records, load_set
from unlora.data.sources import Record, is_text
from unlora.evals.attacks import ATTACKS, Attempt, Case, Materials, UnavailableError, probe, sampling
from unlora.evals.attacks.interface import Item, Metrics, answer_places
from unlora.evals.questions import Question, read_questions
from unlora.models.load import load_adapter, load_model
from unlora.pipeline.evaluation import warn_of_texts
from unlora.pipeline.loading import comparable_model
from unlora.runs.folder import ADAPTER, DIFFERENCE, check_adapter, checked_settings, located_settings, saved_model
from unlora.runs.folder import ATTACKS as ATTACKS_FILE
from unlora.settings import AttackConfig, DataConfig, EvalConfig, ModelConfig
from unlora.settings.training import PUSHING

# The name of the measurement without an attack, with which the attacks are compared.
_NO_ATTACK = "none"
# {attack: its attempts}
_Plan = dict[str, Sequence[Attempt]]
# {attack: (setting, metrics) of each draw}, for one model
_Measured = dict[str, list[tuple[str, Metrics]]]


@dataclass(frozen=True)
class Target:
    """The run under attack, as its configuration describes it."""

    run: str
    model: ModelConfig
    data: DataConfig
    evaluation: EvalConfig
    learning_rate: float


def attack(run: str, config: AttackConfig, trust_remote_code: bool = False) -> dict[str, Any]:
    """Attack the models of a run, and write `attacks.json` into its folder. No other file of the run changes.

    Args:
        run: folder of a finished `unlora unlearn`.
        config: the attacks and their strength.
        trust_remote_code: whether the user allows code that comes with the run's model to be executed.

    Returns:
        The contents of the file. "attacks" is {attack: {setting: {model: {metric: value}}}}; the first attack is
        "none". The models are original, unlearned and retrained, followed by the difference unlearned − retrained.
        The last two are None without `config.retrained`. `<metric>_se` is the standard error over draws;
        `<metric>_low` and `<metric>_high` are the ends of the interval over rows. An attack that is not possible with
        this data is {"not available": reason}. "models" and "settings" describe what was attacked, and how.

    Raises:
        InputError: a folder without an adapter, invalid settings, rows that are neither questions nor text, a
            retrained model with another vocabulary, or an attack that was named but is not available.
    """
    target = read_run(run, trust_remote_code)
    raise_if(config.problems())
    config = replace(config, learning_rate=config.learning_rate or target.learning_rate)
    rows = {name: evaluated_rows(target, name) for name in ("forget", "retain")}
    answered = {name: part for name, part in rows.items() if not all(map(is_text, part))}
    warn_of_texts(answered)
    questions = {name: _distinct(name, part, target.evaluation.ds_size) for name, part in answered.items()}
    other = None if config.retrained is None else comparable_model(target.model, config.retrained, "retrained")
    model, tokenizer = load_model(target.model)
    materials = _make_materials(target, rows, questions, model, tokenizer, config.given_tokens)
    plan, unavailable = _make_plan(model, materials, config)
    original = _make_attempts("original", model, plan, materials)
    results: dict[str, _Measured | None] = {"original": original}
    model = load_adapter(model, str(Path(run) / ADAPTER), argument="RUN")
    results["unlearned"] = _make_attempts("unlearned", model, plan, materials)
    del model  # two models may not fit into memory
    results["retrained"] = None
    if other is not None:
        retrained, _ = load_model(other)
        results["retrained"] = _make_attempts("retrained", retrained, plan, materials)
    report = {
        "models": {"original": target.model.model_name_or_path, "unlearned": run, "retrained": config.retrained},
        "settings": asdict(config),
        "attacks": _summarise(original, results) | unavailable,
    }
    write_json(Path(run) / ATTACKS_FILE, report)
    return report


def read_run(run: str, trust_remote_code: bool = False) -> Target:
    """Return what the run's own configuration says about model, data and evaluation.

    Only the caller can allow remote code: the configuration may have been written by a stranger.
    """
    check_adapter(run)
    # The exported adapter includes those of earlier requests, so it is loaded onto the base model alone.
    model, values = saved_model(run, "RUN", trust_remote_code), located_settings(run, "RUN")
    values["retrained"] = None  # this log is not needed here, and may have been moved since
    rate = {"learning_rate": values.get("learning_rate") or PUSHING["learning_rate"]}
    return Target(
        run,
        model,
        checked_settings(DataConfig, values, run),
        checked_settings(EvalConfig, values, run),
        float(checked_settings(AttackConfig, rate, run).learning_rate or 0),
    )


def evaluated_rows(target: Target, name: str) -> list[Record]:
    """Return the rows of the set `name` (forget or retain) that the run evaluates. Plain text is included."""
    data, evaluation = target.data, target.evaluation
    if evaluation.eval_data:
        rows = load_records(evaluation.eval_data, getattr(evaluation, f"eval_{name}_name"), argument=name)
        check_rows(rows, name)
    else:
        rows = load_set(data, name)
    return rows[: evaluation.ds_size]


def _distinct(name: str, rows: Sequence[Record], limit: int | None) -> list[Question]:
    """Return the questions without duplicates.

    An attack may show the model some rows and measure the others. A copy of a shown row must not be measured.
    """
    return list({(row.question, row.answer): row for row in read_questions(name, rows, limit)}.values())


def _make_materials(
    target: Target,
    rows: Mapping[str, Sequence[Record]],
    questions: Mapping[str, Sequence[Question]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    given_tokens: int,
) -> Materials:
    """Return the data that all attacks work with. Sets that are not in `questions` are plain text, cut into chunks."""
    data, evaluation = target.data, target.evaluation
    text_format = TextFormat.of(tokenizer, data, model.config, data.max_chunks)
    texts = {name: part for name, part in rows.items() if name not in questions}
    kept: dict[str, Sequence[Item]] = dict(questions)
    kept |= {name: _chunks(name, part, text_format)[: evaluation.ds_size] for name, part in texts.items()}
    return Materials(text_format, kept["forget"], kept["retain"], evaluation, given_tokens)


def _chunks(name: str, rows: Sequence[Record], text_format: TextFormat) -> list[Example]:
    """Return the tokenised chunks of plain text that the run was trained on, without duplicates.

    Chunks of a single token are dropped: once the beginning is given, nothing would be left to measure.

    Raises:
        InputError: all chunks are of a single token, or a row has no text.
    """
    examples = encode_records([{"text": row.get("text")} for row in rows], text_format, argument=name)
    ends = text_format.end_tokens
    kept = {tuple(e["input_ids"]): e for e in examples if len(answer_places(e, ends)) > 1}
    if not kept:
        fix = "give longer texts"
        raise InputError(Problem(name, f"{len(examples)} chunks", "each is a single token", fix))
    return list(kept.values())


def _make_plan(
    model: PreTrainedModel, materials: Materials, config: AttackConfig
) -> tuple[_Plan, dict[str, dict[str, str]]]:
    """Return {attack: its attempts}, and {attack: {"not available": reason}} for the attacks that are not possible."""
    plan: dict[str, Sequence[Attempt]] = {
        _NO_ATTACK: [Case("whole forget set", probe(materials.forget, materials), retain=True)]
    }
    unavailable = {}
    for name in config.attacks or ATTACKS:
        try:
            plan[name] = ATTACKS[name](model, materials, config)
        except UnavailableError as error:
            if config.attacks:
                raise InputError(Problem("attacks", name, error.reason, error.fix)) from error
            unavailable[name] = {NOT_AVAILABLE: str(error)}
    return plan, unavailable


def _make_attempts(name: str, model: PreTrainedModel, plan: _Plan, materials: Materials) -> _Measured:
    """Make every attempt on one model, with a progress bar."""
    found: _Measured = {attack: [] for attack in plan}
    with bar(total=sum(map(len, plan.values())), desc=f"attacks on the {name} model", unit=" attempts") as shown_bar:
        for attack, attempts in plan.items():
            for attempt in attempts:
                found[attack] += attempt.results(model, materials)
                shown_bar.update(1)
    return found


def _summarise(original: _Measured, results: dict[str, _Measured | None]) -> dict[str, Any]:
    """Return the mean of each metric over the draws, and its standard error, by attack, setting and model."""
    report: dict[str, Any] = {}
    for attack, measured in original.items():
        report[attack] = {}
        for setting in dict.fromkeys(setting for setting, _ in measured):
            draws: dict[str, list[Metrics] | None] = {
                name: None if found is None else [metrics for part, metrics in found[attack] if part == setting]
                for name, found in results.items()
            }
            draws[DIFFERENCE] = differences(draws["unlearned"], draws["retrained"])
            report[attack][setting] = {name: drawn and mean_of_draws(drawn) for name, drawn in draws.items()}
    return report


def differences(one: list[Metrics] | None, other: list[Metrics] | None) -> list[Metrics] | None:
    """Return one minus the other, draw by draw. In each draw, both models were attacked in the same way."""
    if not one or not other:
        return None
    return [
        sampling.difference(a, b) if sampling.METRIC in a else {name: a[name] - b[name] for name in a}
        for a, b in zip(one, other, strict=True)
    ]


def mean_of_draws(draws: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric and, for several draws, its standard error as `<metric>_se`."""
    columns = {name: [draw[name] for draw in draws] for name in draws[0]}
    means = {name: fmean(values) for name, values in columns.items()}
    if len(draws) == 1:
        return means
    return means | {f"{name}_se": stdev(values) / math.sqrt(len(draws)) for name, values in columns.items()}
