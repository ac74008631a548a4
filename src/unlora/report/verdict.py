"""The verdict on a run: a fixed rule over its numbers, described in docs/report.md. It never says "deleted"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from unlora.report.advice import Place, Step, hardly_forgotten, next_steps
from unlora.report.answers import Count, counts_text, sampled_counts
from unlora.report.names import capitalised, fixed, p_value, percent
from unlora.report.read import Attack, Membership, Run, read_run
from unlora.report.statistics import SPREAD, Estimate
from unlora.report.summary import LEVEL, Summary, smallest_distance, summarise_run
from unlora.report.unseen import areas_text, most_telling, sensitive_attacks
from unlora.runs.folder import DIFFERENCE

# If less than this share of the utility was kept, the cost is called high, whatever the tests say.
_LEAST_KEPT = 0.9
# From this share on, the utility that was kept is shown as more than 100.0 %.
_ROUNDED = 1.0005
# The metric by which attacks are compared, and the name of the measurement without an attack.
_PROBABILITY, _NO_ATTACK = "forget_probability", "none"
_LABELS = {
    "alike": "No difference found",
    "mixed": "Inconclusive",
    "apart": "Still distinguishable",
    "undecided": "Inconclusive",
    "untested": "Not tested",
}
_LIMITS = (
    "A test that finds no difference does not prove that there is none. Other questions, other tests or a stronger "
    "attacker may find one.",
    "The verdict is about the evaluated examples and this run only. It says nothing about other data that the model "
    "may hold about the same people or facts.",
    "Intervals cover the choice of examples. Another seed or another retrained model would add to the uncertainty.",
)
# State, sentence and limits.
_Finding = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class Verdict:
    """What can be said about a run.

    Args:
        state: "alike" (no difference found), "mixed", "apart" (distinguishable), "undecided" (the test could not
            tell) or "untested".
        label: the verdict in a few words.
        sentence: what the numbers say about the forget set.
        answers: the number of answers that still reveal the fact, and of those that are broken text.
        cost: what the numbers say about everything else.
        attacks: what the attacks brought back.
        steps: what to do next.
        limits: what the verdict does not cover.
    """

    state: str
    label: str
    sentence: str
    answers: str
    cost: str
    attacks: str
    steps: tuple[Step, ...]
    limits: tuple[str, ...]


def verdict_on(folder: Path) -> Verdict:
    """Return the verdict on a run for the user's terminal, where commands contain the real paths of folder and data."""
    run = read_run(folder)
    return verdict(run, summarise_run(run), Place.here(run))


def verdict(run: Run, summary: Summary, place: Place | None = None) -> Verdict:
    """Apply the rule of docs/report.md.

    Args:
        run: a finished run.
        summary: its numbers.
        place: how commands name the run and its data. Defaults to the names for a page.
    """
    state, sentence, limits = _forgetting(run, summary)
    label, worst = _LABELS[state], strongest(run)
    if state == "alike" and (unseen := run.membership) is not None:
        telling, distance = most_telling(unseen)
        if distance > SPREAD:
            state, label = "mixed", _LABELS["mixed"]
            sentence += f" But a membership attack distinguishes them from unseen rows ({areas_text(unseen, telling)})."
    if state == "alike" and (spoiled := _spoiled(summary)):
        state, label = "mixed", spoiled
    if state == "alike" and summary.kept is not None and summary.kept.high < _LEAST_KEPT:
        state, label = "mixed", "No difference found, but at a high cost"
    tried = len(_compared(run)) + (sampled_counts(run) is not None)
    if state == "alike" and (_brings_back(worst, summary.gap, tried) or _reveals(run, tried)):
        state, label = "mixed", "No difference found until attacked"
    steps = tuple(next_steps(run, summary, state, place or Place.on_page(run)))
    if state in ("untested", "undecided", "apart") and hardly_forgotten(summary):
        state, label = "apart", "Hardly anything was forgotten"
    said = counts_text(summary.counts)
    return Verdict(state, label, sentence, said, _cost(summary), _attacks(run, worst), steps, (*limits, *_LIMITS))


def _spoiled(summary: Summary) -> str | None:
    """Return a label if significantly more answers are broken or reveal facts than for the model to compare with.

    The model to compare with is the retrained one. Without it, the broken answers are compared with the original's,
    and no answer should reveal a fact.
    """
    for kind, label in (
        ("broken", "No difference found, but the answers are broken text"),
        ("given_away", "No difference found, but answers still reveal facts"),
    ):
        own, known = (summary.count(kind, "forget", model) for model in ("unlearned", "retrained"))
        if own is None:
            continue
        other = known or (summary.count(kind, "forget", "original") if kind == "broken" else Count(0, own.of))
        if other is not None and own.exceeds(other, LEVEL):
            return label
    return None


