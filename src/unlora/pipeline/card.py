"""The model card of an exported run: what was forgotten, how it was measured, what it does not promise, how to load.

It tells how many rows were forgotten and their hash, not what they say.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from unlora.data.sources import HUB_ID
from unlora.evals import summarise
from unlora.models.hashes import ADAPTER_SETTINGS
from unlora.report.names import METRICS, SETS, number
from unlora.report.read import Run, read_run
from unlora.report.summary import summarise_run
from unlora.report.tables import Table, attacks_table, membership_table
from unlora.report.verdict import Verdict, verdict
from unlora.runs.folder import ADAPTER, RECORD, saved_settings
from unlora.runs.verify import recorded_hashes
from unlora.settings import ExportConfig

CARD = "README.md"
# Metrics of the whole model, beside those of each set.
OVERALL = ("model_utility", "forget_quality", "log10_forget_quality")
# What vLLM lets `--max-lora-rank` be.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
LIMITS = """\
- It approximates a model that was trained without these rows. Nothing proves that they are gone, and the numbers \
above are of the questions that were asked, in the words in which they were asked.
- Relearning from a few rows, quantising the weights, other wordings and prefixes of an answer can bring back what \
looks forgotten; `unlora attack` measures how much.
- Knowledge that follows from other rows, or that the model has from elsewhere, was not what was trained against.
- What else the model can do was measured on the sets above alone."""
ADAPTER_LIMIT = """
- The base model's weights still hold what was learned: whoever has the base can leave the adapter out. To withdraw \
the data, withdraw the base, too, or hand on the merged model alone."""


