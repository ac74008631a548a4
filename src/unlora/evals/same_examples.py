"""Check that two evaluation logs are of the same forget set. Otherwise their numbers cannot be compared."""

from __future__ import annotations

from dataclasses import dataclass

from unlora.common.errors import InputError, Problem
from unlora.evals.log_format import KEPT, TASKS, Log


@dataclass(frozen=True)
class ForgetExamples:
    """The examples of a forget set, as far as they are known, by their position in the set.

    Args:
        count: number of examples, including those that could not be scored.
        answers: the right answers.
        wrong: number of wrong answers of each example.
    """

    count: int
    answers: dict[int, str]
    wrong: dict[int, int]


def forget_examples(log: Log) -> ForgetExamples:
    """Return the examples of the forget set in a log, which may lack the answers or have truth ratios but no losses.

    Examples that open-unlearning could not score are in its file under `KEPT`, but in no column of the log.
    """
    columns, kept = log.get(TASKS["forget"], {}), log.get(KEPT, {})
    entries = [entry for metric, entry in kept.items() if metric.startswith("forget_Q_A_") and isinstance(entry, dict)]
    indices = {index for entry in entries for index in entry.get("value_by_index") or ()}.union(*columns.values())
    places = {index: place for place, index in enumerate(sorted(indices, key=int))}
    texts, losses = columns.get("generated_text", {}), columns.get("average_perturb_loss", {})
    return ForgetExamples(
        len(places),
        {places[index]: right for index, (_, _, right) in texts.items()},
        {places[index]: len(row) for index, row in losses.items()},
    )


def check_same_examples(ours: ForgetExamples, retrained: Log) -> None:
    """Raise `InputError` if the log of a retrained model is of another forget set.

    The number of examples, the right answers and the numbers of wrong answers are compared.
    """
    theirs = forget_examples(retrained)
    fix = "evaluate both models on the same forget set, with the same ds_size"
    if theirs.count != ours.count:
        reason = f"{ours.count} forget examples are compared with it"
        raise InputError(Problem("retrained", f"{theirs.count} forget examples", reason, fix))
    for place in sorted(ours.wrong.keys() & theirs.wrong.keys()):
        if ours.wrong[place] != theirs.wrong[place]:
            reason = f"forget example {place} has {ours.wrong[place]} here"
            raise InputError(Problem("retrained", f"{theirs.wrong[place]} perturbed answers", reason, fix))
    for place in sorted(ours.answers.keys() & theirs.answers.keys()):
        answer, reference = ours.answers[place], theirs.answers[place]
        # The references in TOFU's logs were tokenised and decoded, which may lose spaces.
        if "".join(answer.split()) != "".join(reference.split()):
            reason = f"the answer of forget example {place} is {answer!r} here"
            raise InputError(Problem("retrained", reference, reason, fix))
