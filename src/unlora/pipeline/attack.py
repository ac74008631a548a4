"""Does it stay forgotten? Every attack on the model of a run, beside the model before and one that never knew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from unlora.common.errors import NOT_AVAILABLE, InputError, Problem, raise_if
from unlora.common.files import write_json
from unlora.common.progress import bar
from unlora.data import TextFormat, encode_records, load_records, load_set
from unlora.data.sources import Record, is_text
from unlora.evals.attacks import ATTACKS, Case, Materials, UnavailableError, attack_problems, measure, probe
from unlora.evals.attacks.interface import Metrics, answer_places
from unlora.evals.generation import end_tokens
from unlora.evals.tofu import read_questions
from unlora.models.load import load_adapter, load_model, load_tokenizer
from unlora.pipeline.prepare import usable_length
from unlora.runs.folder import ADAPTER, check_adapter, saved_settings, settings_of
from unlora.runs.folder import ATTACKS as ATTACKS_FILE
from unlora.settings import AttackConfig, DataConfig, EvalConfig, ModelConfig
from unlora.training.config import UnlearnConfig

# No attack: what the others are compared with.
PLAIN = "none"
DIFFERENCE = "unlearned_minus_retrained"
# By attack its cases, and by attack the measurements of all cases on one model.
Plan = dict[str, list[Case]]
Measured = dict[str, list[Metrics]]


@dataclass(frozen=True)
class Target:
    """The run under attack, as its configuration describes it."""

    run: str
    model: ModelConfig
    data: DataConfig
    evaluation: EvalConfig
    learning_rate: float


def attack(run: str, config: AttackConfig) -> dict[str, Any]:
    """Attacks the model of a run and writes `attacks.json` into its folder; nothing else there is touched.

    Args:
        run: folder of an `unlora unlearn` that has finished.
        config: which attacks, and how hard.

    Returns:
        What the file holds. `attacks` is {attack: {setting: {model: {metric: value}}}}, with the attack "none" first.
        The models are original, unlearned and retrained, and beside them stands the difference of the last two; both
        are None without `config.retrained`. `_se` is the standard error over draws. An attack that the data do not
        allow is {"not available": reason}. `models` and `settings` say what was attacked, and how.

    Raises:
        InputError: a folder without an adapter, wrong settings, rows that are neither questions nor text, a retrained
            model with other tokens, or an attack that was asked for by name and is not available.
    """
    target = read_run(run)
    raise_if(attack_problems(config))
    config = replace(config, learning_rate=config.learning_rate or target.learning_rate)
    rows = {name: evaluated_rows(target, name) for name in ("forget", "retain")}
    kept = {name: distinct(name, part) for name, part in rows.items() if not is_text(part[0])}
    if config.retrained is not None:
        check_tokens(target.model, config.retrained)
    model, tokenizer = load_model(target.model)
    length = usable_length(model, target.data.max_length)
    text_format = TextFormat(tokenizer, target.data.prompt_format, length, target.data.max_chunks)
    size = target.evaluation.ds_size
    kept |= {name: chunks(name, part, text_format)[:size] for name, part in rows.items() if name not in kept}
    settings = target.evaluation
    materials = Materials(text_format, kept["forget"], kept["retain"], settings, config.given_tokens)
    plan, unavailable = make_plan(model, materials, config)
    results: dict[str, Measured | None] = {"original": run_cases("original", model, plan, materials)}
    model = load_adapter(model, str(Path(run) / ADAPTER), argument="RUN")
    results["unlearned"] = run_cases("unlearned", model, plan, materials)
    del model  # there need not be room for two
    results["retrained"] = None
    if config.retrained is not None:
        other, _ = load_model(replace(target.model, model_name_or_path=config.retrained, model_revision="main"))
        results["retrained"] = run_cases("retrained", other, plan, materials)
    report = {
        "models": {"original": target.model.model_name_or_path, "unlearned": run, "retrained": config.retrained},
        "settings": asdict(config),
        "attacks": summarise(plan, results) | unavailable,
    }
    write_json(Path(run) / ATTACKS_FILE, report)
    return report


def read_run(run: str) -> Target:
    """What the run's own configuration says about model, data and evaluation."""
    check_adapter(run)
    values = saved_settings(run, "RUN")
    # The exported adapter holds those of earlier requests too, and is for the base alone.
    model = replace(settings_of(ModelConfig, values), on=None)
    rate = values.get("learning_rate", UnlearnConfig.learning_rate)
    return Target(run, model, settings_of(DataConfig, values), settings_of(EvalConfig, values), float(rate))