def _forgetting(run: Run, summary: Summary) -> _Finding:
    if _has_quality(summary):
        return _against_retrained(summary)
    if (unseen := run.membership) is not None:
        return _against_unseen(unseen, summary)
    if checks := _checks(run):
        return _at_the_last_check(checks, summary)
    if "unlearned" not in run.logs and "unlearned" not in run.readings:
        return "untested", "The run was not evaluated, so nothing is known about what it forgot.", ()
    if summary.gap is not None:
        return _beside_retrained(summary, summary.gap)
    reason = "Without a retrained model or unseen rows of the same kind, there is no telling whether the data is gone. "
    return "untested", reason + _fall(summary), ()


def tests_of(run: Run, summary: Summary) -> list[str]:
    """Return the names of the tests that the verdict on the run is based on."""
    quality, unseen = _has_quality(summary), run.membership is not None
    known = {
        "forget quality": quality,
        "membership attacks": unseen,
        "the test that stopped the training": bool(_checks(run)) and not quality and not unseen,
        "attacks": _has_comparison(run),
    }
    return [name for name, there in known.items() if there]


def _has_quality(summary: Summary) -> bool:
    return {"unlearned", "original"} <= summary.quality.keys()


def _checks(run: Run) -> list[dict[str, float]]:
    return [row for row in run.train if {"stop_ks_pvalue", "stop_auc"} <= row.keys()]


def _against_retrained(summary: Summary) -> _Finding:
    p, original, gap = summary.quality["unlearned"], summary.quality["original"], summary.gap
    count, others = (len(summary.ratios[model]) for model in ("unlearned", "retrained"))
    least = smallest_distance(count, others)
    power = f"With {count} examples, the test only detects distances of more than {least:.2f} between the two curves."
    scores = f"p = {p_value(p)}; original model: p = {p_value(original)}"
    if original >= LEVEL:
        sentence = (
            f"On these {count} examples, the test cannot even distinguish the original model from the retrained one "
            f"(p = {p_value(original)}), so it says nothing about the unlearned model. "
        )
        return "undecided", sentence + _fall(summary), (power,)
    if p < LEVEL:
        sentence = f"On {count} forget examples, the unlearned model can still be distinguished from the retrained one"
        return "apart", f"{sentence} ({scores}){_direction(gap)}.", ()
    if gap is not None and gap.excludes_zero:
        sentence = f"By the truth ratios of {count} forget examples, the unlearned model cannot be distinguished from"
        return "mixed", f"{sentence} the retrained one ({scores}), but{_direction(gap)[1:]}.", (power,)
    compared = "" if gap is None else f"; difference in answer probability: {_signed(gap)}"
    sentence = f"On {count} forget examples, no difference was found between the unlearned and the retrained model"
    return "alike", f"{sentence} ({scores}{compared}).", (power,)


def _beside_retrained(summary: Summary, gap: Estimate) -> _Finding:
    """Compare the probability of the answers alone: without wrong answers there is no forget quality."""
    limit = "The forget rows have no wrong answers (perturbed_answer), so forget quality could not be tested."
    if gap.excludes_zero:
        return "apart", f"The unlearned model differs from the retrained one{_direction(gap)}.", (limit,)
    if not gap.has_interval:
        sentence = "A single forget example does not show whether the unlearned model differs from the retrained one "
        return "undecided", f"{sentence}(difference in probability: {_signed(gap)}). {_fall(summary)}", (limit,)
    sentence = (
        "The answers are about as likely as under the retrained model (difference in probability: "
        f"{_signed(gap)}), but there may be a difference that is too small to show on these examples. "
    )
    return "undecided", sentence + _fall(summary), (limit,)


def _direction(gap: Estimate | None) -> str:
    """Return the end of a sentence: how the probability of the answers differs from the retrained model's."""
    if gap is None:
        return ""
    if gap.low > 0:
        return f": the answers are still more likely than under that model, by {_signed(gap)}"
    if gap.high < 0:
        return (
            f": the answers are less likely than under that model, by {_signed(gap)}, and forgetting too much leaves a "
            "trace as well"
        )
    return f": the answers are as likely as under that model on average, but not one by one: {_signed(gap)}"


