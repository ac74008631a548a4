"""`UnlearnTrainer`: transformers' Trainer with a forget and a retain loss, and checkpoints without pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments

from unlora.adapter.export import read_adapter, write_adapter
from unlora.adapter.fused import fused_adapters
from unlora.adapter.offset import freeze_others, reference_model
from unlora.adapter.settings import UNLEARN
from unlora.common.distributed import add_columns, add_up, copy_from_main, merge, processes, share, together
from unlora.common.errors import DivergenceError, Problem, raise_if
from unlora.common.files import write_json
from unlora.common.progress import bar
from unlora.data import Example, ForgetRetainDataset, PairSampler, UnlearnCollator, pad_batch, padding_id
from unlora.losses.table import LOSSES, NO_RETAIN, RETAIN_LOSSES, check_losses, own_settings
from unlora.models.forward import causal_lm, labelled_tokens
from unlora.models.packing import packing
from unlora.models.sharding import is_sharded
from unlora.settings.checks import not_finite
from unlora.settings.training import UnlearnSettings
from unlora.training.checkpoints import SafeArguments, SafeTrainer

RETAIN_WEIGHT = "retain_weight.json"
# The one setting that may be infinite.
NO_LIMIT = ("max_retain_loss", math.inf)


@dataclass
class UnlearnConfig(UnlearnSettings, SafeArguments):
    """Adapter, losses and training settings: every field of `transformers.TrainingArguments`, and `UnlearnSettings`.

    Names of adapter settings are those of `peft.LoraConfig`. Defaults follow the paper (rank 8, alpha 16, weight decay
    0.01, 5 epochs, effective batch 32).

    Raises:
        InputError: unknown losses or loss settings, or values that cannot work; all of them at once.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "loss_kwargs"]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss_kwargs = self.loss_kwargs or {}
        raise_if(self.problems())

    def problems(self) -> list[Problem]:
        """What is wrong with the settings themselves; the model's part is checked by `attach_adapters`."""
        if not isinstance(self.loss_kwargs, dict):
            return [Problem("loss_kwargs", self.loss_kwargs, "not a JSON object", "write it as '{\"beta\": 0.1}'")]
        return [
            *check_losses(self.loss, self.retain_loss, self.loss_kwargs),
            *super().problems(),
            *self.adapter_problems(),
            *(found for found in not_finite(self) if (found.argument, found.value) != NO_LIMIT),
        ]

    @property
    def chosen_retain_loss(self) -> str:
        """The retain loss by name: the user's, or what goes with the forget loss."""
        return self.retain_loss or LOSSES[self.loss].retain

    @property
    def scaling(self) -> float:
        """What the product of the adapter's factors is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def pairing_seed(self) -> int:
        """The seed of the order of the data."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def loss_settings(self) -> dict[str, Any]:
        """The forget loss's own settings: the user's, and the defaults of the others."""
        assert isinstance(self.loss_kwargs, dict)
        return {**LOSSES[self.loss].settings, **self.loss_kwargs}

    def model_problems(self, model: nn.Module) -> list[Problem]:
        """What is wrong with the forget loss's settings for this model."""
        return LOSSES[self.loss].model_problems(model, self.loss_settings)


