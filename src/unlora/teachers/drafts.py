"""Drafts: the original's own answers when the same questions are about another person.

They are fluent answers of the right form. The tokens that a draft and the true answer both begin with are form; the
fact begins at the first token that differs.
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

# A draft that states more than this share of the fact is not used.
_MAX_FACT_SHARE = 0.5
# Words that occur in more than this share of the retain set's answers are form.
_FORM_SHARE = 0.02
# The rows whose drafts are generated together, and the prompts of a batch on a CPU.
_ROWS, _CPU_ROWS = 16, 64
# The token limit of a draft, relative to the longest true answer, and its smallest value.
_LENGTH_FACTOR, _MIN_TOKENS = 2, 16


class Draft(NamedTuple):
    """The original's own answer about another person.

    Args:
        text: the answer as it was generated.
        own: the answer with the names of the forget row.
    """

    text: str
    own: str


@dataclass(frozen=True)
class Choice:
    """A row about another person, and the original's own answers to its questions.

    Args:
        substitute: the row.
        drafts: one draft for each answer of the row, or None where the draft is empty or states the fact.
    """

    substitute: Substitute
    drafts: Sequence[Draft | None]


class Facts:
    """Measure how much of the fact in an answer another text states.

    Words that occur in many answers of the retain set are form. The rarest words of an answer always count as fact,
    because a fact may also consist of common words if the same question is asked about many people.

    Args:
        answers: the answers of the retain set. The forget set is not counted, because words that occur in many of its
            answers may belong to the fact.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self._count = len(answers)
        self._holding = Counter(word for answer in answers for word in set(words_of(answer)))

    def share(self, text: str, answer: str, asked: str) -> float:
        """Return the share of the answer's words, without those of the question, that the text contains.

        This is the larger of two shares: the share of the rarest words, and the share of all words, weighted by their
        inverse document frequency such that words of the form have weight 0.
        """
        own = set(words_of(answer)) - set(words_of(asked))
        if not own:
            return 0.0
        said = set(words_of(text))
        telling = rarest(own, self._holding)
        weights = {word: math.log(max(1.0, _FORM_SHARE * self._count / max(1, self._holding[word]))) for word in own}
        whole = sum(weights.values())
        weighted = sum(weight for word, weight in weights.items() if word in said) / whole if whole else 0.0
        return max(weighted, len(telling & said) / len(telling))


def choose_substitutes(teaching: Teaching, count: int) -> Iterator[Choice]:
    """Yield, for each forget row, another person and the original's own answers about them.

    At most `count` people are tried in turn until all answers are usable: they end, are not empty and do not state the
    fact. If nobody has only usable answers, the first person with the most of them is chosen. Plain text has no
    answers, so its first person is chosen.
    """
    facts = Facts([one.answer for one in all_answers(teaching.retain_rows, "retain_data")])
    known = forget_vocabulary(teaching)
    people = substitutes(teaching, count)
    texts = [one.answer for one in all_answers(teaching.rows, "forget_data")]
    # One limit for all rows, planned for their longest answers, so that a batch size that failed is not tried again.
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
    """Return whether the draft is not empty and does not state the fact."""
    return bool(draft.text) and facts.share(draft.own, true.answer, str(true.asked)) <= _MAX_FACT_SHARE


def common_start(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the length of the common prefix of two sequences."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _own_answers(
    teaching: Teaching,
    people: Sequence[Substitute],
    answers: Sequence[Sequence[Answered]],
    limit: BatchLimit,
) -> list[str]:
    """Generate the original's answers to the questions of rows about other people.

    Args:
        teaching: provides the original model.
        people: [rows], the rows about other people.
        answers: [rows][answers], the true answers.
        limit: limits the number of prompts in a batch.

    Returns:
        The answers by row and question; "" where the answer did not end within the token limit.
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
    """Return the largest number of tokens to generate, given the true answers."""
    lengths = map(len, text_format.tokenizer(list(answers))["input_ids"]) if answers else ()
    return max(_MIN_TOKENS, _LENGTH_FACTOR * max(lengths, default=0))


@torch.no_grad()
def _continue(
    teaching: Teaching, prompts: Sequence[list[int]], config: GenerationConfig, limit: BatchLimit
) -> list[str]:
    """Return the greedy continuation of each prompt, or "" if it does not end within the token limit."""
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