def _against_unseen(membership: Membership, summary: Summary) -> _Finding:
    worst, distance = most_telling(membership)
    forget, unseen = (membership.sizes.get(name, 0) for name in ("forget", "holdout"))
    found = f"{forget} forget and {unseen} unseen examples; the most telling attack is {areas_text(membership, worst)}"
    limit = "Forget quality is not known. " + (
        "Membership attacks alone compare this model with a retrained one."
        if worst in membership.areas["retrained"]
        else "Unseen rows stand in for a retrained model, and they may differ from the forget set in other ways."
    )
    if distance > SPREAD:
        sentence = f"The forget set can still be distinguished from unseen rows ({found}). "
        return "apart", sentence + _fall(summary), (limit,)
    count = len(membership.attacks)
    sentence = f"None of {count} membership attacks distinguishes the forget set from unseen rows ({found})"
    sensitive = sensitive_attacks(membership)
    if not sensitive:
        reason = "with so few examples, none of them would detect half of what the original model gives away"
        if not membership.areas["original"]:
            reason = "it is not known whether they can detect anything, as they were not run on the original model"
        return "undecided", f"{sentence}, but {reason}. {_fall(summary)}", (limit,)
    best = min(sensitive, key=lambda name: sensitive[name])
    power = f"The most sensitive attack, {best}, only detects AUCs that are more than {sensitive[best]:.3f} away."
    return "alike", f"{sentence}. {_fall(summary)}", (limit, power)


def _at_the_last_check(checks: list[dict[str, float]], summary: Summary) -> _Finding:
    # The adapter that is kept is that of the check nearest to the target, which need not be the last one.
    step = checks[-1].get("stop_step", checks[-1].get("step"))
    kept = next((row for row in checks if row.get("step") == step), checks[-1])
    original = checks[0]["stop_ks_pvalue"]  # the first check is before the first step
    error = f" ± {kept['stop_auc_standard_error']:.3f}" if "stop_auc_standard_error" in kept else ""
    found = f"KS p = {p_value(kept['stop_ks_pvalue'])}, AUC {kept['stop_auc']:.3f}{error}, during training"
    limits = ("This is the test that stopped the training, on the same rows. `unlora membership` runs other tests.",)
    if kept["stop_ks_pvalue"] < LEVEL:
        state, sentence = "apart", f"The forget set can still be distinguished from unseen rows ({found})."
    elif original < LEVEL:
        state, sentence = "alike", f"The forget set could not be distinguished from unseen rows ({found})."
    else:
        state = "undecided"
        sentence = (
            "Even before the first step, the test that stopped the training did not distinguish the forget set from "
            f"unseen rows (p = {p_value(original)}), so it says nothing about the unlearned model."
        )
    return state, f"{sentence} {_fall(summary)}", limits


def _fall(summary: Summary) -> str:
    """Return a sentence on the change in the probability of the forget answers."""
    original, unlearned = (summary.mean("forget", "probability", model) for model in ("original", "unlearned"))
    if original is None or unlearned is None or summary.fall is None:
        return _moved(summary)
    changed = "fell" if summary.fall.value < 0 else "did not fall: it went"
    return (
        f"The probability of the forget answers {changed} from {original.value:.3f} to {unlearned.value:.3f} "
        f"({_signed(summary.fall)})."
    )


def _moved(summary: Summary) -> str:
    """Return a sentence on the change in the forgetting metric of another benchmark; empty if there is none."""
    axes = summary.axes
    if axes is None or axes.better != -1 or "unlearned" not in axes.points:
        return ""
    unlearned, original = axes.points["unlearned"][1], axes.points.get("original")
    change = "is" if original is None else f"went from {original[1].value:.3g} to"
    ends = unlearned.ends(lambda value: f"{value:.3g}")
    return f"{capitalised(axes.y)} {change} {unlearned.value:.3g}{f' (95 % interval {ends})' if ends else ''}."


