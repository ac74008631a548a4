"""Initialise the adapter as ReGLU does (arXiv 2604.17396), and unlearn persona by distillation.

For each adapted weight W, the columns of B₀ are the leading eigenvectors of (1 − β)·Cov_forget − β·Cov_retain, with the
covariances of its outputs, and A₀ = B₀ᵀW. The adapter thus starts at the part of W that writes to directions in which
the forget set varies and the retain set does not. Only the initialisation is tested, without the paper's penalty on the
retain set's directions.

python -m experiments.reglu --seeds 100 --learning_rates 5e-4 1e-3 2e-3
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from rich.table import Table
from torch import Tensor, nn

from experiments._persona import MEASURES, Persona, add_measures, compared_request, make_parser, measures_of, show
from unlora.adapter import attach_factors
from unlora.adapter.settings import AdapterSettings
from unlora.adapter.targets import target_shapes
from unlora.data import Batch, TextFormat, encode_records, iter_batches, padding_id
from unlora.data.sources import Record
from unlora.models.load import load_tokenizer
from unlora.pipeline import unlearn as pipeline
from unlora.settings import ModelConfig

# The weight β of the retain set's covariance.
_BETA = 0.5
_BATCH_SIZE = 32


class Covariance:
    """Accumulates the covariance of the outputs of the named modules, over all tokens but padding."""

    def __init__(self, names: Iterable[str]) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.names = list(names)

    @torch.no_grad()
    def add(self, model: nn.Module, batch: Batch) -> None:
        """Run the model on a batch, and add the outputs of the modules."""
        real = batch["attention_mask"].bool()
        self.count += int(real.sum())

        def accumulate(name: str, output: Tensor) -> None:
            values = output[real].double()
            self.sums[name] = self.sums.get(name, 0) + values.sum(0)
            self.squares[name] = self.squares.get(name, 0) + values.T @ values

        modules = dict(model.named_modules())
        hooks = [
            modules[name].register_forward_hook(lambda module, inputs, output, name=name: accumulate(name, output))
            for name in self.names
        ]
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for hook in hooks:
            hook.remove()

    def of(self, name: str) -> Tensor:
        """Return the covariance [out, out] of a module's output."""
        mean = self.sums[name] / self.count
        return self.squares[name] / self.count - torch.outer(mean, mean)


def attach_at_subspaces(
    base: nn.Module, config: AdapterSettings, sets: Sequence[Sequence[Record]], text_format: TextFormat
) -> PeftModel:
    """Attach an adapter with ReGLU's initialisation, and the offset that cancels it.

    Args:
        base: the original model.
        config: rank, scaling and target modules of the adapter.
        sets: the rows of the forget set and of the retain set.
        text_format: converts rows to tokens.
    """
    covariances = []
    for rows in sets:
        covariance = Covariance(target_shapes(base, config.target_modules))
        for batch in iter_batches(encode_records(rows, text_format), _BATCH_SIZE, padding_id(text_format.tokenizer)):
            covariance.add(base, batch)
        covariances.append(covariance)

    def start(name: str, layer: LoraLayer) -> tuple[Tensor, Tensor]:
        of_forget, of_retain = (covariance.of(name) for covariance in covariances)
        values, vectors = torch.linalg.eigh((1 - _BETA) * of_forget - _BETA * of_retain)
        weight, scaling = layer.get_base_layer().weight, layer.scaling["unlearn"]
        first = vectors[:, values.argsort(descending=True)[: config.r]].to(weight.dtype)
        return first.T @ weight.detach() / scaling, first

    return attach_factors(base, config, start, offset=True)


def run(seed: int, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Run one request in `folder`, and return its measures."""
    persona = Persona(folder, seed)
    request, log = compared_request(persona.models, persona.sets, folder, seed, **settings)
    text_format = TextFormat(load_tokenizer(ModelConfig(str(persona.models["original"]))))
    sets = [persona.sets[name] for name in ("forget", "retain")]
    # The pipeline can only initialise an adapter from row importances, which cannot express this initialisation.
    pipeline.attach_adapters = lambda base, config, importance: attach_at_subspaces(base, config, sets, text_format)
    return measures_of(pipeline.unlearn(request, persona.sets).metrics, log)


def main() -> None:
    """Print the measures of each run, then a table of their means ± standard errors over the seeds."""
    parser = make_parser("reglu", __doc__)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3])
    args = parser.parse_args()
    table = Table("learning rate", *MEASURES)
    for rate in args.learning_rates:
        found = {seed: run(seed, Path(tempfile.mkdtemp()), {"learning_rate": rate}) for seed in args.seeds}
        add_measures(table, f"{rate:g}", found)
    show(table)


if __name__ == "__main__":
    main()
