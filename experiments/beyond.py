"""Compare initialisations that extend VILA's row weights with VILA on persona, with loss ihl.

They are not part of the library, since none of them is better than VILA's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from rich.table import Table
from torch import Tensor

from experiments._persona import TUNING_SEED, make_parser, show
from experiments.ablation import COLUMNS, RATES, RETAINED, Bench, Cell, Results, means
from unlora.adapter import attach_adapters, detach_adapters
from unlora.adapter.offset import base_weight, lora_layers
from unlora.adapter.targets import target_shapes
from unlora.importance import Moments, attach_probe, gradient_moments, relative_importance
from unlora.importance.sampling import retain_sample
from unlora.pipeline.importance import measurement_for
from unlora.pipeline.job import Job
from unlora.pipeline.request import Request
from unlora.settings import ImportanceConfig

DELTA, EPSILON = 1e-5, 0.1
NAMES = ("vila", "rows and columns", "A and B apart", "B alone", "ranks by importance")
Weights = Mapping[str, tuple[Tensor, Tensor]]


class Beyond(Bench):
    """Persona with the initialisations of this module."""

    def attach(self, cell: Cell, request: Request, job: Job) -> PeftModel:
        """Attach the adapter and its offset, initialised by the cell's method."""
        forget, retain = moments(request, job, self.seed)
        rows = relative_importance(forget, retain, rows=True)
        if cell.method == "vila":
            return attach_adapters(job.model, request.args, rows)
        if cell.method == "ranks by importance":
            return attach_adapters(job.model, with_ranks(request, job, rows), rows)
        if cell.method == "rows and columns":
            weights = rows_and_columns(forget, retain)
        else:
            weights = factors_apart(forget, retain, columns=cell.method == "A and B apart")
        return start(attach_adapters(job.model, request.args, rows), weights, request.args.r)


def moments(request: Request, job: Job, seed: int) -> tuple[Moments, Moments]:
    """Return VILA's gradient moments over the forget set and over a retain sample."""
    config = ImportanceConfig(importance_seed=seed)
    retain = retain_sample(job.retain, RETAINED, seed)
    measurement = measurement_for(replace(job, request=replace(request, importance=config)), retain)
    probe = attach_probe(job.model, request.args, config.sigma, seed)
    of_forget, of_retain = (gradient_moments(probe, b()) for b in (measurement.forget, measurement.retain))
    detach_adapters(probe)
    return of_forget, of_retain


def rows_and_columns(forget: Moments, retain: Moments) -> Weights:
    """Return w_r and w_c of diag(w_r)·W·diag(w_c): square roots of the row and column sums of VILA's importance."""
    return {n: (root(i.sum(1)), root(i.sum(0))) for n, i in relative_importance(forget, retain).items()}


def factors_apart(forget: Moments, retain: Moments, columns: bool) -> Weights:
    """Return row weights from the importance of B alone and column weights from that of A alone.

    Without `columns`, all column weights are 1.
    """
    weights = {}
    for name in forget.mean:
        module, factor, tail = name.partition(".lora_A.")
        if factor:
            of_b, of_a = (ratio(forget, retain, key) for key in (f"{module}.lora_B.{tail}", name))
            by_column = root(of_a.sum(0)) if columns else torch.ones(of_a.shape[1])
            weights[module.removeprefix("base_model.model.")] = (root(of_b.sum(1)), by_column)
    return weights


def ratio(forget: Moments, retain: Moments, name: str) -> Tensor:
    """Return the elementwise relative importance of a LoRA factor, with relative smoothing."""
    of_retain = retain.variance(name)
    return forget.variance(name) / (of_retain + EPSILON * of_retain.mean())


def root(importance: Tensor) -> Tensor:
    """Return the square roots of an importance, scaled to mean square 1."""
    return (importance / importance.mean()).sqrt()


@torch.no_grad()
def start(model: PeftModel, weights: Weights, rank: int) -> PeftModel:
    """Initialise the adapter with the truncated SVD of diag(rows)·W·diag(columns), divided by the weights again.

    The offset gets the same factors with the opposite sign of B, so that both cancel.
    """
    for name, layer in lora_layers(model):
        rows, columns = weights[name]
        u, s, vh = torch.linalg.svd(rows[:, None] * base_weight(layer) * columns, full_matrices=False)
        share = (s[:rank] / layer.scaling["unlearn"]).sqrt()
        a0, b0 = share[:, None] * vh[:rank] / (columns + DELTA), u[:, :rank] * share / (rows[:, None] + DELTA)
        for adapter, sign in (("unlearn", 1), ("offset", -1)):
            layer.lora_A[adapter].weight.copy_(a0)
            layer.lora_B[adapter].weight.copy_(sign * b0)
    return model


def with_ranks(request: Request, job: Job, rows: Mapping[str, Tensor]) -> LoraConfig:
    """Return an adapter configuration whose ranks are chosen layer by layer.

    Ranks are given greedily to the layers that gain the most weighted energy per parameter, with at most as many
    parameters as a uniform rank has.
    """
    args, shapes = request.args, target_shapes(job.model, None)
    cost = {name: sum(shape) for name, shape in shapes.items()}
    gains = []
    for name in shapes:
        weight = job.model.get_submodule(name).weight.detach()
        energy = torch.linalg.svdvals(root(rows[name])[:, None] * weight).square()
        gains += [(float(value) / cost[name], name) for value in energy[1:]]
    ranks, left = dict.fromkeys(shapes, 1), (args.r - 1) * sum(cost.values())
    for _, name in sorted(gains, reverse=True):
        if cost[name] <= left:
            ranks[name] += 1
            left -= cost[name]
    scaling = args.lora_alpha / args.r
    return LoraConfig(
        r=args.r,
        lora_alpha=int(args.lora_alpha),
        target_modules="all-linear",
        rank_pattern=ranks,
        alpha_pattern={name: scaling * rank for name, rank in ranks.items()},
    )


def main() -> None:
    """Run the missing cells, and print the table."""
    parser = make_parser("beyond", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tuning_seed", type=int, default=TUNING_SEED)
    parser.add_argument("--starts", nargs="+", choices=NAMES, default=NAMES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out, Beyond)
    table = Table("start", "learning rate", *COLUMNS)
    for name in args.starts:
        grid = {rate: results.get(Cell(name, "ihl", rate, 1.0, args.tuning_seed)) for rate in RATES[1:-1]}
        best = max(grid, key=lambda rate: grid[rate].get("log10_forget_quality", float("-inf")))
        values = [results.get(Cell(name, "ihl", best, 1.0, seed)) for seed in args.seeds]
        table.add_row(name, f"{best:g}", *means(values))
    show(table)


if __name__ == "__main__":
    main()
