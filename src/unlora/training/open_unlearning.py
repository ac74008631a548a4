"""A trainer for the Hydra configs of open-unlearning (https://github.com/locuslab/open-unlearning).

In `src/trainer/__init__.py` of open-unlearning, add

    from trainer.unlearn.base import UnlearnTrainer
    from unlora.training.open_unlearning import unlora_trainer

    _register_trainer(unlora_trainer(UnlearnTrainer))

and set `handler: Unlora` in a trainer config. The class has the signature of open-unlearning's trainers: the keyword
arguments of the method (`method_args`), and those of `transformers.Trainer`. It reads open-unlearning's pairs of a
forget and a retain example, initialises a LoRA adapter from the importance of the weights for the forget set, and
trains it with one of our losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn
from transformers import Trainer

from unlora.adapter.export import write_adapter
from unlora.adapter.offset import reference_model
from unlora.common.errors import InputError, Problem, raise_if
from unlora.data.encoding import Example
from unlora.importance.start import start_on
from unlora.losses.interface import Loss, own_settings
from unlora.losses.table import LOSSES, RETAIN_LOSSES, check_losses
from unlora.models.forward import Outputs, unwrapped
from unlora.settings.names import loss_problems

_INPUTS = ("input_ids", "attention_mask", "labels")


def unlora_trainer(base: type[Trainer] = Trainer) -> type[Trainer]:
    """Return the trainer as a subclass of open-unlearning's, so that its evaluators run as for any other method.

    Args:
        base: `trainer.unlearn.base.UnlearnTrainer` of open-unlearning.
    """
    return type(Unlora.__name__, (Unlora, base), {})


class Unlora(Trainer):
    """Unlearning with a LoRA adapter that unlora initialises. The first arguments are a trainer config's `method_args`.

    Args:
        init: the initialiser: vila, fila, pissa or lora.
        loss: the forget loss; see `unlora ls losses`. Losses with alternates or a teacher are not supported here.
        retain_loss: the retain loss; by default the one of the forget loss.
        forget_weight: γ in γ · forget loss + λ · retain loss.
        retain_weight: λ.
        r: the rank of the adapter.
        lora_alpha: alpha of the adapter.
        loss_kwargs: settings of the forget loss.
    """

    def __init__(
        self,
        init: str = "vila",
        loss: str = "ihl",
        retain_loss: str | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        r: int = 8,
        lora_alpha: int = 16,
        loss_kwargs: Mapping[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        own = dict(loss_kwargs or {})
        raise_if(_problems(loss, retain_loss, own))
        self.forget_loss, self.forget_weight, self.retain_weight = LOSSES[loss], forget_weight, retain_weight
        self.retain_loss = RETAIN_LOSSES.get(retain_loss or self.forget_loss.retain)
        self.loss_settings = {**self.forget_loss.settings, **own}
        forget, retain = _examples(kwargs["train_dataset"])
        # Some versions of open-unlearning's `load_trainer` use the old name of this argument in transformers.
        tokenizer = kwargs["processing_class"] = kwargs.pop("tokenizer", None) or kwargs.get("processing_class")
        adapter = LoraConfig(r=r, lora_alpha=lora_alpha)
        size = kwargs["args"].per_device_train_batch_size
        kwargs["model"] = start_on(kwargs["model"], tokenizer, forget, retain, init, adapter, size)
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # `compute_loss` returns a mean

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return γ · forget loss + λ · retain loss of a batch of pairs."""
        losses = {"forget_loss": self._loss(self.forget_loss, model, inputs["forget"])}
        loss = self.forget_weight * losses["forget_loss"]
        if self.retain_loss:
            losses["retain_loss"] = self._loss(self.retain_loss, model, inputs["retain"])
            loss = loss + self.retain_weight * losses["retain_loss"]
        return (loss, losses) if return_outputs else loss

    def _loss(self, loss: Loss, model: nn.Module, rows: Mapping[str, Tensor]) -> Tensor:
        batch = {name: rows[name] for name in _INPUTS}
        return loss(self._outputs(loss, model, batch), **self.loss_settings)

    def _outputs(self, loss: Loss, model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
        settings = own_settings(loss.forward, self.loss_settings)
        out: Any = loss.forward(model, batch, **settings)
        if not (loss.needs_reference_pass or loss.needs_reference_logp):
            return out
        with reference_model(unwrapped(model)):
            reference: Any = loss.forward(model, batch, **settings)
        if loss.needs_reference_logp:
            return replace(out, ref_logp=reference.example_logp)
        with_reference: Outputs = out.with_reference(reference)
        return with_reference

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the exported adapter and the tokenizer, so that open-unlearning's `eval.py` can load the folder."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter(unwrapped(self.model), folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)


def _examples(pairs: Any) -> tuple[list[Example], list[Example]]:
    """Return the forget and the retain examples of an open-unlearning dataset of pairs.

    Raises:
        InputError: pairs without a retain example.
    """
    rows = [pairs[place] for place in range(len(pairs))]
    if any("retain" not in row for row in rows):
        raise InputError(Problem("data.retain", None, "the importance is measured on both sets", "name a retain set"))
    return [_example(row["forget"]) for row in rows], [_example(row["retain"]) for row in rows]


def _example(row: Mapping[str, Any]) -> Example:
    """Convert an open-unlearning example, whose values are tensors."""
    ids, labels = (list(map(int, row[name])) for name in ("input_ids", "labels"))
    return {"input_ids": ids, "labels": labels}


def _problems(loss: str, retain_loss: str | None, settings: Mapping[str, Any]) -> Sequence[Problem]:
    problems = [*loss_problems(loss, retain_loss), *check_losses(loss, retain_loss, dict(settings))]
    if problems:
        return problems
    chosen = LOSSES[loss]
    if chosen.reads != ("forget",) or chosen.needs_teacher or chosen.update_weight:
        reason, fix = "it needs alternates, a teacher or a changing λ", "use `unlora unlearn`, or another loss"
        return [Problem("loss", loss, reason, fix)]
    return []