@dataclass(frozen=True)
class Facts:
    """What a card tells.

    Args:
        title: the model's name.
        record: record.json of the run.
        settings: of the run.
        models: metrics by model: original, unlearned, and retrained where there is a log of it.
        run: what its report shows.
        verdict: what its report says.
        merged: whether the card is of the merged model.
        base: what the base is called.
        base_on_hub: whether others find it by that name.
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
    """Reads what there is to tell.

    Raises:
        InputError: a run without a record, or a file in it that unlora did not write.
    """
    recorded_hashes(run)
    record = json.loads((Path(run) / RECORD).read_text(encoding="utf-8"))
    settings = saved_settings(run, "RUN")
    models = {name: record["metrics"][name] for name in ("original", "unlearned") if name in record["metrics"]}
    shown = read_run(run)
    if models and "retrained" in shown.logs:
        models["retrained"] = summarise(shown.logs["retrained"], shown.logs["retrained"])
    base = config.base_model or record["base"]["name"]
    local = config.base_model is None and Path(settings["model_name_or_path"]).exists()
    return Facts(
        title=(config.push_to_hub or Path(config.output_dir).name).rpartition("/")[2],
        record=record,
        settings=settings,
        models=models,
        run=shown,
        verdict=verdict(shown, summarise_run(shown)),
        merged=config.merge,
        base=base,
        base_on_hub=not local and HUB_ID.fullmatch(base) is not None,
        adapter=json.loads((Path(run) / ADAPTER / ADAPTER_SETTINGS).read_text(encoding="utf-8")),
    )


def model_card(facts: Facts, cost: Mapping[str, Any] | None) -> str:
    """The whole file: metadata that the hub reads, and the text.

    Args:
        facts: what it tells.
        cost: of compression at export, as `Compression` has it. Nothing was measured of what that leaves.
    """
    cut = cost if cost is not None and cost["relative_error"] > 0 else None
    limits = LIMITS if facts.merged else LIMITS + ADAPTER_LIMIT
    parts = [
        f"---\n{metadata(facts, measured=cut is None).to_yaml()}\n---",
        f"# {plain(facts.title)}",
        introduction(facts),
        f"## What was forgotten\n\n{forgotten(facts)}",
        f"## What was measured\n\n{not_measured(cut)}{judgement(facts.verdict)}",
        f"### Metrics\n\n{metrics_table(facts)}{compression_line(facts.record['metrics'].get('compression'))}",
        f"### Membership attacks\n\n{membership(facts.run)}",
        f"### Attacks that bring it back\n\n{attacks(facts.run)}",
        f"## Limits\n\n{limits}",
        f"## Loading\n\n{loading(facts)}",
    ]
    return "\n\n".join(parts) + "\n"


def metadata(facts: Facts, measured: bool) -> ModelCardData:
    """The card's head; the unlearned model's metrics are the hub's model-index if they are of what is published."""
    results = list(results_of(facts)) if measured else []
    return ModelCardData(
        base_model=facts.base if facts.base_on_hub else None,
        base_model_relation=("finetune" if facts.merged else "adapter") if facts.base_on_hub else None,
        library_name="transformers" if facts.merged else "peft",
        pipeline_tag="text-generation",
        tags=["unlora", "machine-unlearning", *([] if facts.merged else ["lora"])],
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def results_of(facts: Facts) -> Iterator[EvalResult]:
    """One result a metric of the unlearned model, and a membership attack; what was not measured has none."""
    after = facts.models.get("unlearned", {"sets": {}})
    values = [(SETS[key], column, row.get(column)) for key, row in after["sets"].items() for column in METRICS]
    values += [("all sets", name, after.get(name)) for name in OVERALL]
    for dataset, metric, value in values:
        if value is not None:
            name = METRICS.get(metric, metric.replace("_", " "))
            kind = dataset.replace(" ", "-")
            yield EvalResult("text-generation", kind, dataset, metric, round(value, 6), metric_name=name)
    for attack, area in (facts.run.membership.areas if facts.run.membership else {}).items():
        metric, name = f"membership_auc_{attack}", f"membership AUC ({attack})"
        kind, dataset = "forget-and-unseen-rows", "forget set and unseen rows"
        yield EvalResult("text-generation", kind, dataset, metric, round(area.value, 6), metric_name=name)


def introduction(facts: Facts) -> str:
    """One paragraph."""
    forget = facts.record["data"]["forget"]["rows"]
    what = "The model" if facts.merged else "A LoRA adapter that makes the model"
    forgets = "after it was made to forget" if facts.merged else "forget"
    method = f"{facts.settings['init']} start, {facts.settings.get('loss', 'ihl')} loss"
    earlier = " It holds the earlier requests that it was made on top of, too." if facts.settings.get("on") else ""
    version = facts.record["unlora"]
    return (
        f"{what} {code(facts.base)} {forgets} {forget} rows of what it was trained on, with unlora "
        f"{version} ({method}).{earlier}"
    )


def forgotten(facts: Facts) -> str:
    """Counts and hashes of the sets and of the base."""
    rows = ["| | from | rows | SHA-256 |", "|---|---|---|---|"]
    for name, part in facts.record["data"].items():
        source = " ".join(text for text in (part["source"], part["name"], part["split"]) if text)
        label = plain(name.replace("_", " "))
        rows.append(f"| {label} set | {code(source)} | {part['rows']} | {code(part['sha256'])} |")
    base = facts.record["base"]
    rows.append(f"| base | {code(facts.base)} | | {code(str(base['sha256']))} |")
    return "\n".join(rows) + "\n\nThe rows themselves are not published here."


def not_measured(cut: Mapping[str, Any] | None) -> str:
    """That the numbers are of another adapter than the one published, where fewer ranks changed it."""
    if cut is None:
        return ""
    return (
        f"**All of this was measured before the adapter was cut to rank {cut['rank']}; what is published here was not "
        f"measured.** Its change of the weights is off by {number(100 * cut['relative_error'])} %.\n\n"
    )


def judgement(found: Verdict) -> str:
    """What the run's report says, and how far it goes."""
    limits = "\n".join(f"- {plain(limit)}" for limit in found.limits)
    return f"**{found.label}.** {plain(found.sentence)} {plain(found.cost)} {plain(found.attacks)}\n\n{limits}"


def membership(run: Run) -> str:
    """How well the forget set can be told from unseen rows."""
    if run.membership is None:
        return "Not measured: whether the forget set can be told from unseen rows is not known."
    return f"0.5: the forget set is not told from rows that were never seen.\n\n{markdown(membership_table(run))}"


def attacks(run: Run) -> str:
    """What each attack brings back, and which were not possible."""
    if run.attacks is None:
        return "Not attacked: whether it stays forgotten is not known."
    missing = [f"Not possible: {plain(name)} ({plain(why)})." for name, why in run.attacks.unavailable.items()]
    return "\n\n".join([markdown(attacks_table(run)), *missing])


def markdown(table: Table) -> str:
    """A table of the report."""
    cells = [[plain(c.text) + (f"<br>{plain(c.note)}" if c.note else "") for c in row] for row in table.rows]
    lines = [[plain(name) for name in table.columns], ["---"] * len(table.columns), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{table.caption}."


def metrics_table(facts: Facts) -> str:
    """One column a model; what was not measured is a dash."""
    if not facts.models:
        return "The run measured none."
    titles = {"original": "original", "unlearned": "**unlearned**", "retrained": "retrained without the rows"}
    names = [name for name in titles if name in facts.models]
    rows = [f"| | {' | '.join(titles[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for key, label in SETS.items():
        if any(key in facts.models[name]["sets"] for name in names):
            for column, metric in METRICS.items():
                values = [facts.models[name]["sets"].get(key, {}).get(column) for name in names]
                rows.append(f"| {label}: {metric} | {' | '.join(map(number, values))} |")
    for column in OVERALL:
        values = [facts.models[name].get(column) for name in names]
        rows.append(f"| {column.replace('_', ' ')} | {' | '.join(map(number, values))} |")
    nearer = "On the forget set the best is not the least, but what the retrained model has."
    without = "" if "retrained" in names else " There was no such model to compare with."
    return "\n".join(rows) + f"\n\n{nearer}{without}"


def compression_line(cost: Mapping[str, Any] | None) -> str:
    """What fewer ranks cost, if the run exported and measured such an adapter."""
    if cost is None:
        return ""
    return (
        f"\n\nThe run cut its adapter to rank {cost['rank']} before it was measured: the change of the weights is off "
        f"by {number(100 * cost['relative_error'])} % from what was trained."
    )


def loading(facts: Facts) -> str:
    """How to load it in transformers, PEFT and vLLM."""
    here, base = literal(facts.title), literal(facts.base)
    if facts.merged:
        return (
            f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({here})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({here})\n```\n\n"
            f"```bash\nvllm serve {shell(facts.title)}\n```"
        )
    return (
        "With transformers alone, which finds the base by the adapter's settings (PEFT must be installed), or with "
        "PEFT on a base that is loaded already:\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({here})\n"
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), {here})\n```\n\n"
        + vllm(facts)
    )


def vllm(facts: Facts) -> str:
    """How to serve the adapter; vLLM knows one rank and one alpha for all modules."""
    if facts.adapter.get("rank_pattern") or facts.adapter.get("alpha_pattern"):
        return "vLLM reads one rank for all modules, and here they differ: serve the merged model (`--merge true`)."
    rank = next((size for size in VLLM_RANKS if size >= facts.adapter["r"]), None)
    if rank is None:
        return f"vLLM takes adapters up to rank {VLLM_RANKS[-1]}: serve the merged model (`--merge true`)."
    modules = shell(f"unlearned={facts.title}")
    return f"```bash\nvllm serve {shell(facts.base)} --enable-lora --max-lora-rank {rank} --lora-modules {modules}\n```"


def plain(text: str) -> str:
    """Text from elsewhere as Markdown shows it: no markup, no line breaks."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text from elsewhere as code within a line, or within a table's cell."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "¦") + "`"


def literal(text: str) -> str:
    """Text from elsewhere as a Python string in a block of code."""
    return json.dumps(text).replace("`", "\\u0060")


def shell(text: str) -> str:
    """Text from elsewhere as one argument of a shell in a block of code."""
    return shlex.quote(" ".join(text.split()).replace("`", "'"))
