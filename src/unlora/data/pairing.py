"""Each forget example meets another retain example in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from unlora.data.encoding import Example


class PairSampler(Sampler[int]):
    """Draws pair numbers for `ForgetRetainDataset`: each forget example once an epoch, in random order.

    What is drawn depends on seed and epoch alone, so a resumed run sees the pairs that the whole run would have seen.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        for index in _shuffled(self.size, self.seed, self.epoch):
            yield self.epoch * self.size + index


class ForgetRetainDataset(Dataset):
    """Pairs of a forget and a retain example.

    Pair k of epoch e is numbered e·(forget examples) + k. Retain examples are dealt from shuffled decks by that number:
    none comes twice before all came once.

    Args:
        forget: the examples to forget; they set the length of an epoch.
        retain: the examples to keep, or None for losses without a retain term.
        seed: of the decks.
        ref_logp: the reference model's summed log-probability of each forget answer, for losses that need it.
    """

    def __init__(
        self,
        forget: Sequence[Example],
        retain: Sequence[Example] | None,
        seed: int = 42,
        ref_logp: Sequence[float] | None = None,
    ) -> None:
        self.forget = forget
        self.retain = retain
        self.seed = seed
        self.ref_logp = ref_logp

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: int) -> dict[str, Any]:
        index = pair % len(self.forget)
        return {
            "forget": self.forget[index],
            "retain": None if self.retain is None else self.retain[self.retain_index(pair)],
            "ref_logp": None if self.ref_logp is None else self.ref_logp[index],
        }

    def retain_index(self, pair: int) -> int:
        """Which retain example is dealt to this pair."""
        assert self.retain is not None
        deck, place = divmod(pair, len(self.retain))
        # A seed apart from the sampler's, so that deck and order of an epoch are not the same permutation.
        return _shuffled(len(self.retain), self.seed + 1, deck)[place]


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, turn: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    return torch.randperm(size, generator=generator).tolist()
