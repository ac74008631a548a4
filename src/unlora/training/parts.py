"""Compute an update in as few passes as the memory allows, with the same result for any number of passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlora.common.distributed import processes
from unlora.data.batching import BatchLimit
from unlora.models.memory import batch_limit
from unlora.training.checkpoints import SafeTrainer

Update = list[dict[str, Any]]
_UNCOLLATED = "uncollated"


@dataclass(frozen=True)
class _Items:
    """The items of a batch. This is not a list, because moving a batch to a device recurses into lists."""

    items: list[Any]


@dataclass(frozen=True)
class _Collator:
    """Collate items with another collator, and keep the items in the batch."""

    collate: Callable[[list[Any]], dict[str, Any]]

    def __call__(self, items: list[Any]) -> dict[str, Any]:
        return {**self.collate(items), _UNCOLLATED: _Items(items)}


class TrainerInParts(SafeTrainer):
    """A trainer that fits the size of its forward and backward passes to the memory.

    The items of the dataset are examples, or pairs of them. All batches of an update are collected first. On a CPU,
    each batch is then one pass. On a GPU, a pass has as many items as the memory is expected to hold, and at most
    `per_device_train_batch_size` if that is not its default. If a pass runs out of memory, the update starts again with
    passes of half the size. In a job of several processes, every batch is one pass, because all processes must do the
    same number of passes.
    """

    # The names of attributes that a pass changes. They are restored before an update starts again.
    _sums: tuple[str, ...] = ()
    # The number of passes in the current update.
    passes = 1

    def __init__(self, *args: Any, data_collator: Callable[[list[Any]], dict[str, Any]], **kwargs: Any) -> None:
        super().__init__(*args, data_collator=_Collator(data_collator), **kwargs)
        self._waiting: Update = []
        self._limit: BatchLimit | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train like `SafeTrainer`."""
        self._waiting = []
        return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Collect the batch. If it is the last one of the update, compute the update.

        Returns:
            The loss of the update, or 0 if it is not complete yet.
        """
        if processes()[1] > 1:
            self.passes = self.current_gradient_accumulation_steps
            return super().training_step(model, inputs, num_items_in_batch)
        self._waiting.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        update, self._waiting = self._waiting, []
        before = {name: copy.copy(getattr(self, name)) for name in self._sums}
        while True:
            try:
                return self._run(model, update, num_items_in_batch)
            except torch.OutOfMemoryError as error:
                failure = error.with_traceback(None)
            self._passes_limit().halve(failure)
            model.zero_grad()
            for name, value in before.items():
                setattr(self, name, copy.copy(value))

    def _run(self, model: nn.Module, update: Update, num_items: Any) -> Tensor:
        """Accumulate the gradients of all items of an update, and return the loss."""
        batches = list(map(items_of, update))
        parts = list(self._divided([item for batch in batches for item in batch]))
        self.passes = len(parts)
        as_they_are = list(map(len, batches)) == list(map(len, parts))
        total = torch.zeros((), device=self.args.device)
        for place, part in enumerate(parts):
            self._passes_limit().count(list(map(self._length, part)), 0)  # records the size in case this pass fails
            total += super().training_step(model, update[place] if as_they_are else self.data_collator(part), num_items)
        return total

    def _divided(self, items: list[Any]) -> Iterator[list[Any]]:
        lengths, start = list(map(self._length, items)), 0
        while start < len(items):
            stop = start + self._passes_limit().count(lengths, start)
            yield items[start:stop]
            start = stop

    def _length(self, item: dict[str, Any]) -> int:
        """Return the number of tokens in an item."""
        return len(item["input_ids"])

    def _passes_limit(self) -> BatchLimit:
        if self._limit is None:
            size = self.args.per_device_train_batch_size
            chosen = size != type(self.args).per_device_train_batch_size
            rows, reserved = size if chosen else None, self._bytes_of_optimiser()
            self._limit = batch_limit(self.model, rows, on_cpu=size, backward=True, reserved=reserved)
        return self._limit

    def _bytes_of_optimiser(self) -> int:
        """Estimate the bytes of the gradients and AdamW moments that have not been allocated yet."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        missing = 2 * (not self.optimizer.state)
        return sum(weight.nbytes * (missing + (weight.grad is None)) for weight in trained)


def items_of(batch: dict[str, Any]) -> list[Any]:
    """Return the items that a batch of `TrainerInParts` was collated from."""
    items: list[Any] = batch[_UNCOLLATED].items
    return items
