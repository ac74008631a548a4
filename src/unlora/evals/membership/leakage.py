"""Measure memorisation, and membership inference that tells forget from holdout examples.

Scores are {set: {score: [examples]}} with the sets "forget" and "holdout". `summarise_leakage` computes the metrics
from them, so that the scores of two models can be compared later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from unlora.common.errors import InputError, Problem, from_elsewhere
from unlora.common.reading import read_json
from unlora.evals.membership import scores as membership
from unlora.evals.membership.readings import token_scores
from unlora.evals.metrics import finite_values
from unlora.evals.progress import Progress, continued
from unlora.models.hashes import sets_sha256

if TYPE_CHECKING:
    from torch import nn

    from unlora.data import Example, TextFormat
    from unlora.evals.scoring import TokenScores

Scores = dict[str, dict[str, list[float]]]

SETS = ("forget", "holdout")
MEMORISATION = ("exact_memorisation", "extraction_strength")
# The percentages k of Min-K% and Min-K%++ that are always measured. MUSE reports 40.
PERCENTS = (20, 40)
MEMBERSHIP_ATTACKS = (
    *("loss", "zlib"),
    *(f"min_k_{percent}" for percent in PERCENTS),
    *(f"min_k_plus_plus_{percent}" for percent in PERCENTS),
    *("reference", "gradnorm", "parameter_gradnorm"),
)
_MIN_K = re.compile(r"min_k_(plus_plus_)?\d+")
# Suffix of scores that leave out the last label, as open-unlearning does, and the scores by open-unlearning's names.
WITHOUT_LAST = "_without_last"
OPEN_UNLEARNING = {
    "exact_memorization": f"exact_memorisation{WITHOUT_LAST}",
    "extraction_strength": f"extraction_strength{WITHOUT_LAST}",
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_min_k": f"min_k_40{WITHOUT_LAST}",
    "mia_min_k_plus_plus": f"min_k_plus_plus_40{WITHOUT_LAST}",
    "mia_reference": "reference",
    "mia_gradnorm": "parameter_gradnorm",
}


def leakage_scores(
    model: nn.Module,
    sets: Mapping[str, Sequence[Example]],
    text_format: TextFormat,
    batch_size: int | None = None,
    reference_nll: Mapping[str, ArrayLike] | None = None,
    gradnorm: bool = False,
    parameter_gradnorm: bool = False,
    progress: Progress | None = None,
    percents: Sequence[int] = PERCENTS,
) -> Scores:
    """Score every example, in one forward pass over all of them.

    Args:
        model: a causal LM, with or without adapters. It is left as it was found.
        sets: tokenised examples, "forget" and "holdout".
        text_format: how they were tokenised.
        batch_size: examples in a forward pass.
        reference_nll: by set, the mean-token loss of each example under another model, [examples], for "reference".
        gradnorm: whether to add "gradnorm", which costs a backward pass.
        parameter_gradnorm: whether to add "parameter_gradnorm", which costs a separate backward pass for each example.
        progress: called with the number of examples done so far, in the forward and then in the backward passes.
        percents: k of Min-K% and Min-K%++.

    Returns:
        By set, the scores named in `MEMORISATION` and `MEMBERSHIP_ATTACKS`, each [examples], and those that leave out
        the last label (`OPEN_UNLEARNING`). The higher the score of an attack, the more likely it is that the example
        was in the training data.

    Raises:
        InputError: an example without a label, or with more tokens than the model has positions.
    """
    from unlora.evals.membership.gradient_norm import gradient_norms, parameter_gradient_norms
    from unlora.evals.scoring import score_tokens

    examples = [example for name in SETS for example in sets[name]]
    tokens = score_tokens(model, examples, text_format, batch_size, progress)
    texts = [_answer_text(example, text_format) for example in examples]
    rows = [_example_scores(*pair, percents) for pair in zip(tokens, texts, strict=True)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if reference_nll is not None:
        theirs = np.concatenate([reference_nll[name] for name in SETS])
        pairs = zip(tokens, theirs, strict=True)
        columns["reference"] = [membership.reference_score(own.logp, [-nll]) for own, nll in pairs]
    if gradnorm:
        later = continued(progress, len(examples))
        columns["gradnorm"] = (-gradient_norms(model, examples, text_format, batch_size, progress=later)).tolist()
    if parameter_gradnorm:
        later = continued(progress, (1 + gradnorm) * len(examples))
        norms = parameter_gradient_norms(model, examples, text_format, later)
        columns["parameter_gradnorm"] = (-norms).tolist()
    first = len(sets["forget"])
    parts = {"forget": slice(first), "holdout": slice(first, None)}
    return {part: {name: column[cut] for name, column in columns.items()} for part, cut in parts.items()}


def _answer_text(example: Example, text_format: TextFormat) -> str:
    """Return the labelled text, whose compressed size the zlib score needs."""
    from unlora.models.generation import decode

    labels = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if token == label]
    return decode(labels, text_format.tokenizer)


def _example_scores(tokens: TokenScores, text: str, percents: Sequence[int]) -> dict[str, float]:
    columns = tokens.logp, tokens.mean, tokens.std, tokens.matches, membership.zlib_size(text)
    scores = {percent: token_scores(*columns, "unlora", percent) for percent in percents}
    # An example with a single label has none left, and its score is NaN, which JSON lacks.
    theirs = {name: np.nan_to_num(value) for name, value in token_scores(*columns, "open-unlearning", 40).items()}
    first = scores[percents[0]]
    return {
        **{name: first[name] for name in (*MEMORISATION, "loss", "zlib")},
        **{f"min_k_{percent}": found["min_k"] for percent, found in scores.items()},
        **{f"min_k_plus_plus_{percent}": found["min_k_plus_plus"] for percent, found in scores.items()},
        **{f"{name}{WITHOUT_LAST}": float(theirs[name]) for name in MEMORISATION},
        **{f"{name}_40{WITHOUT_LAST}": float(theirs[name]) for name in ("min_k", "min_k_plus_plus")},
    }


def summarise_leakage(scores: Scores, retrained: Scores | None = None) -> dict[str, Any]:
    """Return the metrics of scores as plain JSON values.

    Args:
        scores: scores of the model to evaluate.
        retrained: scores of a model trained without the forget set, on the same examples. Without them, PrivLeak is
            None.

    Returns:
        By name:

        - `examples`: the number of examples of each set.
        - `memorisation`: by metric and set, the mean over examples.
        - `open_unlearning`: memorisation of the forget set and the AUCs of attacks, with open-unlearning's names and
          definitions.
        - `membership`: by attack, auc and standard_error (`membership.score_auc` with the forget examples as members)
          and privleak (`membership.privacy_leakage`). privleak is None if `retrained` lacks the attack or has an AUC of
          1, which may happen by chance with few examples, and by which PrivLeak would divide by zero.

    Raises:
        InputError: as these two functions, or `retrained` has other numbers of examples.
    """
    sizes = {part: len(scores[part]["loss"]) for part in SETS}
    if retrained is not None:
        check_retrained(retrained, sizes)
    theirs = {} if retrained is None else _aucs(retrained)
    return {
        "examples": sizes,
        "memorisation": {
            name: {part: float(finite_values(name, scores[part][name]).mean()) for part in SETS}
            for name in MEMORISATION
        },
        "membership": {
            attack: {
                "auc": auc.value,
                "standard_error": auc.standard_error,
                "privleak": _leakage(auc, theirs.get(attack)),
            }
            for attack, auc in _aucs(scores).items()
        },
        "open_unlearning": _open_unlearning(scores),
    }


def _leakage(auc: membership.Auc, retrained: membership.Auc | None) -> float | None:
    """Return PrivLeak, or None where it is not defined."""
    if retrained is None or retrained.value == 1:
        return None
    return membership.privacy_leakage(auc.value, retrained.value)


def _open_unlearning(scores: Scores) -> dict[str, float]:
    """Return the numbers with open-unlearning's definitions. Logs of older versions lack some of the scores."""
    forget, holdout = (scores[part] for part in SETS)
    found = {theirs: ours for theirs, ours in OPEN_UNLEARNING.items() if ours in forget}
    return {
        theirs: membership.score_auc(forget[ours], holdout[ours]).value
        if theirs.startswith("mia_")
        else float(np.mean(forget[ours]))
        for theirs, ours in found.items()
    }


