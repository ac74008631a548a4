"""What the original and the unlearned model say, side by side: one model in memory, its adapter off and on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from unlora.common.errors import InputError, Problem, raise_if
from unlora.data import IGNORE_INDEX, Example, TextFormat, encode_records
from unlora.evals.scoring import (
    check_positions,
    encode_prompt,
    generated_text,
    generating,
    generation_config,
    labelled_texts,
    positions,
    prompt_example,
    score_tokens,
)

SIDES = ("original", "unlearned")


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated.

    Args:
        max_new_tokens: its longest length.
        temperature: 0 is greedy, as in the evaluation; above, tokens are drawn.
    """

    max_new_tokens: int
    temperature: float = 0.0

    def problems(self) -> list[Problem]:
        """What cannot be."""
        problems = []
        if self.max_new_tokens < 1:
            problems.append(Problem("max_new_tokens", self.max_new_tokens, "an answer needs a token", "use at least 1"))
        if self.temperature < 0:
            problems.append(Problem("temperature", self.temperature, "it is negative", "use 0 (greedy) or more"))
        return problems


@dataclass(frozen=True)
class Scored:
    """An answer's tokens, and how likely each is to each model after the question and the tokens before it.

    Args:
        tokens: the text that each token adds.
        logp: by side, [tokens] log-probability in nats.
    """

    tokens: list[str]
    logp: dict[str, NDArray[np.float32]]

    def probability(self, side: str) -> float:
        """The probability of the answer, normalised for its length: exp(mean log p), as the evaluation has it."""
        return float(np.exp(self.logp[side].mean()))


class SideBySide:
    """Asks both models, one at a time; may be called from several threads.

    Args:
        model: the base with the adapter of a run as its only one.
        text_format: how a question becomes a prompt: that of the run.
    """

    def __init__(self, model: Any, text_format: TextFormat) -> None:
        self.model = model
        self.text_format = text_format
        self._lock = Lock()

    @property
    def longest(self) -> int | None:
        """How many tokens question and answer may have; None if the model sets no limit."""
        return positions(self.model)

    def answers(self, question: str, sampling: Sampling) -> Generator[dict[str, list[int]], None, None]:
        """The tokens of both answers by side, again after every new token; the original answers first.

        Closing the iterator ends the generation after the token that is being made.

        Raises:
            InputError: an empty question, or one that leaves the model no positions for the answer.
        """
        raise_if(sampling.problems())
        prompt = self._prompt(question)
        new = sampling.max_new_tokens
        check_positions(self.model, [prompt_example(prompt)], new, "max_new_tokens", new)
        config = generation_config(new, self.text_format, sampling.temperature)
        tokens: dict[str, list[int]] = {side: [] for side in SIDES}
        for side in SIDES:
            for token in self._stream(side, prompt, config):
                tokens[side].append(token)
                yield tokens

    def text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, as the evaluation reads it."""
        return generated_text(tokens, self.text_format).strip()

    def score(self, question: str, answer: str | Sequence[int]) -> Scored:
        """How likely each token of an answer, given as text or as generated tokens, is to both models.

        An answer given as text ends with the end token.

        Raises:
            InputError: an empty question or answer, or more tokens than the model has positions.
        """
        prompt = self._prompt(question)
        if isinstance(answer, str):
            row = {"question": question, "answer": answer}
            (example,) = encode_records([row], self.text_format, argument="answer")
        else:
            example = Example(input_ids=[*prompt, *answer], labels=[IGNORE_INDEX] * len(prompt) + list(answer))
        logp = {}
        for side in SIDES:
            with self._as(side):
                logp[side] = score_tokens(self.model, [example], self.text_format, 1)[0].logp
        return Scored(labelled_texts(example, self.text_format.tokenizer), logp)

    def _prompt(self, question: str) -> list[int]:
        if not question.strip():
            raise InputError(Problem("question", question, "there is nothing to ask", "write a question"))
        return encode_prompt(question, self.text_format)

    @contextmanager
    def _as(self, side: str) -> Iterator[None]:
        """Within, the model is that side, and no other thread's."""
        with self._lock, nullcontext() if side == "unlearned" else self.model.disable_adapter():
            yield

    def _stream(self, side: str, prompt: list[int], config: GenerationConfig) -> Iterator[int]:
        """The generated tokens as they come.

        Generation has a thread of its own, because what switches gradients off holds for one thread, and the reader of
        an iterator may change threads between two tokens.
        """
        watcher = Watcher()

        def work() -> None:
            try:
                ids = torch.tensor([prompt], device=next(self.model.parameters()).device)
                mask = torch.ones_like(ids)
                with self._as(side), generating(self.model) as core:
                    core.generate(ids, attention_mask=mask, generation_config=config, stopping_criteria=[watcher])
                watcher.seen.put(None)
            except Exception as error:
                watcher.seen.put(error)

        worker = Thread(target=work, daemon=True)
        worker.start()
        try:
            while (token := watcher.seen.get()) is not None:
                if isinstance(token, Exception):
                    raise token
                yield token
        finally:
            watcher.closed = True
            worker.join()


class Watcher(StoppingCriteria):
    """Passes on every generated token, and ends the generation when it is closed.

    Attributes:
        seen: the tokens; at last None, or what went wrong.
        closed: whether anybody still wants them.
    """

    def __init__(self) -> None:
        self.seen: SimpleQueue[int | Exception | None] = SimpleQueue()
        self.closed = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """After each token: [1] whether it was the last."""
        self.seen.put(int(input_ids[0, -1]))
        return torch.tensor([self.closed], device=input_ids.device)
