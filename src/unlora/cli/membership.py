"""`unlora membership`: memorisation of the forget set, and how well it can be told from data that was never seen.

A command of its own: it reads rows of any kind, while `unlora evaluate` needs TOFU's four sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from unlora.cli.arguments import parse
from unlora.cli.evaluate import ReportedConfig, load_target, required
from unlora.cli.output import Answer
from unlora.cli.tables import number
from unlora.config import MEMBERSHIP, ModelConfig, TextConfig
from unlora.errors import InputError, Problem, raise_if

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unlora.data import Example, TextFormat
    from unlora.data.sources import Record
    from unlora.evals.leakage import Scores

EXAMPLE = "unlora membership --on run --forget_data forget.jsonl --holdout_data unseen.jsonl"


@dataclass
class MembershipConfig(ReportedConfig):
    """What is compared with what."""

    forget_data: str = field(default="", metadata={"help": "The forget set: file, folder or hub dataset. Required."})
    forget_name: str | None = field(default=None, metadata={"help": "Its configuration, such as forget10."})
    forget_split: str = field(default="train", metadata={"help": "Its split; slices such as train[:40] work."})
    holdout_data: str = field(
        default="", metadata={"help": "Rows like the forget set's that the model never saw. Required."}
    )
    holdout_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    holdout_split: str = field(default="train", metadata={"help": "Its split; slices such as train[:40] work."})
    ds_size: int | None = field(default=300, metadata={"help": "First rows of each set that are scored."})
    eval_batch_size: int = field(default=32, metadata={"help": "Examples of a pass."})
    reference_model: str | None = field(
        default=None, metadata={"help": "Adds the reference attack: another model with the same tokenizer."}
    )
    gradnorm: bool = field(default=False, metadata={"help": "Adds the gradient-norm attack, for a backward pass."})
    retrain_log: str | None = field(
        default=None,
        metadata={"help": "Log of this command of a model trained without the forget set, for PrivLeak."},
    )

    def problems(self, model: ModelConfig) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        missing = {name: getattr(self, name) for name in ("forget_data", "holdout_data")}
        sizes = {name: getattr(self, name) for name in ("ds_size", "eval_batch_size")}
        return [
            *super().problems(model),
            *(required(name, value) for name, value in missing.items() if not value),
            *(
                Problem(name, value, "nothing would be scored", "use at least 1")
                for name, value in sizes.items()
                if value is not None and value < 1
            ),
        ]


SETTINGS = (ModelConfig, TextConfig, MembershipConfig)


def run(argv: list[str]) -> Answer:
    """Scores both sets, writes metrics and scores, and shows the metrics.

    A model with an adapter is scored without it too: attacks that cannot tell what the original was trained on say
    nothing of the unlearned model.
    """
    from unlora.data import TextFormat
    from unlora.distributed import on_main
    from unlora.evals.leakage import check_retrained, leakage_scores, read_scores, summarise_leakage
    from unlora.files import write_json
    from unlora.hashes import sets_sha256
    from unlora.models import load_tokenizer, source_settings
    from unlora.progress import shown

    model_config, text, config = parse(SETTINGS, argv, "membership", EXAMPLE)
    config.log_in_run(model_config, MEMBERSHIP)
    raise_if([*model_config.problems(), *text.problems(), *config.problems(model_config)])
    rows = load_rows(config)
    retrained = None if config.retrain_log is None else read_scores(config.retrain_log, sets=rows)
    tokenizer = load_tokenizer(model_config.model_name_or_path, source_settings(model_config))
    text_format = TextFormat(tokenizer, text.prompt_format, text.max_length)
    sets = encode_sets(rows, text_format)
    if retrained is not None:
        check_retrained(retrained, {name: len(examples) for name, examples in sets.items()})
    reference = None if config.reference_model is None else reference_nll(model_config, config, text_format, sets)
    model, _ = load_target(model_config, config)
    passes = 2 if config.gradnorm else 1

    def score(name: str) -> Scores:
        with shown(f"scores {name}", " examples", passes * sum(map(len, sets.values()))) as progress:
            return leakage_scores(
                model, sets, text_format, config.eval_batch_size, reference, config.gradnorm, progress
            )

    scores, original = score(config.log), None
    if config.adapted(model_config):
        with model.disable_adapter():
            original = score("the model without its adapter")
    metrics = summarise_leakage(scores, retrained)
    others = {"original": original, "retrained": retrained}
    compared = {name: part and summarise_leakage(part) for name, part in others.items()}
    log = {"metrics": metrics, **compared, "rows": sets_sha256(rows), "scores": scores}
    on_main(lambda: write_json(config.log, log))
    return Answer(metrics, lambda: print_tables(metrics), config.log)


def load_rows(config: MembershipConfig) -> dict[str, Sequence[Record]]:
    """The rows of the two sets.

    Raises:
        InputError: rows that cannot be read, or that stand in both sets.
    """
    from unlora.data import check_overlap, load_records

    forget = load_records(config.forget_data, config.forget_name, config.forget_split, argument="forget_data")
    holdout = load_records(config.holdout_data, config.holdout_name, config.holdout_split, argument="holdout_data")
    check_overlap(forget, holdout, names=("forget", "holdout"))
    return {"forget": forget[: config.ds_size], "holdout": holdout[: config.ds_size]}


def encode_sets(rows: Mapping[str, Sequence[Record]], text_format: TextFormat) -> dict[str, list[Example]]:
    """The two sets, tokenised.

    Raises:
        InputError: rows that cannot be tokenised, or fewer than two examples in a set.
    """
    from unlora.data import encode_records

    sets = {name: encode_records(part, text_format, argument=f"{name}_data") for name, part in rows.items()}
    raise_if(
        Problem(f"{name}_data", f"{len(part)} example", "one alone shows no spread", "give at least two")
        for name, part in sets.items()
        if len(part) < 2
    )
    return sets


def reference_nll(
    model_config: ModelConfig, config: MembershipConfig, text_format: TextFormat, sets: Mapping[str, Sequence[Example]]
) -> dict[str, NDArray[np.float64]]:
    """By set the mean-token loss of each example under the reference model, which is gone again afterwards."""
    from unlora.evals.scoring import example_nll
    from unlora.models import load_model, load_tokenizer, source_settings

    other = replace(model_config, model_name_or_path=str(config.reference_model), model_revision="main", on=None)
    if (
        load_tokenizer(other.model_name_or_path, source_settings(other)).get_vocab()
        != text_format.tokenizer.get_vocab()
    ):
        reason = "it has another vocabulary, so its losses a token are not those of the same tokens"
        raise InputError(Problem("reference_model", other.model_name_or_path, reason, "use a model of the same family"))
    model, _ = load_model(other)
    losses = {name: example_nll(model, part, text_format, config.eval_batch_size) for name, part in sets.items()}
    return {name: sums / tokens for name, (sums, tokens) in losses.items()}


def print_tables(metrics: Mapping[str, Any]) -> None:
    """Memorisation by set, and membership by attack; what was not measured is a dash."""
    from rich.console import Console
    from rich.table import Table

    sets = metrics["examples"]
    memorisation = Table("memorisation", *(f"{name} ({size})" for name, size in sets.items()))
    for name, values in metrics["memorisation"].items():
        memorisation.add_row(name.replace("_", " "), *(number(values[part]) for part in sets))
    membership = Table("membership attack", "AUC", "standard error", "PrivLeak")
    for name, values in metrics["membership"].items():
        membership.add_row(name, *(number(values[column]) for column in ("auc", "standard_error", "privleak")))
    console = Console()
    console.print(memorisation)
    console.print(membership)
