"""The model card of an exported run: what was forgotten, how it was measured, its limits, and how to load it.

The text is in `card.md.j2`. It gives the number of forgotten rows and their hash, but not their content. Text that
comes from a model, a file or the user is escaped by one of the functions at the end of this module.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from unlora.common.errors import from_elsewhere
from unlora.common.reading import read_json
from unlora.data.sources import HUB_ID
from unlora.evals import summarise
from unlora.models.hashes import ADAPTER_SETTINGS
from unlora.report.names import COUNTS, METRICS, OVERALL, SETS, metric_rows, number
from unlora.report.read import Run, read_run
from unlora.report.summary import summarise_run
from unlora.report.tables import Table, attacks_table, membership_table, revealed_table
from unlora.report.verdict import Verdict, verdict
from unlora.runs.folder import ADAPTER, RECORD, saved_settings
from unlora.runs.verify import recorded_hashes
from unlora.settings import ExportConfig

CARD = "README.md"
# Reason and fix of the error for a run whose files have the right format, but impossible contents.
NOT_OURS = ("its files are not those that unlora writes", "name another run, or add --card false")
_TEMPLATE = Path(__file__).with_name("card.md.j2")
# The settings that a card shows.
_SHOWN = (
    *("init", "loss", "teacher", "retain_loss", "retain_weight", "r", "lora_alpha", "learning_rate"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "dtype"),
)
# The values that vLLM allows for `--max-lora-rank`.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Facts:
    """The contents of a card.

    Args:
        title: name of the published model.
        record: the run's record.json.
        settings: the run's settings.
        models: {model: metrics}, for the original, the unlearned, and the retrained model if there is a log of it.
        run: the run as its report shows it.
        verdict: the verdict in its report.
        merged: whether the merged model is published instead of the adapter.
        base: name of the base model.
        base_on_hub: whether this is the name of a repository on the Hub.
        adapter: the adapter's PEFT settings.
    """

    title: str
    record: dict[str, Any]
    settings: dict[str, Any]
    models: dict[str, dict[str, Any]]
    run: Run
    verdict: Verdict
    merged: bool
    base: str
    base_on_hub: bool
    adapter: dict[str, Any]


def read_facts(run: str, config: ExportConfig) -> Facts:
    """Read the contents of the card from the run's folder.

    Raises:
        InputError: the run has no record, or a file in it was not written by unlora.
    """
    recorded_hashes(run)
    with from_elsewhere("RUN", run, *NOT_OURS):
        return _read_facts(run, config)


def _read_facts(run: str, config: ExportConfig) -> Facts:
    record = read_json(Path(run) / RECORD)
    settings = saved_settings(run, "RUN")
    models = {name: record["metrics"][name] for name in ("original", "unlearned") if name in record["metrics"]}
    shown = read_run(run)
    if models and "retrained" in shown.logs:
        models["retrained"] = summarise(shown.logs["retrained"], shown.logs["retrained"])
    base = config.base_model or record["base"]["name"]
    adapter = read_json(Path(run) / ADAPTER / ADAPTER_SETTINGS)
    made_for = adapter.get("base_model_name_or_path") or settings["model_name_or_path"]
    local = config.base_model is None and Path(made_for).exists()
    return Facts(
        title=published_name(config),
        record=record,
        settings=settings,
        models=models,
        run=shown,
        verdict=verdict(shown, summarise_run(shown)),
        merged=config.merge,
        base=base,
        base_on_hub=not local and HUB_ID.fullmatch(base) is not None,
        adapter=adapter,
    )


def published_name(config: ExportConfig) -> str:
    """Return the name of the exported model: that of its repository or, without one, of its folder."""
    return (config.push_to_hub or Path(config.output_dir).name).rpartition("/")[2]


def model_card(facts: Facts, cost: Mapping[str, Any] | None) -> str:
    """Return the whole file: the metadata that the Hub reads, and the text.

    Args:
        facts: the contents of the card.
        cost: the fields of `Compression` if the adapter was compressed at export. The published adapter is then not
            the one that was measured.
    """
    cut = cost if cost is not None and cost["relative_error"] > 0 else None
    card = ModelCard.from_template(
        _metadata(facts, measured=cut is None),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        facts=facts,
        recorded=lambda name: str(facts.settings.get(name, "unknown")),  # old runs did not record every setting
        cut=cut,
        compression=facts.record["metrics"].get("compression"),
        hyperparameters=[(name, facts.settings[name]) for name in _SHOWN if facts.settings.get(name) is not None],
        hardware=_listed(facts.record.get("hardware", {}), ("system", "machine", "cpus", "device")),
        software=_listed(facts.record.get("versions", {}), ("python", "torch", "transformers")),
        rows=[(label, map(number, values)) for label, values in metric_rows(facts.models)],
        vllm_rank=next((size for size in _VLLM_RANKS if size >= facts.adapter["r"]), None),
        vllm_ranks=_VLLM_RANKS,
        membership_table=membership_table,
        attacks_table=attacks_table,
        revealed=revealed_table(facts.run),
        table=_markdown,
        number=number,
        plain=plain,
        code=code,
        literal=literal,
        shell=shell,
    )
    return f"{card}\n"


def _listed(values: Mapping[str, Any], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names if name in values)


def _metadata(facts: Facts, measured: bool) -> ModelCardData:
    """Return the card's metadata, with the metrics only if they were `measured` on what is published."""
    results = list(_results_of(facts)) if measured else []
    return ModelCardData(
        base_model=facts.base if facts.base_on_hub else None,
        base_model_relation=("finetune" if facts.merged else "adapter") if facts.base_on_hub else None,
        library_name="transformers" if facts.merged else "peft",
        pipeline_tag="text-generation",
        tags=["unlora", "machine-unlearning", *([] if facts.merged else ["lora"])],
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _results_of(facts: Facts) -> Iterator[EvalResult]:
    """Yield one result for each metric of the unlearned model and for each membership attack that was measured."""
    unlearned = facts.models.get("unlearned", {"sets": {}})
    values = [(SETS[key], column, row.get(column)) for key, row in unlearned["sets"].items() for column in METRICS]
    values += [
        (SETS[key], kind, row.get(kind))
        for key, row in unlearned["sets"].items()
        for kind, judged in COUNTS.items()
        if key in judged.sets
    ]
    values += [("all sets", name, unlearned.get(name)) for name in OVERALL]
    for dataset, metric, value in values:
        if value is not None:
            counted = COUNTS[metric].label if metric in COUNTS else metric.replace("_", " ")
            name = METRICS.get(metric, counted)
            kind = dataset.replace(" ", "-")
            yield EvalResult("text-generation", kind, dataset, metric, round(value, 6), metric_name=name)
    for attack, area in (facts.run.membership.areas["unlearned"] if facts.run.membership else {}).items():
        metric, name = f"membership_auc_{attack}", f"membership AUC ({attack})"
        kind, dataset = "forget-and-unseen-rows", "forget set and unseen rows"
        yield EvalResult("text-generation", kind, dataset, metric, round(area.value, 6), metric_name=name)


def _markdown(table: Table) -> str:
    """Return a table of the report as Markdown."""
    cells = [[plain(c.text) + (f"<br>{plain(c.note)}" if c.note else "") for c in row] for row in table.rows]
    lines = [[plain(name) for name in table.columns], ["---"] * len(table.columns), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{table.caption}."


def plain(text: str) -> str:
    """Escape text for Markdown, and put it on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return the text as inline code, which may stand inside a table."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "¦") + "`"


def literal(text: str) -> str:
    """Return the text as a Python string literal for a code block."""
    return json.dumps(text).replace("`", "\\u0060")


def shell(text: str) -> str:
    """Return the text as one shell argument for a code block."""
    return shlex.quote(" ".join(text.split()).replace("`", "'"))