class UnlearnTrainer(SafeTrainer):
    """Minimises forget loss + λ · retain loss over the "unlearn" adapter.

    One forward pass a step covers forget and retain rows; the head sees labelled positions only. The model's answers
    before this request, where a loss needs them, come from the same model with its adapters off.

    Each checkpoint folder is a loadable PEFT adapter for the original base, earlier adapters included, beside the
    optimiser's and random states.

    Args:
        model: from `attach_adapters`.
        args: the settings.
        forget_dataset: tokenised examples to forget (`encode_records`).
        retain_dataset: tokenised examples to keep; may be empty only if there is no retain loss.
        processing_class: the tokenizer; gives the padding id.
        alternates: for losses that read them, other answers to the same questions: tokenised examples parallel to
            `forget_dataset`.
        **kwargs: as for `transformers.Trainer` (callbacks, optimizers).

    Raises:
        InputError: an empty set, missing alternates, loss settings that do not suit the model, a model without the
            adapter, or a sharded set-up that is not supported.
        DivergenceError: from `train`, when a loss is not finite or the retain loss exceeds its limit. The model then
            holds the last good adapter, which is saved too.
    """

    def __init__(
        self,
        model: PeftModel,
        args: UnlearnConfig,
        forget_dataset: Sequence[Example],
        retain_dataset: Sequence[Example],
        processing_class: Any,
        alternates: Sequence[Example] | None = None,
        **kwargs: Any,
    ) -> None:
        raise_if(_argument_problems(model, args, forget_dataset, retain_dataset, alternates))
        freeze_others(model)
        if args.gradient_checkpointing:
            model.enable_input_require_grads()  # else re-entrant checkpoints give the layers no gradient, silently
        self.forget_loss = LOSSES[args.loss]
        self.retain_loss = RETAIN_LOSSES.get(args.chosen_retain_loss)
        retain = retain_dataset if self.retain_loss else None
        self.pairs = ForgetRetainDataset(forget_dataset, retain, args.pairing_seed, alternates)
        self.pad_id = padding_id(processing_class)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.pairs,
            data_collator=UnlearnCollator(self.pad_id, self.forget_loss.reads),
            processing_class=processing_class,
            **kwargs,
        )
        self.sharded = is_sharded(model)
        if self.sharded:  # only the small adapters are whole, and this class averages their gradients
            model._is_accelerate_prepared = True
            copy_from_main(parameter.data for name, parameter in model.named_parameters() if ".lora_" in name)
        self.model_accepts_loss_kwargs = False  # `compute_loss` returns what accumulation then averages
        if self.forget_loss.update_weight:
            self.add_callback(_AfterStep(self.update_retain_weight))
        self.retain_weight = args.retain_weight
        self._retain_limit = args.max_retain_loss
        self._step_retain: list[tuple[float, float]] = []
        self._sums: dict[str, float] = {}
        self._updates = 0.0
        self._good: tuple[int, dict[str, Tensor]] | None = None
        self._staging: str | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`; without padding and with a layer's adapters in one, where that works."""
        with ExitStack() as stack:
            stack.enter_context(packing(causal_lm(self.model)))
            stack.enter_context(fused_adapters(self.model))
            return super().train(*args, **kwargs)

    # Data

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int]:
        return PairSampler(len(self.pairs), self._train_batch_size * self.args.world_size if processes()[1] > 1 else 1)

    def get_train_dataloader(self) -> Any:
        """The loader of pairs; computes the reference log-probabilities first if the loss needs them."""
        if self.forget_loss.reference == "logp" and not self.pairs.ref_logp:
            columns = {"forget": self.pairs.forget, "alternate": self.pairs.alternates or []}
            self.pairs.ref_logp = {name: self.reference_logp(columns[name]) for name in self.forget_loss.reads}
        return super().get_train_dataloader()

    def reference_logp(self, examples: Sequence[Example]) -> list[float]:
        """Summed log-probability of each example's labels under the model before unlearning, in nats."""
        size = self.args.per_device_train_batch_size
        values: dict[int, float] = {}
        places = share(range(len(examples)))
        with together(), reference_model(self.accelerator.unwrap_model(self.model)):
            for start in bar(range(0, len(places), size), desc="answers before unlearning", unit=" batches"):
                chosen = places[start : start + size]
                batch = pad_batch([examples[place] for place in chosen], self.pad_id)
                logp = labelled_tokens(self.model, batch).example_logp.tolist()
                values.update(zip(chosen, logp, strict=True))
        values = merge(values)
        return [values[place] for place in range(len(examples))]

    # Loss

    def _items(self, batch: Mapping[str, Any]) -> list[int]:
        """How many items the forget loss of a batch is the mean over, and the retain loss if there is one."""
        forget = batch["pairs" if self.forget_loss.mean_over == "pairs" else "forget_tokens"]
        return [forget, batch["retain_tokens"]] if self.retain_loss else [forget]

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Any]], device: torch.device) -> list[int]:
        """The items of all batches of an update, of all processes."""
        return add_columns([self._items(batch) for batch in batch_samples])

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Forget loss + λ · retain loss of one batch of pairs, both logged apart.

        Each is weighted so that the mean over an update's batches, of all processes, is the mean over all its tokens
        (or pairs), however these were cut into batches.
        """
        forget, retain = self._outputs(model, inputs)
        losses = {"forget_loss": self._call(self.forget_loss.function, forget)}
        if self.retain_loss:
            losses["retain_loss"] = self.retain_loss.function(retain)
        items = self._items(inputs)
        self._guard(losses, items, num_items_in_batch)
        if num_items_in_batch is not None:
            batches = self.current_gradient_accumulation_steps * self.args.world_size
            shares = [batches * own / whole for own, whole in zip(items, num_items_in_batch, strict=True)]
            losses = {name: loss * part for (name, loss), part in zip(losses.items(), shares, strict=True)}
        total = losses["forget_loss"] + self.retain_weight * losses.get("retain_loss", 0.0)
        return (total, losses) if return_outputs else total

    def _outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """What the model says of the forget and of the retain rows, beside the references that the losses need."""
        split, rows = inputs["forget_examples"], len(inputs["labels"])
        out = self._call(self.forget_loss.forward, model, inputs)
        forget, retain = out.rows(0, split), out.rows(split, rows)
        if "ref_logp" in inputs:
            forget = replace(forget, ref_logp=inputs["ref_logp"])
        of_forget = self.forget_loss.needs_reference_pass
        of_retain = self.retain_loss is not None and self.retain_loss.needs_reference_pass
        if of_forget or of_retain:  # one pass for both
            start, stop = 0 if of_forget else split, rows if of_retain else split
            part = {name: inputs[name][start:stop] for name in ("input_ids", "attention_mask", "labels")}
            with reference_model(self.accelerator.unwrap_model(model)):
                reference = self._call(self.forget_loss.forward, model, part)
            forget = forget.with_reference(reference.rows(0, split)) if of_forget else forget
            retain = retain.with_reference(reference.rows(split - start, rows - start)) if of_retain else retain
        return forget, retain

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls one of the forget loss's functions with those of its settings that it takes."""
        return function(*args, **own_settings(function, self.args.loss_settings))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `Trainer`; averages the gradients over the processes where DistributedDataParallel does not."""
        loss = super().training_step(*args, **kwargs)
        if self.sharded and self.accelerator.sync_gradients:
            gradients = [p.grad for p in self._trainable().values() if p.grad is not None]
            add_up(gradients)
            for gradient in gradients:
                gradient.div_(self.args.world_size)
        return loss

    def update_retain_weight(self) -> None:
        """Sets λ anew after an optimiser step, from the mean retain loss of its batches."""
        total, items = (sum(column) for column in zip(*self._step_retain, strict=True))
        retain_loss = total / items
        assert self.forget_loss.update_weight is not None
        self.retain_weight = self._call(self.forget_loss.update_weight, self.retain_weight, retain_loss)
        self._step_retain = []

    # Guard and logging

    def _guard(self, losses: dict[str, Tensor], items: list[int], of_update: list[int] | None) -> None:
        """Adds the losses to the log; stops training at the first that is not finite or too large.

        All processes see the mean over the items of all, and so do the same.
        """
        own = torch.stack(list(losses.values())).detach().tolist()
        columns = add_columns([[*items, *(value * count for value, count in zip(own, items, strict=True))]])
        counts, sums = columns[: len(own)], columns[len(own) :]
        values = {name: total / count for name, total, count in zip(losses, sums, counts, strict=True)}
        for name, value in values.items():
            if not math.isfinite(value):
                self._stop(f"the {name} is {value}")
        retain_loss = values.get("retain_loss", 0.0)
        if self._retain_limit is None:  # worse by more than blind guessing costs: nothing is left to retain
            known = self.retain_loss is None or self.retain_loss.nats
            self._retain_limit = retain_loss + math.log(causal_lm(self.model).config.vocab_size) if known else math.inf
        if retain_loss > self._retain_limit:
            self._stop(f"the retain_loss is {retain_loss:.3g}, above its limit {self._retain_limit:.3g}")
        if of_update is not None:
            for name, total, whole in zip(values, sums, of_update, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + total / whole
            self._updates += 1 / self.current_gradient_accumulation_steps
            if self.forget_loss.update_weight:
                self._step_retain.append((sums[-1], counts[-1]))
        if self.model.training and (self._good is None or self._good[0] != self.state.global_step):
            self._good = (self.state.global_step, {n: p.detach().clone() for n, p in self._trainable().items()})

    def _trainable(self) -> dict[str, nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def _stop(self, reason: str) -> None:
        """Puts the last good adapter back, saves it, and raises."""
        step, good = self._good or (0, {})
        for name, parameter in self._trainable().items():
            if name in good:
                parameter.copy_(good[name])
        folder = Path(self.args.output_dir) / "last-good-adapter"
        if self.args.should_save:
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_adapter(self.accelerator.unwrap_model(self.model), folder)
        raise DivergenceError(
            f"training stopped at step {self.state.global_step}: {reason}. The adapter of step {step} was put back and "
            f"saved as {folder}. Fix: lower learning_rate (now {self.args.learning_rate:g}), raise retain_weight (now "
            f"{self.args.retain_weight:g}), train for fewer steps, or raise max_retain_loss."
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean forget and retain loss since the last log, and λ where the loss changes it."""
        if "loss" in logs and self._updates:
            logs = {**logs, **{name: value / self._updates for name, value in self._sums.items()}}
            if self.forget_loss.update_weight:
                logs["retain_weight"] = self.retain_weight
            self._sums, self._updates = {}, 0.0
        super().log(logs, *args, **kwargs)

    # Checkpoints hold the exported adapter

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter(self.accelerator.unwrap_model(self.model), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_adapter(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.forget_loss.update_weight and self.args.should_save:
            write_json(Path(output_dir) / RETAIN_WEIGHT, self.retain_weight)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.forget_loss.update_weight and checkpoint is not None:
            self.retain_weight = json.loads((Path(checkpoint) / RETAIN_WEIGHT).read_text())


class _AfterStep(TrainerCallback):
    """Calls a function after each optimiser step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.function()


def _argument_problems(
    model: Any,
    args: UnlearnConfig,
    forget: Sequence[Example],
    retain: Sequence[Example],
    alternates: Sequence[Example] | None,
) -> list[Problem]:
    problems = []
    if not isinstance(model, PeftModel) or UNLEARN not in model.peft_config:
        reason = f"it has no adapter {UNLEARN!r}"
        problems.append(Problem("model", type(model).__name__, reason, "give what attach_adapters returns"))
    else:
        problems += args.model_problems(model)
    if not len(forget):
        problems.append(
            Problem("forget_dataset", "0 examples", "there is nothing to forget", "give at least one example")
        )
    if not len(retain) and args.chosen_retain_loss != NO_RETAIN:
        fix = "give retain examples or use retain_loss='none'"
        problems.append(Problem("retain_dataset", "0 examples", f"{args.chosen_retain_loss!r} needs retain data", fix))
    if "alternate" in LOSSES[args.loss].reads and alternates is None:
        reason = f"{args.loss!r} teaches another answer to each forget question"
        problems.append(Problem("alternates", None, reason, "give one tokenised example for each forget example"))
    if alternates is not None and len(alternates) != len(forget):
        reason = f"there are {len(forget)} forget examples"
        problems.append(Problem("alternates", f"{len(alternates)} examples", reason, "give as many, in their order"))
    return problems
