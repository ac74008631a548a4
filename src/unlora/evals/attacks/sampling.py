"""Sampling: the model answers each question many times at temperature 1, and one of the answers may contain the fact.

Reisizadeh et al. 2025, leak@k (https://arxiv.org/abs/2511.04934). Like pass@k (Chen et al. 2021,
https://arxiv.org/abs/2107.03374), it is estimated without bias from n samples, of which c contain the fact:
1 − C(n−c, k) / C(n, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, hypot

import torch
from torch import nn

from unlora.data.encoding import encode_prompts
from unlora.evals.attacks.interface import Materials, Metrics, UnavailableError, questions
from unlora.evals.generation import continue_prompts
from unlora.evals.questions import Question, as_row
from unlora.evals.text_quality import fact_recall, facts
from unlora.settings import AttackConfig

# The metrics: the share of facts that k samples reveal, the ends of its confidence interval, and the number of facts.
METRIC = "revealed"
_LOW, _HIGH, FACTS = f"{METRIC}_low", f"{METRIC}_high", "facts"
_TEMPERATURE, _SEED, _LEVEL = 1.0, 0, 0.95


@dataclass(frozen=True)
class Samples:
    """Questions that are answered many times.

    Args:
        prompts: tokenised questions, [questions].
        facts: the words of each fact, all of which a sample must contain to reveal it, [questions].
        sizes: every k of leak@k, in ascending order. The last one is the number of samples that are drawn.
    """

    prompts: Sequence[list[int]]
    facts: Sequence[frozenset[str]]
    sizes: Sequence[int]

    def results(self, model: nn.Module, materials: Materials) -> list[tuple[str, Metrics]]:
        """Return the metrics of `revealed` for every k."""
        drawn, settings = self.sizes[-1], materials.settings
        prompts = [prompt for prompt in self.prompts for _ in range(drawn)]
        known = [fact for fact in self.facts for _ in range(drawn)]
        new, size = settings.max_new_tokens, settings.eval_batch_size
        torch.manual_seed(_SEED)
        texts = continue_prompts(model, prompts, materials.text_format, new, size, temperature=_TEMPERATURE)
        hits = (fact_recall(texts, known) == 1).reshape(-1, drawn).sum(axis=1).tolist()
        return [(f"{k} sample{'' if k == 1 else 's'}", revealed(hits, drawn, k)) for k in self.sizes]


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Samples]:
    """Return one case with all questions whose answer has a fact, as `unlora.evals.text_quality` defines it."""
    rows = questions(materials.forget)
    retain = [as_row(row) for row in materials.retain if isinstance(row, Question)]
    known = facts(list(map(as_row, rows)), retain)
    asked = [pair for pair in zip(rows, known, strict=True) if pair[1]]
    if not asked:
        reason = "no forget answer has a word that is neither in its question nor in its wrong answers"
        raise UnavailableError(reason, "leave this attack out")
    prompts = encode_prompts([row.question for row, _ in asked], materials.text_format)
    return [Samples(prompts, [fact for _, fact in asked], sorted(set(config.samples)))]


def revealed(hits: Sequence[int], drawn: int, k: int) -> Metrics:
    """Return the share of facts that k samples reveal, on average over all choices of k from the drawn samples.

    Args:
        hits: number of samples that contain the fact, [facts].
        drawn: number of samples of each question.
        k: number of samples, at most `drawn`.

    Returns:
        revealed, the share of the facts; revealed_low and revealed_high, the ends of its 95 % confidence interval over
        facts; and facts, their number. The interval is that of Clopper and Pearson (1934), which is exact for whole
        counts. For k < `drawn`, each fact contributes a fraction, which varies less than 0 or 1, so the interval is
        rather too wide.
    """
    from scipy.special import betaincinv

    values = [1 - comb(drawn - hit, k) / comb(drawn, k) for hit in hits]
    count, total, tail = sum(values), len(values), (1 - _LEVEL) / 2
    low = betaincinv(count, total - count + 1, tail) if count > 0 else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return {METRIC: count / total, _LOW: float(low), _HIGH: float(high), FACTS: total}


def difference(one: Metrics, other: Metrics) -> Metrics:
    """Return the difference of two models' `revealed` on the same facts, with its confidence interval.

    The interval combines those of both models by the square-and-add method (Newcombe 1998, method 10), which assumes
    independent samples. Both models are asked the same questions, so the interval is rather too wide.
    """
    gap = one[METRIC] - other[METRIC]
    low = gap - hypot(one[METRIC] - one[_LOW], other[_HIGH] - other[METRIC])
    high = gap + hypot(one[_HIGH] - one[METRIC], other[METRIC] - other[_LOW])
    return {METRIC: gap, _LOW: low, _HIGH: high, FACTS: one[FACTS]}
