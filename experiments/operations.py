"""Count the tensor operations of the importance, training and evaluation, per adapted layer and batch.

On a GPU each operation is a kernel launch, which costs some microseconds however small the kernel is. When launches are
the bottleneck, their number determines the time of a step, and it can be counted without a GPU. Views and allocations
compute nothing and are not counted. The rows are:

- floor: a forward and backward pass with all weights frozen.
- importance: the same pass with the gradient moments of the adapter's factors, as `unlora unlearn` measures them.
- training: a forward and backward pass over packed rows that trains the adapter, without the optimiser.
- forward: a forward pass only.
- evaluation: a forward pass of a model with an adapter and its offset, as needed for each generated token.

Two models of different depth are counted, and the difference is divided by the number of additional adapted layers, so
that operations which do not depend on the depth cancel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from experiments._speed import llama
from unlora.adapter.fused import fused_adapters
from unlora.adapter.targets import target_shapes
from unlora.data import Batch, pad_batch
from unlora.evals.scoring import evaluating
from unlora.importance import attach_probe, gradient_moments
from unlora.importance.taps import tapped
from unlora.models.forward import labelled_tokens
from unlora.models.packing import packing

DEPTHS = (2, 4)
ADAPTER = LoraConfig(r=8, lora_alpha=16)
# Operations that compute nothing but return no view either.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh", "_local_scalar_dense"}


@dataclass(frozen=True)
class Operations:
    """The cost of a pass.

    Args:
        calls: number of operations that compute something.
        bytes: memory allocated for their results, in bytes, including memory that was freed again.
    """

    calls: float
    bytes: float

    def __sub__(self, other: Operations) -> Operations:
        return Operations(self.calls - other.calls, self.bytes - other.bytes)

    def per(self, layers: int) -> Operations:
        """Return the cost per layer."""
        return Operations(self.calls / layers, self.bytes / layers)


class Counter(TorchDispatchMode):
    """Counts the operations inside a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it if it computes something."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls += func.overloadpacket.__name__ not in _FREE
            old = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
            new = {_storage(value) for value in tree_leaves(result) if isinstance(value, Tensor)}
            self.bytes += sum(size for _, size in new - old)
        return result


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def counted(run: Callable[[], object]) -> Operations:
    """Return the operations of a function, after a first run that is not counted and does one-time work."""
    run()
    with Counter() as counter:
        run()
    return Operations(counter.calls, counter.bytes)


def of_floor(model: nn.Module, batch: Batch) -> Operations:
    """Count a forward and backward pass with frozen weights."""

    def run() -> None:
        with tapped(model, []):
            labelled_tokens(model, batch).logp.sum().backward()

    return counted(run)


def of_importance(model: nn.Module, batch: Batch) -> Operations:
    """Count the gradient moments of one batch, as the difference between two batches and one."""
    probe = attach_probe(model, ADAPTER)
    once, twice = (counted(lambda n=n: gradient_moments(probe, [batch] * n)) for n in (1, 2))  # type: ignore[misc]
    return twice - once


def of_training(model: nn.Module, batch: Batch) -> Operations:
    """Count a forward and backward pass that trains the adapter."""
    adapted = attach_probe(model, ADAPTER)  # any initialisation will do, if an offset cancels it

    def run() -> None:
        adapted.zero_grad()
        labelled_tokens(adapted, batch).logp.sum().backward()

    with packing(adapted.get_base_model()), fused_adapters(adapted):
        return counted(run)


def of_forward(model: nn.Module, batch: Batch) -> Operations:
    """Count a forward pass without gradients."""
    with evaluating(model):
        return counted(lambda: labelled_tokens(model, batch))


def of_evaluation(model: nn.Module, batch: Batch) -> Operations:
    """Count a forward pass without gradients of the model with an adapter and its offset."""
    return of_forward(attach_probe(model, ADAPTER), batch)


PROCEDURES: dict[str, Callable[[nn.Module, Batch], Operations]] = {
    "floor": of_floor,
    "importance": of_importance,
    "training": of_training,
    "forward": of_forward,
    "evaluation": of_evaluation,
}
# The baseline of each procedure.
FLOORS = {"importance": "floor", "training": "floor", "evaluation": "forward"}


def per_layer(procedure: Callable[[nn.Module, Batch], Operations], dtype: torch.dtype) -> Operations:
    """Return the cost of a procedure per adapted layer of a small Llama."""
    drawn = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, 500, (length,), generator=drawn).tolist() for length in (24, 32, 17, 29)]
    batch = pad_batch([{"input_ids": ids, "labels": [-100] * 8 + ids[8:]} for ids in rows], 0)
    found: list[tuple[Operations, int]] = []
    for depth in DEPTHS:
        settings = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 500}
        model = AutoModelForCausalLM.from_config(llama(num_hidden_layers=depth, **settings), dtype=dtype).eval()
        found.append((procedure(model, batch), len(target_shapes(model, None))))
    (few, shallow), (many, deep) = found
    return (many - few).per(deep - shallow)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.operations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="dtypes of the model")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    table = Table("per adapted layer and batch", "dtype", "operations", "above the floor", "KiB allocated")
    for dtype in args.dtypes:
        found = {name: per_layer(procedure, getattr(torch, dtype)) for name, procedure in PROCEDURES.items()}
        for name, own in found.items():
            above = f"{(own - found[FLOORS[name]]).calls:.1f}" if name in FLOORS else "-"
            table.add_row(name, dtype, f"{own.calls:.1f}", above, f"{own.bytes / 1024:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