def check_retrained(retrained: Scores, sizes: Mapping[str, int]) -> None:
    """Raise `InputError` if a retrained model's scores cannot be compared with scores of sets of these sizes."""
    theirs = {part: len(retrained[part]["loss"]) for part in SETS}
    if theirs != sizes:
        reason, fix = f"the examples scored here are {dict(sizes)}", "score both models on the same data"
        raise InputError(Problem("retrained", theirs, reason, fix))


def _aucs(scores: Scores) -> dict[str, membership.Auc]:
    """Return the AUC of each attack in the scores."""
    forget, holdout = (scores[part] for part in SETS)
    return {
        attack: membership.score_auc(forget[attack], holdout[attack])
        for attack in forget
        if attack in MEMBERSHIP_ATTACKS or _MIN_K.fullmatch(attack)
    }


def read_scores(
    path: str | Path, argument: str = "retrained", sets: Mapping[str, Iterable[Mapping[str, Any]]] | None = None
) -> Scores:
    """Read the scores from a log of `unlora membership`.

    Args:
        path: the log.
        argument: the argument that names the path, for error messages.
        sets: by set, the rows that the scores must be of. They are compared by their SHA-256, which the log has as
            "rows". Logs of older versions lack the hashes and are accepted.

    Raises:
        InputError: the file does not exist, is not JSON, or is not {"scores": {set: {score: numbers}}} with the sets
            and scores needed, or the scores are of other rows.
    """
    with from_elsewhere(
        argument, str(path), "cannot be read as a log with scores", "give a log of `unlora membership`"
    ):
        log = read_json(path)
        scores, theirs = log["scores"], dict(log.get("rows", {}))
    if not is_scores(scores):
        reason = f"its scores are not one number per example, with the same scores for {' and '.join(SETS)}"
        raise InputError(Problem(argument, str(path), reason, "give a log of `unlora membership`"))
    ours = {} if sets is None else sets_sha256(sets)
    if others := [name for name, sha256 in ours.items() if theirs.get(name, sha256) != sha256]:
        reason = f"its rows of {', '.join(others)} differ from the rows here (by their SHA-256)"
        raise InputError(Problem(argument, str(path), reason, "score both models on the same data"))
    checked: Scores = scores
    return checked


def is_scores(scores: object) -> bool:
    """Return whether this has the sets and scores of a log, with one number per example."""
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
