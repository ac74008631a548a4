"""The verdict in a sentence: a fixed rule from the numbers, described in docs/report.md. It never says "deleted"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from unlora.report.read import Attack, Membership, Run
from unlora.report.statistics import SPREAD, Estimate, Measured
from unlora.report.summary import LEVEL, Summary, p_value, smallest_distance

# A model that keeps less of its utility than this has paid for its forgetting, whatever the tests say.
LEAST_KEPT = 0.9
# What attacks are compared by, and between which models.
PROBABILITY, DIFFERENCE, NO_ATTACK = "forget_probability", "unlearned_minus_retrained", "none"
LIMITS = (
    "A test that finds no difference is no proof that there is none: other questions, other tests or a stronger "
    "attacker may find one.",
    "It speaks of the evaluated examples and of this run alone, not of what other data the model may hold about the "
    "same people or facts.",
    "Intervals are over the examples; another seed or another retrained model would add to them.",
)


@dataclass(frozen=True)
class Verdict:
    """What can be said, and how far.

    Args:
        state: alike (no difference found), mixed, apart (told apart), undecided (the test could not tell), untested.
        label: the same in a few words.
        sentence: what the numbers say of the forget set.
        cost: what they say of everything else.
        attacks: what attacks brought back.
        limits: what the verdict does not say.
    """

    state: str
    label: str
    sentence: str
    cost: str
    attacks: str
    limits: tuple[str, ...]


def verdict(run: Run, summary: Summary) -> Verdict:
    """Applies the rule of docs/report.md."""
    state, sentence, limits = _forgetting(run, summary)
    label = {
        "alike": "No difference found",
        "mixed": "Not settled",
        "apart": "Still told apart",
        "undecided": "Not settled",
        "untested": "Not tested",
    }[state]
    worst = strongest(run)
    if state == "alike" and run.membership is not None and run.membership.areas:
        telling, distance = most_telling(run.membership)
        if distance > SPREAD:
            state, label = "mixed", "Not settled"
            sentence += (
                f" But a membership attack tells them from unseen rows ({_area_words(run.membership, telling)})."
            )
    if state == "alike" and summary.kept is not None and summary.kept.high < LEAST_KEPT:
        state, label = "mixed", "No difference found, at a high cost"
    if state == "alike" and _brings_back(worst, summary.gap, len(_compared(run))):
        state, label = "mixed", "No difference found until attacked"
    return Verdict(state, label, sentence, _cost(summary), _attacks(run, worst), (*limits, *LIMITS))


def _forgetting(run: Run, summary: Summary) -> tuple[str, str, tuple[str, ...]]:
    if _has_quality(summary):
        return _against_retrained(summary)
    if run.membership is not None and run.membership.areas:
        return _against_unseen(run.membership, summary)
    if checks := _checks(run):
        return _at_the_last_check(checks, summary)
    if "unlearned" not in run.logs and "unlearned" not in run.scores:
        return "untested", "The run was not evaluated, so nothing can be said of what it forgot.", ()
    reason = (
        "Without a retrained model or unseen rows of the same kind nothing can be said of whether the data is gone. "
    )
    return "untested", reason + _fall(summary), ()


def tests_of(run: Run, summary: Summary) -> list[str]:
    """What a verdict on the run can rest on."""
    quality, unseen = _has_quality(summary), run.membership is not None and bool(run.membership.areas)
    known = {
        "forget quality": quality,
        "membership attacks": unseen,
        "the test that stopped the training": bool(_checks(run)) and not quality and not unseen,
        "attacks": strongest(run) is not None,
    }
    return [name for name, there in known.items() if there]


def _has_quality(summary: Summary) -> bool:
    return {"unlearned", "original"} <= summary.quality.keys()


def _checks(run: Run) -> list[dict[str, float]]:
    return [row for row in run.train if {"stop_ks_pvalue", "stop_auc"} <= row.keys()]


def _against_retrained(summary: Summary) -> tuple[str, str, tuple[str, ...]]:
    p, before = summary.quality["unlearned"], summary.quality["original"]
    sizes = [len(summary.ratios[model]) for model in ("unlearned", "retrained")]
    count, gap, least = sizes[0], summary.gap, smallest_distance(*sizes)
    power = f"With {count} examples the test sees only distances above {least:.2f} between the curves."
    scores = f"p = {p_value(p)}; original: {p_value(before)}"
    if before >= LEVEL:
        sentence = (
            f"On these {count} examples the test cannot even tell the original model from the retrained one "
            f"(p = {p_value(before)}), so it says nothing of the unlearned one. "
        )
        return "undecided", sentence + _fall(summary), (power,)
    if p < LEVEL:
        sentence = f"On {count} forget examples the unlearned model can still be told from one that never saw them"
        return "apart", f"{sentence} ({scores}){_direction(gap)}.", ()
    if gap is not None and gap.excludes_zero:
        sentence = f"By the truth ratios of {count} forget examples the unlearned model cannot be told from one that"
        return "mixed", f"{sentence} never saw them ({scores}), but{_direction(gap)[1:]}.", (power,)
    compared = "" if gap is None else f"; difference in answer probability {signed(gap)}"
    sentence = (
        f"On {count} forget examples no difference was found between the unlearned model and one that never saw them"
    )
    return "alike", f"{sentence} ({scores}{compared}).", (power,)


def _direction(gap: Estimate | None) -> str:
    """How the answers' probability differs from the retrained model's, as the end of a sentence."""
    if gap is None:
        return ""
    if gap.low > 0:
        return f": the answers are still more likely than for that model, by {signed(gap)}"
    if gap.high < 0:
        return f": the answers are less likely than for that model, by {signed(gap)}, and too much is a trace as well"
    return f": the answers are as likely as for that model in the mean, but not one by one: {signed(gap)}"


def most_telling(membership: Membership) -> tuple[str, float]:
    """The attack furthest from the retrained model's, or from 0.5, and by how many standard errors."""
    distances = {}
    for name, area in membership.areas.items():
        away, error = abs(area.value - _unknowing(membership, name).value), _error(membership, name)
        distances[name] = away / error if error else math.inf if away else 0.0
    worst = max(distances, key=lambda name: distances[name])
    return worst, distances[worst]


