"""What a model gives away of its training data: memorisation, and membership scores of forget against holdout examples.

Scores are {set: {score: one number an example}} with the sets "forget" and "holdout"; `summarise_leakage` makes the
metrics of them, so that those of two models can be compared later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from unlora.common.errors import InputError, Problem
from unlora.evals.membership import scores as membership
from unlora.evals.membership.memorisation import exact_memorisation, extraction_strength
from unlora.evals.metrics import finite_values
from unlora.models.hashes import sets_sha256

if TYPE_CHECKING:
    from torch import nn

    from unlora.data import Example, TextFormat
    from unlora.evals.scoring import TokenScores

Scores = dict[str, dict[str, list[float]]]

SETS = ("forget", "holdout")
MEMORISATION = ("exact_memorisation", "extraction_strength")
# The lowest k % of tokens that Min-K% and Min-K%++ look at; MUSE reports 40.
PERCENTS = (20, 40)
ATTACKS = (
    *("loss", "zlib"),
    *(f"min_k_{percent}" for percent in PERCENTS),
    *(f"min_k_plus_plus_{percent}" for percent in PERCENTS),
    *("reference", "gradnorm"),
)


def leakage_scores(
    model: nn.Module,
    sets: Mapping[str, Sequence[Example]],
    text_format: TextFormat,
    batch_size: int = 32,
    reference_nll: Mapping[str, ArrayLike] | None = None,
    gradnorm: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Scores every example, in one forward pass over all of them.

    Args:
        model: a causal LM, with or without adapters; left as it was found.
        sets: tokenised examples, "forget" and "holdout".
        text_format: how they were tokenised.
        batch_size: rows of a pass.
        reference_nll: by set the mean-token loss of each example under another model, for "reference".
        gradnorm: adds "gradnorm", for a backward pass.
        progress: called with the number of examples done so far, of the forward and then of the backward pass.

    Returns:
        Lists by the names in `MEMORISATION` and `ATTACKS`; the latter all the higher, the more likely a member.

    Raises:
        InputError: an example without a label, or with more tokens than the model has positions.
    """
    from unlora.evals.membership.gradient_norm import gradient_norms
    from unlora.evals.scoring import score_tokens

    examples = [example for name in SETS for example in sets[name]]
    tokens = score_tokens(model, examples, text_format, batch_size, progress)
    texts = [_answer_text(example, text_format) for example in examples]
    rows = [_example_scores(*pair) for pair in zip(tokens, texts, strict=True)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if reference_nll is not None:
        theirs = np.concatenate([reference_nll[name] for name in SETS])
        columns["reference"] = (np.array(columns["loss"]) + theirs).tolist()
    if gradnorm:
        after = None if progress is None else lambda done: progress(len(examples) + done)
        columns["gradnorm"] = (-gradient_norms(model, examples, text_format, batch_size, progress=after)).tolist()
    first = len(sets["forget"])
    parts = {"forget": slice(first), "holdout": slice(first, None)}
    return {part: {name: column[cut] for name, column in columns.items()} for part, cut in parts.items()}


def _answer_text(example: Example, text_format: TextFormat) -> str:
    """The labelled text: what zlib compresses."""
    labels = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if token == label]
    text: str = text_format.tokenizer.decode(labels, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _example_scores(tokens: TokenScores, text: str) -> dict[str, float]:
    standardised = membership.standardised(tokens.logp, tokens.mean, tokens.std)
    return {
        "exact_memorisation": exact_memorisation(tokens.matches),
        "extraction_strength": extraction_strength(tokens.matches),
        "loss": membership.loss_score(tokens.logp),
        "zlib": membership.zlib_score(tokens.logp, text),
        **{f"min_k_{percent}": membership.min_k_score(tokens.logp, percent) for percent in PERCENTS},
        **{f"min_k_plus_plus_{percent}": membership.min_k_score(standardised, percent) for percent in PERCENTS},
    }


def summarise_leakage(scores: Scores, retrained: Scores | None = None) -> dict[str, Any]:
    """The metrics of scores, as plain JSON values.

    Args:
        scores: of the model in question.
        retrained: of a model trained without the forget set, on the same examples; without it PrivLeak is None.

    Returns:
        By name:

        - `examples`: by set their number.
        - `memorisation`: by metric and set the mean over examples.
        - `membership`: by attack auc, standard_error (`membership.score_auc`, forget examples as members) and privleak
          (`membership.privacy_leakage`, None where `retrained` lacks the attack).

    Raises:
        InputError: as these two functions, or `retrained` of other numbers of examples.
    """
    sizes = {part: len(scores[part]["loss"]) for part in SETS}
    if retrained is not None:
        check_retrained(retrained, sizes)
    return {
        "examples": sizes,
        "memorisation": {
            name: {part: float(finite_values(name, scores[part][name]).mean()) for part in SETS}
            for name in MEMORISATION
        },
        "membership": {attack: _attack(attack, scores, retrained) for attack in _attacks(scores)},
    }


def check_retrained(retrained: Scores, sizes: Mapping[str, int]) -> None:
    """Refuses scores of a retrained model to which those of sets of these sizes cannot be compared."""
    theirs = {part: len(retrained[part]["loss"]) for part in SETS}
    if theirs != sizes:
        reason, fix = f"the examples scored here are {dict(sizes)}", "score both models on the same data"
        raise InputError(Problem("retrain_log", theirs, reason, fix))
    for attack in _attacks(retrained):
        membership.privacy_leakage(0.5, _auc(attack, retrained).value)


def _attack(attack: str, scores: Scores, retrained: Scores | None) -> dict[str, float | None]:
    ours, leakage = _auc(attack, scores), None
    if retrained is not None and attack in _attacks(retrained):
        leakage = membership.privacy_leakage(ours.value, _auc(attack, retrained).value)
    return {"auc": ours.value, "standard_error": ours.standard_error, "privleak": leakage}


def _attacks(scores: Scores) -> list[str]:
    return [attack for attack in ATTACKS if attack in scores["forget"]]


def _auc(attack: str, scores: Scores) -> membership.Auc:
    return membership.score_auc(*(scores[part][attack] for part in SETS))


def read_scores(
    path: str | Path, argument: str = "retrain_log", sets: Mapping[str, Iterable[Mapping[str, Any]]] | None = None
) -> Scores:
    """The scores in a file that `unlora membership` wrote.

    Args:
        path: the file.
        argument: what the user calls it.
        sets: the rows, by set, that it must be of. Its "rows" are their SHA-256; logs without are of older versions.

    Raises:
        InputError: no such file, not JSON, not {"scores": {set: {score: numbers}}} with the sets and scores needed, or
            scores of other rows.
    """
    try:
        log = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = log["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"cannot be read as a log with scores ({type(error).__name__}: {error})"
        raise InputError(Problem(argument, str(path), reason, "give a log of `unlora membership`")) from error
    if not _is_scores(scores):
        reason = f"its scores are not one number an example for {', '.join(SETS)}, the same scores for both"
        raise InputError(Problem(argument, str(path), reason, "give a log of `unlora membership`"))
    if sets is not None:
        theirs = log.get("rows", {})
        if others := [name for name, ours in sets_sha256(sets).items() if theirs.get(name, ours) != ours]:
            reason = f"its rows of {', '.join(others)} are not those here (their SHA-256 differs)"
            raise InputError(Problem(argument, str(path), reason, "score both models on the same data"))
    checked: Scores = scores
    return checked


def _is_scores(scores: Any) -> bool:
    if not isinstance(scores, dict) or not all(isinstance(scores.get(part), dict) for part in SETS):
        return False
    if scores["forget"].keys() != scores["holdout"].keys() or "loss" not in scores["forget"]:
        return False
    columns = [list(scores[part].values()) for part in SETS]
    return all(
        isinstance(values, list) and len(values) == len(part[0]) and all(isinstance(v, int | float) for v in values)
        for part in columns
        for values in part
    )