def evaluated_rows(target: Target, name: str) -> list[Record]:
    """The rows of the set `name` (forget or retain) that the run evaluates, or would if they were questions."""
    data, evaluation = target.data, target.evaluation
    if evaluation.eval_data:
        rows = load_records(evaluation.eval_data, getattr(evaluation, f"eval_{name}_name"), argument=name)
    else:
        rows = load_set(data, name)
    return rows[: evaluation.ds_size]


def distinct(name: str, rows: Sequence[Record]) -> list[Record]:
    """Each question with its answer once: a copy of a row that an attack shows must not be measured."""
    questions = read_questions(name, rows)
    return list({(q.question, q.answer): row for q, row in zip(questions, rows, strict=True)}.values())


def chunks(name: str, rows: Sequence[Record], text_format: TextFormat) -> list[Record]:
    """The chunks of plain text as the run was trained on them, tokenised, each once.

    Those of a single token are left out: nothing would remain after what is given.

    Raises:
        InputError: no other chunks, or a row without text.
    """
    examples = encode_records([{"text": row.get("text")} for row in rows], text_format, argument=name)
    ends = end_tokens(text_format)
    kept = {tuple(e["input_ids"]): e for e in examples if len(answer_places(e, ends)) > 1}
    if not kept:
        fix = "give longer texts"
        raise InputError(Problem(name, f"{len(examples)} chunks", "each is a single token", fix))
    return list(kept.values())


def check_tokens(model: ModelConfig, retrained: str) -> None:
    """Refuses a retrained model with another tokenizer: probabilities of other tokens cannot be compared."""
    other = replace(model, model_name_or_path=retrained, model_revision="main")
    if load_tokenizer(model).get_vocab() != load_tokenizer(other).get_vocab():
        reason = f"its tokens are not those of {model.model_name_or_path}"
        raise InputError(Problem("retrained", retrained, reason, "give a model with the same tokenizer"))


def make_plan(model: Any, materials: Materials, config: AttackConfig) -> tuple[Plan, dict[str, dict[str, str]]]:
    """The cases of every attack, and why some attacks have none."""
    plan = {PLAIN: [Case("whole forget set", probe(materials.forget, materials), retain=True)]}
    unavailable = {}
    for name in config.attacks or ATTACKS:
        try:
            plan[name] = ATTACKS[name](model, materials, config)
        except UnavailableError as error:
            if config.attacks:
                raise InputError(Problem("attacks", name, error.reason, error.fix)) from error
            unavailable[name] = {NOT_AVAILABLE: str(error)}
    return plan, unavailable


def run_cases(name: str, model: Any, plan: Plan, materials: Materials) -> Measured:
    """Every case on one model, with a progress bar."""
    cases = sum(map(len, plan.values()))
    with bar(total=cases, desc=f"attacks on the {name} model", unit=" cases") as shown_bar:

        def measured(case: Case) -> Metrics:
            metrics = measure(model, case, materials)
            shown_bar.update(1)
            return metrics

        return {attack: [measured(case) for case in cases] for attack, cases in plan.items()}


def summarise(plan: Plan, results: dict[str, Measured | None]) -> dict[str, Any]:
    """By attack, setting and model the mean of each metric over the draws, and its standard error."""
    report: dict[str, Any] = {}
    for attack, cases in plan.items():
        report[attack] = {}
        for setting in dict.fromkeys(case.setting for case in cases):
            places = [place for place, case in enumerate(cases) if case.setting == setting]
            draws: dict[str, list[Metrics] | None] = {
                name: None if found is None else [found[attack][place] for place in places]
                for name, found in results.items()
            }
            draws[DIFFERENCE] = differences(draws["unlearned"], draws["retrained"])
            report[attack][setting] = {name: drawn and mean_of_draws(drawn) for name, drawn in draws.items()}
    return report


def differences(one: list[Metrics] | None, other: list[Metrics] | None) -> list[Metrics] | None:
    """One minus the other, draw by draw: both models saw the same."""
    if not one or not other:
        return None
    return [{name: a[name] - b[name] for name in a} for a, b in zip(one, other, strict=True)]


def mean_of_draws(draws: Sequence[Metrics]) -> Metrics:
    """The mean of each metric, and with several draws its standard error as `<metric>_se`."""
    columns = {name: [draw[name] for draw in draws] for name in draws[0]}
    means = {name: fmean(values) for name, values in columns.items()}
    if len(draws) == 1:
        return means
    return means | {f"{name}_se": stdev(values) / math.sqrt(len(draws)) for name, values in columns.items()}