def _unknowing(membership: Membership, name: str) -> Measured:
    """What the attack finds on a model that never saw the forget set."""
    return membership.retrained.get(name, Measured(0.5, 0.0))


def _error(membership: Membership, name: str) -> float:
    """The standard error of the unlearned model's distance from that."""
    return math.hypot(membership.areas[name].standard_error, _unknowing(membership, name).standard_error)


def _seeing(membership: Membership) -> dict[str, float]:
    """The attacks that would see half of what the original gives away, and from which distance on they see anything."""
    least = {name: SPREAD * _error(membership, name) for name in membership.areas}
    known = {name: abs(area.value - _unknowing(membership, name).value) for name, area in membership.original.items()}
    return {name: distance for name, distance in least.items() if 0 < 2 * distance <= known.get(name, 0)}


def _area_words(membership: Membership, name: str) -> str:
    area, others = membership.areas[name], {"original": membership.original, "retrained": membership.retrained}
    compared = "".join(
        f", {model} {areas[name].value:.3f} ± {areas[name].standard_error:.3f}"
        for model, areas in others.items()
        if name in areas
    )
    return f"{name}: AUC {area.value:.3f} ± {area.standard_error:.3f}{compared}, ± standard error"


def _against_unseen(membership: Membership, summary: Summary) -> tuple[str, str, tuple[str, ...]]:
    worst, distance = most_telling(membership)
    forget, unseen = (membership.sizes.get(name, 0) for name in ("forget", "holdout"))
    found = f"{forget} forget and {unseen} unseen examples; the most telling is {_area_words(membership, worst)}"
    limit = (
        "No forget quality is known: rows that were never seen stand in for a retrained model, and may differ from the "
        "forget set in themselves."
        if worst not in membership.retrained
        else "No forget quality is known: membership attacks alone compare the model with a retrained one.",
    )
    if distance > SPREAD:
        return "apart", f"The forget set can still be told from unseen rows ({found}). {_fall(summary)}", limit
    sentence = f"None of {len(membership.areas)} membership attacks tells the forget set from unseen rows ({found})"
    seeing = _seeing(membership)
    if not seeing:
        reason = "with so few examples none would see half of what the original model gives away"
        if not membership.original:
            reason = "what they find on the original model is not known, so neither is whether they can tell anything"
        return "undecided", f"{sentence}, but {reason}. {_fall(summary)}", limit
    best = min(seeing, key=lambda name: seeing[name])
    power = f"The sharpest attack, {best}, sees AUCs that are further than {seeing[best]:.3f} away, and no others."
    return "alike", f"{sentence}. {_fall(summary)}", (*limit, power)


def _at_the_last_check(checks: list[dict[str, float]], summary: Summary) -> tuple[str, str, tuple[str, ...]]:
    step = checks[-1].get("stop_step", checks[-1].get("step"))
    kept = next((row for row in checks if row.get("step") == step), checks[-1])
    before = checks[0]["stop_ks_pvalue"]  # there is one before the first step
    found = f"KS p = {p_value(kept['stop_ks_pvalue'])}, AUC {kept['stop_auc']:.3f}, in training"
    limit = ("The test is the one that stopped the training, on the same rows: `unlora membership` is another one.",)
    if kept["stop_ks_pvalue"] < LEVEL:
        return "apart", f"The forget set can still be told from unseen rows ({found}). {_fall(summary)}", limit
    if before >= LEVEL:
        sentence = (
            "The test that stopped the training did not tell the forget set from unseen rows before the first step "
            f"either (p = {p_value(before)}), so it says nothing of the unlearned model. "
        )
        return "undecided", sentence + _fall(summary), limit
    return "alike", f"The forget set could not be told from unseen rows ({found}). {_fall(summary)}", limit