def _cost(summary: Summary) -> str:
    original, unlearned = summary.utility.get("original"), summary.utility.get("unlearned")
    if unlearned is None:
        return f"The cost is not known: {'only the forget set' if summary.means else 'nothing'} was evaluated."
    name, digits = capitalised(summary.utility_name), ".3g"
    if summary.terms:
        name, digits = f"{name} (over {summary.terms} terms)", ".3f"
    if original is None:
        return f"{name} is {unlearned.value:.3g}. The original model's is not known."
    words = f"{name} went from {original.value:{digits}} to {unlearned.value:{digits}}"
    if summary.measured_on and summary.terms:
        words += f", measured on {summary.measured_on}"
    if (kept := summary.kept) is None:
        return f"{words}."
    ends = kept.ends(percent)
    interval = f" (95 % interval {ends} %)" if ends else ""
    if kept.value > _ROUNDED:
        return (
            f"{words}: nothing of it was lost{interval}. A higher value is no gain in ability, because the model was "
            "trained on rows like these."
        )
    return f"{words}: {percent(kept.value)} % of it was kept{interval}."


def _attacks(run: Run, worst: Attack | None) -> str:
    if run.attacks is None:
        return "No attacks were tried, so it is not known whether the data stays forgotten."
    sampled = _sampled(run)
    if not _has_comparison(run):
        none = "Attacks were tried, but without a retrained model there is nothing to compare their success with."
        return f"{none} {sampled}".strip()
    return f"{_brought_back(run, worst)} {sampled}".strip()


def _brought_back(run: Run, worst: Attack | None) -> str:
    """Return a sentence on the attack that makes the answers the most likely; empty if no attack measured this."""
    if worst is None:
        return ""
    value, error = worst.models[DIFFERENCE][_PROBABILITY], worst.models[DIFFERENCE].get(f"{_PROBABILITY}_se")
    count = len({attack.name for attack in _compared(run)})
    kinds = f"{count} kind{'' if count == 1 else 's'} of attack"
    if value <= 0:
        return f"Of {kinds}, none makes the answers more likely than on the retrained model."
    size = f"+{value:.3f}" + ("" if error is None else f" ± {error:.3f} (standard error)")
    return (
        f"Of {kinds}, {worst.name} ({worst.setting}) brings back the most: {size} in answer probability, compared with "
        "the same attack on the retrained model."
    )


def _sampled(run: Run) -> str:
    """Return a sentence on the facts in sampled answers; empty if none were sampled."""
    found = sampled_counts(run)
    if found is None:
        return ""
    setting, counts = found
    others = "; ".join(
        f"{model} model: {counts[model].count}" for model in ("original", "retrained") if model in counts
    )
    return f"In {setting} of each answer, the unlearned model reveals {counts['unlearned']} facts ({others})."


def _has_comparison(run: Run) -> bool:
    """Return whether an attack was also run on a retrained model."""
    found = [] if run.attacks is None else run.attacks.found
    return any(attack.name != _NO_ATTACK and DIFFERENCE in attack.models for attack in found)


def _reveals(run: Run, tried: int) -> bool:
    """Return whether sampled answers reveal significantly more facts than the retrained model's.

    The level is divided by the number of attacks, `tried`, as in `_brings_back`.
    """
    found = sampled_counts(run)
    if found is None or "retrained" not in found[1]:
        return False
    return found[1]["unlearned"].exceeds(found[1]["retrained"], LEVEL / 2 / tried)


def strongest(run: Run) -> Attack | None:
    """Return the attack with the largest difference in answer probability between unlearned and retrained model."""
    return max(_compared(run), key=lambda attack: attack.models[DIFFERENCE][_PROBABILITY], default=None)


def _compared(run: Run) -> list[Attack]:
    found = [] if run.attacks is None else run.attacks.found
    return [
        attack for attack in found if attack.name != _NO_ATTACK and _PROBABILITY in attack.models.get(DIFFERENCE, {})
    ]


def _brings_back(attack: Attack | None, gap: Estimate | None, tried: int) -> bool:
    """Return whether an attack raises the difference to the retrained model significantly above that without an attack.

    The file does not hold the standard error over examples. The one of the difference without an attack is used in its
    place, since it is over the same examples. The attack is the strongest of `tried`, so the level is divided by their
    number (Bonferroni).
    """
    if attack is None or gap is None:
        return False
    difference, over_examples = attack.models[DIFFERENCE], (gap.high - gap.low) / (2 * SPREAD)
    error = math.hypot(over_examples, difference.get(f"{_PROBABILITY}_se", 0.0))
    return difference[_PROBABILITY] - NormalDist().inv_cdf(1 - LEVEL / 2 / tried) * error > max(gap.high, 0.0)


def _signed(estimate: Estimate) -> str:
    ends = estimate.ends(_with_sign)
    return f"{_with_sign(estimate.value)}{f', 95 % interval {ends}' if ends else ''}"


def _with_sign(value: float) -> str:
    return fixed(value, sign="+")
