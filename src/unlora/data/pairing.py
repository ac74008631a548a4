"""Each forget example meets another retain example in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from unlora.data.encoding import Example

# Number of a pair that only fills a batch.
FILLER = -1


class PairSampler(Sampler[int]):
    """Counts the pairs of `ForgetRetainDataset` through the epochs: e·size to (e + 1)·size − 1 in epoch e.

    Args:
        size: pairs of an epoch.
        multiple: fillers make each epoch a multiple of this long, so that all of several processes get as many batches.
    """

    def __init__(self, size: int, multiple: int = 1) -> None:
        self.size = size
        self.fillers = -size % multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size + self.fillers

    def __iter__(self) -> Iterator[int]:
        yield from range(self.epoch * self.size, (self.epoch + 1) * self.size)
        yield from [FILLER] * self.fillers


class ForgetRetainDataset(Dataset):
    """Pairs of a forget and a retain example, numbered through all epochs.

    Both are dealt by that number from decks of their own, shuffled anew when they run out: each forget example comes
    once an epoch, and no retain example comes twice before all came once. What is dealt depends on seed and number
    alone, so a resumed run sees the pairs that the whole run would have seen.

    `FILLER` is the first pair once more, which says that it only fills a batch.

    Args:
        forget: the examples to forget; they set the length of an epoch.
        retain: the examples to keep, or None for losses without a retain term.
        seed: of both decks.
        alternates: other answers to the questions of `forget`, in its order, for losses that read them.
        ref_logp: the reference model's summed log-probability of each answer, by column ("forget", "alternate"), for
            losses that need it.
    """

    def __init__(
        self,
        forget: Sequence[Example],
        retain: Sequence[Example] | None,
        seed: int = 42,
        alternates: Sequence[Example] | None = None,
        ref_logp: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.forget = forget
        self.retain = retain
        self.seed = seed
        self.alternates = alternates
        self.ref_logp = ref_logp or {}

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: int) -> dict[str, Any]:
        if pair == FILLER:
            return {**self[0], "filler": True}
        index = deal(len(self.forget), self.seed, pair)
        # A seed of its own: were both decks shuffled alike, equal sets would always meet in the same pairs.
        return {
            "forget": self.forget[index],
            "alternate": None if self.alternates is None else self.alternates[index],
            "retain": None if self.retain is None else self.retain[deal(len(self.retain), self.seed + 1, pair)],
            "ref_logp": {column: values[index] for column, values in self.ref_logp.items()},
        }


def deal(size: int, seed: int, number: int) -> int:
    """Card `number` of an endless row of decks of `size` cards, each shuffled by its own seed."""
    deck, place = divmod(number, size)
    return _shuffled(size, seed, deck)[place]


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, deck: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + deck)
    return torch.randperm(size, generator=generator).tolist()
