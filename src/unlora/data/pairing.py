"""Pair each forget example with a different retain example in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from unlora.data.encoding import Example
from unlora.data.lessons import Lesson

# Index of the pairs that only fill up a batch.
_FILLER = -1


class PairSampler(Sampler[int]):
    """Sample the pairs of `ForgetRetainDataset`, numbered through all epochs: e·size to (e + 1)·size − 1 in epoch e.

    Args:
        size: the number of pairs in an epoch.
        multiple: each epoch is filled up to a multiple of this, so that all processes get the same number of batches.
    """

    def __init__(self, size: int, multiple: int = 1) -> None:
        self.size = size
        self.fillers = -size % multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. The data loader calls this at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size + self.fillers

    def __iter__(self) -> Iterator[int]:
        yield from range(self.epoch * self.size, (self.epoch + 1) * self.size)
        yield from [_FILLER] * self.fillers


class ForgetRetainDataset(Dataset):
    """Pairs of a forget and a retain example, numbered through all epochs.

    Both examples of a pair are dealt from shuffled decks, which are reshuffled when they run out: each forget example
    occurs once per epoch, and no retain example is repeated before all have occurred. A pair depends only on the seed
    and its number, so a resumed run sees the same pairs as an uninterrupted one.

    A filler, with which `PairSampler` fills up an epoch, is a copy of the first pair with the key "filler".

    Args:
        forget: the examples to forget. Their number is the length of an epoch.
        retain: the examples to keep, or None for losses without a retain term.
        seed: the seed of both decks.
        alternates: other answers to the questions of `forget`, in the same order, for losses that read them.
        ref_logp: column ("forget" or "alternate") -> the reference model's summed log-probability of each answer, in
            nats, for losses that need it.
        lessons: a teacher's predictions for each example of `forget`, for losses that distil one.
    """

    def __init__(
        self,
        forget: Sequence[Example],
        retain: Sequence[Example] | None,
        seed: int = 42,
        alternates: Sequence[Example] | None = None,
        ref_logp: Mapping[str, Sequence[float]] | None = None,
        lessons: Sequence[Lesson] | None = None,
    ) -> None:
        self.forget = forget
        self.retain = retain
        self.seed = seed
        self.alternates = alternates
        self.ref_logp = ref_logp or {}
        self.lessons = lessons

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: int) -> dict[str, Any]:
        if pair == _FILLER:
            return {**self[0], "filler": True}
        index = deal(len(self.forget), self.seed, pair)
        # The retain deck has its own seed. With a shared one, sets of equal size would always form the same pairs.
        return {
            "forget": self.forget[index],
            "alternate": None if self.alternates is None else self.alternates[index],
            "retain": None if self.retain is None else self.retain[deal(len(self.retain), self.seed + 1, pair)],
            "ref_logp": {column: values[index] for column, values in self.ref_logp.items()},
            "lesson": None if self.lessons is None else self.lessons[index],
        }


def deal(size: int, seed: int, number: int) -> int:
    """Return card `number` of an endless sequence of independently shuffled decks with the cards 0 to `size` − 1."""
    deck, place = divmod(number, size)
    return _shuffled(size, seed, deck)[place]


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, deck: int) -> list[int]:
    # With `seed + deck`, the second deck of one seed would equal the first deck of the next seed.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + deck)
    return torch.randperm(size, generator=generator).tolist()
