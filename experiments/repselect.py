"""Unlearn persona by distillation with RepSelect's idea (arXiv 2606.17168), then relearn a fifth of the forget set.

Before each update, the leading principal components of the forget loss's gradient are removed from it, because they are
shared with other knowledge, and an attacker who trains on a few forgotten rows recovers them. Here this is done to the
gradients of the LoRA factors. The gradient of the retain loss is not changed.

python -m experiments.repselect --seeds 100 101 --components 0 1 2 4
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from experiments._persona import MEASURES, Persona, add_measures, compared_request, make_parser, measures_of, show
from unlora.cli import main as unlora
from unlora.pipeline import unlearn as pipeline
from unlora.runs.folder import ATTACKS
from unlora.training.trainer import UnlearnTrainer

_ATTACK = {"attacks": "relearn", "relearn_percent": "20", "seeds": "3"}
_MODELS = ("unlearned", "retrained")


def without_first(gradient: Tensor, components: int) -> Tensor:
    """Return a matrix without its leading principal components, those of the largest singular values."""
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    return (u[:, components:] * s[components:]) @ vh[components:]


class Selective(UnlearnTrainer):
    """Trainer that removes the leading components of the forget loss's gradient before each update.

    Args:
        *args: arguments of `UnlearnTrainer`.
        components: number of components to remove.
    """

    def __init__(self, *args: Any, components: int) -> None:
        self.components = components
        super().__init__(*args)

    def training_step(self, model: nn.Module, inputs: Mapping[str, Any], items: Any = None) -> Tensor:
        """Compute the gradients of both losses of a batch separately, and add them after removing the components."""
        model.train()
        total, losses = self.compute_loss(model, self._prepare_inputs(inputs), True, items)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        of_forget, of_retain = (
            torch.autograd.grad(loss, parameters, retain_graph=first)
            for loss, first in ((losses["forget_loss"], True), (self.retain_weight * losses["retain_loss"], False))
        )
        for parameter, forget, retain in zip(parameters, of_forget, of_retain, strict=True):
            parameter.grad = without_first(forget, self.components) + retain
        return total.detach()


def run(seed: int, components: int, folder: Path) -> tuple[dict[str, float], list[float]]:
    """Return the measures of one run, and the forget probabilities of the models in `_MODELS` after relearning."""
    persona = Persona(folder, seed)
    request, log = compared_request(persona.models, persona.sets, folder, seed)
    pipeline.UnlearnTrainer = partial(Selective, components=components)
    result = pipeline.unlearn(request, persona.sets)
    flags = [part for name, value in _ATTACK.items() for part in (f"--{name}", value)]
    unlora(["attack", str(result.folder), "--retrained", str(persona.models["retrained"]), *flags, "--quiet"])
    [attacked] = json.loads((result.folder / ATTACKS).read_text(encoding="utf-8"))["attacks"]["relearn"].values()
    return measures_of(result.metrics, log), [attacked[model]["forget_probability"] for model in _MODELS]


def main() -> None:
    """Print the measures of each run, then a table of their means ± standard errors over the seeds."""
    parser = make_parser("repselect", __doc__)
    parser.add_argument("--components", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    table = Table("components", *MEASURES)
    for components in args.components:
        results = {seed: run(seed, components, Path(tempfile.mkdtemp())) for seed in args.seeds}
        add_measures(table, str(components), {seed: measures for seed, (measures, _) in results.items()})
        for seed, (_, relearned) in results.items():
            words = ", ".join(f"{model} {value:.3f}" for model, value in zip(_MODELS, relearned, strict=True))
            print(f"{components}, seed {seed}: forget probability after relearning: {words}", flush=True)
    show(table)


if __name__ == "__main__":
    main()
