"""What the original says about somebody else, asked the same question: a fluent answer of the right form.

Where it begins like the true answer, both are form. Where they part, the fact begins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import NamedTuple

import torch
from transformers import GenerationConfig

from unlora.common.words import rarest, words_of
from unlora.data import Batch, TextFormat, answers_of, padding_id
from unlora.data.batching import BatchLimit
from unlora.data.conversations import Answered, all_answers
from unlora.data.encoding import encode_prompts
from unlora.data.names import replace_names
from unlora.models.batches import run_in_batches
from unlora.models.generation import generated_text, generation_config, prompt_example, without_own_settings
from unlora.models.memory import batch_limit
from unlora.teachers.interface import Teaching
from unlora.teachers.substitutes import Substitute, forget_vocabulary, substitutes

# An answer that says more than this share of the fact is not used.
_MOST_OF_FACT = 0.5
# A word that a larger share of the retain set's answers contains is form.
_FORM = 0.02
# Rows that are looked at together, and prompts that are continued at the same time on a CPU.
_ROWS, _CPU_ROWS = 16, 64
# An answer may be so many times as long as the true one, and at least so many tokens.
_LONGER, _LEAST_TOKENS = 2, 16


class Draft(NamedTuple):
    """An answer about somebody else.

    Args:
        text: what the original says.
        own: the same with the names of the forget row.
    """

    text: str
    own: str


@dataclass(frozen=True)
class Choice:
    """The row about somebody else that is read, and what the original says there.

    Args:
        substitute: the row.
        drafts: for each answer of the row, what the original says instead, or None if that says the fact or nothing.
    """

    substitute: Substitute
    drafts: Sequence[Draft | None]


class Facts:
    """Tells how much of the fact in an answer another text says.

    Words that recur in many answers of the retain set are form. The rarest words are the fact in any case, because
    what is asked of many people has common answers, too.

    Args:
        answers: those of the retain set. What recurs in the forget set alone may be the fact.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self._count = len(answers)
        self._holding = Counter(word for answer in answers for word in set(words_of(answer)))

    def share(self, text: str, answer: str, asked: str) -> float:
        """Return the share of what the answer says beyond the question that the text says, too.

        It is the larger one of two shares: of the rarest words, and of all words, weighted by the logarithm of how rare
        they are (inverse document frequency), in which form weighs nothing.
        """
        own = set(words_of(answer)) - set(words_of(asked))
        if not own:
            return 0.0
        said = set(words_of(text))
        telling = rarest(own, self._holding)
        weights = {word: math.log(max(1.0, _FORM * self._count / max(1, self._holding[word]))) for word in own}
        whole = sum(weights.values())
        weighted = sum(weight for word, weight in weights.items() if word in said) / whole if whole else 0.0
        return max(weighted, len(telling & said) / len(telling))


def choose_substitutes(teaching: Teaching, count: int) -> Iterator[Choice]:
    """Yield, for each forget row, somebody else and what the original answers about them.

    Other people are tried one after the other, at most `count`, until all answers can be used: they end, are not empty
    and do not say the fact. If nobody has only usable answers, the first person with the most of them is chosen. Plain
    text has no answers, so its first person is chosen.
    """
    facts = Facts([one.answer for one in all_answers(teaching.retain_rows, "retain_data")])
    known = forget_vocabulary(teaching)
    people = substitutes(teaching, count)
    texts = [one.answer for one in all_answers(teaching.rows, "forget_data")]
    # Planned for the longest answers of all rows, so that batches share what is learned about the memory.
    limit = batch_limit(teaching.model, None, on_cpu=_CPU_ROWS, new_tokens=_most_tokens(texts, teaching.text_format))

    def choices(places: Sequence[int], attempt: int) -> list[Choice]:
        asked = [people[place][attempt] for place in places]
        answers = [answers_of(teaching.rows[place]) for place in places]
        said = iter(_own_answers(teaching, asked, answers, limit))
        found = []
        for person, true in zip(asked, answers, strict=True):
            drafts = [Draft(text, replace_names(text, person.names, known)) for text in islice(said, len(true))]
            pairs = zip(drafts, true, strict=True)
            found.append(Choice(person, [draft if _usable(draft, one, facts) else None for draft, one in pairs]))
        return found

    for start in range(0, len(people), _ROWS):
        places = range(start, min(start + _ROWS, len(people)))
        best = dict(zip(places, choices(places, 0), strict=True))
        for attempt in range(1, count):
            again = [place for place in places if None in best[place].drafts and attempt < len(people[place])]
            for place, choice in zip(again, choices(again, attempt), strict=True):
                best[place] = max(best[place], choice, key=_usable_drafts)
        yield from best.values()


def _usable_drafts(choice: Choice) -> int:
    return sum(draft is not None for draft in choice.drafts)


def _usable(draft: Draft, true: Answered, facts: Facts) -> bool:
    """Return whether the draft says something, and that is not the fact."""
    return bool(draft.text) and facts.share(draft.own, true.answer, str(true.asked)) <= _MOST_OF_FACT


def common_start(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many items two sequences begin with that are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _own_answers(
    teaching: Teaching,
    people: Sequence[Substitute],
    answers: Sequence[Sequence[Answered]],
    limit: BatchLimit,
) -> list[str]:
    """Return all answers of the original to some rows about somebody else; "" where an answer does not end.

    Args:
        teaching: has the original.
        people: [rows], the rows about somebody else.
        answers: [rows][answers], the true ones.
        limit: how many prompts are continued at the same time.
    """
    text_format = teaching.text_format
    asked = [one.asked for person in people for one in answers_of(person.row)]
    prompts = encode_prompts(asked, text_format)
    if not prompts:
        return []
    most_tokens = _most_tokens([one.answer for row in answers for one in row], text_format)
    if text_format.positions is not None:
        most_tokens = min(most_tokens, text_format.positions - max(map(len, prompts)))
    if most_tokens < 1:
        return [""] * len(prompts)
    config = generation_config(most_tokens, text_format)
    by_length = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    texts = _continue(teaching, [prompts[place] for place in by_length], config, limit)
    said = dict(zip(by_length, texts, strict=True))
    return [said[place] for place in range(len(prompts))]


def _most_tokens(answers: Sequence[str], text_format: TextFormat) -> int:
    """Return how long an answer may be, given the true ones."""
    lengths = map(len, text_format.tokenizer(list(answers))["input_ids"]) if answers else ()
    return max(_LEAST_TOKENS, _LONGER * max(lengths, default=0))


@torch.no_grad()
def _continue(
    teaching: Teaching, prompts: Sequence[list[int]], config: GenerationConfig, limit: BatchLimit
) -> list[str]:
    """Return the greedy continuation of each prompt, "" if it does not end."""
    text_format = teaching.text_format
    texts: list[str] = []
    with without_own_settings(teaching.model) as core:

        def add(places: range, batch: Batch) -> None:
            inputs = {key: batch[key].to(core.device) for key in ("input_ids", "attention_mask")}
            rows = core.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
            for row in rows:
                ended = not text_format.end_tokens.isdisjoint(row)
                texts.append(generated_text(row, text_format).strip() if ended else "")

        run_in_batches(add, list(map(prompt_example, prompts)), limit, padding_id(text_format.tokenizer), "left")
    return texts
