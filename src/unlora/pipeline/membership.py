"""Membership attacks, which try to distinguish the forget set from unseen rows, and measures of memorisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlora.adapter.offset import original_model
from unlora.common.distributed import on_main
from unlora.common.errors import raise_if
from unlora.common.files import write_json
from unlora.common.progress import shown
from unlora.data import Example, TextFormat, check_overlap, encode_records, load_set
from unlora.data.sources import Record
from unlora.evals.membership.leakage import Scores, check_retrained, leakage_scores, read_scores, summarise_leakage
from unlora.evals.scoring import example_nll
from unlora.models.hashes import sets_sha256
from unlora.models.load import load_model, load_tokenizer, read_config
from unlora.pipeline.loading import comparable_model, load_target
from unlora.pipeline.request import model_problems
from unlora.settings import MembershipConfig, ModelConfig, TextConfig


def measure_membership(model_config: ModelConfig, text: TextConfig, config: MembershipConfig) -> dict[str, Any]:
    """Score both sets, and write metrics and scores to `config.log`.

    A model with an adapter is scored without the adapter, too: if an attack cannot detect what the original model was
    trained on, its result says nothing about the unlearned model.

    Returns:
        The metrics from `summarise_leakage`.

    Raises:
        InputError: invalid settings, or sets that cannot be compared.
    """
    settings = (*text.problems(), *config.target_problems(model_config), *config.problems())
    raise_if([*model_problems(model_config), *settings])
    rows = _load_rows(config)
    retrained = None if config.retrained is None else read_scores(config.retrained, sets=rows)
    tokenizer = load_tokenizer(model_config)
    text_format = TextFormat.of(tokenizer, text, read_config(model_config))
    sets = _encode_sets(rows, text_format, config.ds_size)
    if retrained is not None:
        check_retrained(retrained, {name: len(examples) for name, examples in sets.items()})
    reference = None if config.reference_model is None else _reference_nll(model_config, config, text_format, sets)
    model, _ = load_target(model_config, config)
    gradients = config.gradnorm, config.parameter_gradnorm
    passes = 1 + sum(gradients)

    def score(name: str) -> Scores:
        with shown(f"scores {name}", " examples", passes * sum(map(len, sets.values()))) as progress:
            size = config.eval_batch_size
            return leakage_scores(model, sets, text_format, size, reference, *gradients, progress, config.min_k)

    scores, original = score(config.log), None
    if config.adapted(model_config):
        with original_model(model):
            original = score("the model without its adapter")
    metrics = summarise_leakage(scores, retrained)
    others = {"original": original, "retrained": retrained}
    compared = {name: part and summarise_leakage(part) for name, part in others.items()}
    log = {"metrics": metrics, **compared, "rows": sets_sha256(rows), "scores": scores}
    on_main(lambda: write_json(config.log, log))
    return metrics


def _load_rows(config: MembershipConfig) -> dict[str, Sequence[Record]]:
    """Load the first `ds_size` rows of both sets, which are enough for `ds_size` examples.

    Raises:
        InputError: the rows cannot be read, or some are in both sets.
    """
    forget = load_set(config, "forget")
    holdout = load_set(config, "holdout")
    check_overlap(forget, holdout, names=("forget", "holdout"))
    return {"forget": forget[: config.ds_size], "holdout": holdout[: config.ds_size]}


def _encode_sets(
    rows: Mapping[str, Sequence[Record]], text_format: TextFormat, most: int | None
) -> dict[str, list[Example]]:
    """Tokenise both sets, and keep the first `most` examples of each.

    Raises:
        InputError: the rows cannot be tokenised.
    """
    sets = {name: encode_records(part, text_format, argument=f"{name}_data") for name, part in rows.items()}
    return {name: examples[:most] for name, examples in sets.items()}


def _reference_nll(
    model_config: ModelConfig, config: MembershipConfig, text_format: TextFormat, sets: Mapping[str, Sequence[Example]]
) -> dict[str, NDArray[np.float64]]:
    """Return {set: loss per token of each example under the reference model, [examples]}.

    The reference model is loaded and released here, because two models may not fit into memory.
    """
    model, _ = load_model(comparable_model(model_config, str(config.reference_model), "reference_model"))
    losses = {name: example_nll(model, part, text_format, config.eval_batch_size) for name, part in sets.items()}
    return {name: sums / tokens for name, (sums, tokens) in losses.items()}