def _fall(summary: Summary) -> str:
    before, after = (summary.mean("forget", "probability", model) for model in ("original", "unlearned"))
    if before is None or after is None or summary.fall is None:
        return _moved(summary)
    changed = "fell" if summary.fall.value < 0 else "did not fall"
    return (
        f"The probability of the answers to forget {changed}: {before.value:.3f} before, {after.value:.3f} after "
        f"({signed(summary.fall)})."
    )


def _moved(summary: Summary) -> str:
    """What another benchmark shows of the forgetting, as a sentence."""
    axes = summary.axes
    if axes is None or axes.better != -1 or "unlearned" not in axes.points:
        return ""
    after, before = axes.points["unlearned"][1], axes.points.get("original")
    change = "" if before is None else f"went from {before[1].value:.3g} to "
    name = f"{axes.y[0].upper()}{axes.y[1:]}"
    return f"{name} {change or 'is '}{after.value:.3g} (95 % interval {after.low:.3g} to {after.high:.3g})."


def _cost(summary: Summary) -> str:
    before, after = summary.utility.get("original"), summary.utility.get("unlearned")
    if after is None:
        evaluated = "only the forget set was evaluated" if summary.means else "nothing was evaluated beside training"
        return f"What it cost is not known: {evaluated}."
    name = f"{summary.utility_name[0].upper()}{summary.utility_name[1:]}"
    if before is None:
        return f"{name} is {after.value:.3g}; what it was before is not known."
    digits = ".3f" if summary.terms else ".3g"
    words = f"{name} went from {before.value:{digits}} to {after.value:{digits}}"
    if summary.kept is None:
        return f"{words}."
    kept = summary.kept
    share = f"{100 * kept.value:.1f} % of it was kept (95 % interval {100 * kept.low:.1f} to {100 * kept.high:.1f} %)"
    return f"{words}: {share}" + (f", over {summary.terms} terms." if summary.terms else ".")


def _attacks(run: Run, worst: Attack | None) -> str:
    if run.attacks is None:
        return "Whether it stays forgotten was not tried."
    if worst is None:
        return "Attacks were tried without a retrained model: there is nothing to compare their success with."
    value, error = worst.models[DIFFERENCE][PROBABILITY], worst.models[DIFFERENCE].get(f"{PROBABILITY}_se")
    kinds = len({attack.name for attack in run.attacks.found} - {NO_ATTACK})
    if value <= 0:
        return f"None of {kinds} kinds of attack makes the answers more likely than on the retrained model."
    size = f"+{value:.3f}" if error is None else f"+{value:.3f} ± {error:.3f} (standard error)"
    return (
        f"Of {kinds} kinds of attack, {worst.name} ({worst.setting}) brings back most: {size} in answer probability, "
        "against the same attack on the retrained model."
    )


def strongest(run: Run) -> Attack | None:
    """The attack that lifts the answers' probability furthest above that on the retrained model."""
    return max(_compared(run), key=lambda attack: attack.models[DIFFERENCE][PROBABILITY], default=None)


def _compared(run: Run) -> list[Attack]:
    found = [] if run.attacks is None else run.attacks.found
    return [attack for attack in found if attack.name != NO_ATTACK and PROBABILITY in attack.models.get(DIFFERENCE, {})]


def _brings_back(attack: Attack | None, gap: Estimate | None, tried: int) -> bool:
    """Whether the difference is, beyond its error, above what it may be without an attack.

    Its error over examples is not in the file: that of the difference without an attack stands for it, of the same
    examples. The attack is the best of `tried`, so the level is divided by their number (Bonferroni).
    """
    if attack is None or gap is None:
        return False
    difference, over_examples = attack.models[DIFFERENCE], (gap.high - gap.low) / (2 * SPREAD)
    error = math.hypot(over_examples, difference.get(f"{PROBABILITY}_se", 0.0))
    return difference[PROBABILITY] - NormalDist().inv_cdf(1 - LEVEL / 2 / tried) * error > max(gap.high, 0.0)


def signed(estimate: Estimate) -> str:
    """A difference with its interval."""
    value, low, high = (f"{end:+.3f}".replace("-", "−") for end in (estimate.value, estimate.low, estimate.high))
    return f"{value}, 95 % interval {low} to {high}"
