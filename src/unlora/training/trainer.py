"""`UnlearnTrainer`: transformers' Trainer with a forget and a retain loss, and checkpoints without pickle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl

from unlora.adapter.export import read_adapter, write_adapter
from unlora.adapter.fused import fused_adapters
from unlora.adapter.offset import freeze_others, reference_model
from unlora.common.distributed import add_columns, add_up, copy_from_main, processes
from unlora.common.errors import DivergenceError, raise_if
from unlora.common.progress import shown
from unlora.data import Example, ForgetRetainDataset, PairSampler, TextFormat, UnlearnCollator, padding_id
from unlora.data.lessons import Lesson
from unlora.evals.scoring import example_nll
from unlora.losses.interface import own_settings
from unlora.losses.table import LOSSES, RETAIN_LOSSES
from unlora.models.forward import Outputs, causal_lm, unwrapped
from unlora.models.packing import packing
from unlora.models.sharding import is_sharded
from unlora.training.checks import argument_problems, evaluator_problems
from unlora.training.config import UnlearnConfig
from unlora.training.parts import TrainerInParts
from unlora.training.snapshots import restore, snapshot, trainable
from unlora.training.taught import StopWhenTaught

# The columns of a pair.
_COLUMNS = ("forget", "alternate", "retain")
# The attributes to save in a checkpoint: the state of the log, of the retain loss and of the last good adapter.
_PROGRESS = ("retain_weight", "_retain_limit", "_logged_sums", "_logged_updates", "_good_adapter")


class UnlearnTrainer(TrainerInParts):
    """Minimise γ · forget loss + λ · retain loss over the "unlearn" adapter.

    One forward pass per batch covers the forget and the retain rows, and logits are computed at labelled positions
    only. Losses that need the outputs of the model before this request get them from the same model with "unlearn" and
    "offset" disabled.

    Each checkpoint contains a PEFT adapter for the original base model, which includes the adapters of earlier
    requests, and the states of the optimiser and the random number generators.

    Args:
        model: the model from `attach_adapters`.
        args: the settings.
        forget_dataset: tokenised examples to forget (`encode_records`).
        retain_dataset: tokenised examples to keep. It may be empty only without a retain loss.
        processing_class: the tokenizer, which defines the padding id.
        alternates: alternate answers to the same questions, for losses that read them: one tokenised example for each
            example of `forget_dataset`, in the same order.
        lessons: the teacher's predictions for each forget example, for losses that distil a teacher.
        evaluator: model -> {name: number}, called as `eval_strategy` specifies.
        **kwargs: passed to `transformers.Trainer` (callbacks, optimizers).

    Raises:
        InputError: an empty dataset, missing alternates or lessons, loss settings that do not suit the model, a model
            without the adapter, or no evaluator although evaluations are due.
        DivergenceError: from `train`, if a loss is not finite or the retain loss exceeds its limit. The model then has
            the last good adapter, which is also saved.
    """

    _sums = ("_logged_sums", "_logged_updates", "update_means", "_step_retain")

    def __init__(
        self,
        model: PeftModel,
        args: UnlearnConfig,
        forget_dataset: Sequence[Example],
        retain_dataset: Sequence[Example],
        processing_class: PreTrainedTokenizerFast,
        alternates: Sequence[Example] | None = None,
        lessons: Sequence[Lesson] | None = None,
        evaluator: Callable[[nn.Module], Mapping[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        problems = argument_problems(model, args, forget_dataset, retain_dataset, alternates, lessons)
        raise_if([*problems, *evaluator_problems(args, evaluator)])
        self.evaluator = evaluator
        freeze_others(model)
        if args.gradient_checkpointing:
            # Without this, reentrant checkpointing silently gives the adapters no gradient.
            model.enable_input_require_grads()
        self.forget_loss = LOSSES[args.loss]
        self.retain_loss = RETAIN_LOSSES.get(args.chosen_retain_loss)
        retain = retain_dataset if self.retain_loss else None
        self.pairs = ForgetRetainDataset(forget_dataset, retain, args.pairing_seed, alternates, lessons=lessons)
        per_update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        taught = StopWhenTaught(self, -(-len(self.pairs) // per_update)) if args.until_taught else None
        if taught and args.max_steps <= 0:
            args.max_steps = taught.most_steps  # only a limit: the callback normally stops training earlier
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.pairs,
            eval_dataset=self.pairs if evaluator else None,  # required by transformers, but not used by the evaluator
            data_collator=UnlearnCollator(padding_id(processing_class), self.forget_loss.reads),
            processing_class=processing_class,
            **kwargs,
        )
        self.sharded = is_sharded(model)
        if self.sharded:
            # Only the frozen base is sharded. Every process has the whole adapter, so accelerate must not prepare the
            # model: this class makes the adapters equal at the start, and averages their gradients at each step.
            model._is_accelerate_prepared = True
            copy_from_main(parameter.data for name, parameter in model.named_parameters() if ".lora_" in name)
        self.model_accepts_loss_kwargs = False  # `compute_loss` returns a mean, which gradient accumulation averages
        if self.forget_loss.update_weight:
            self.add_callback(_AfterStep(self._update_retain_weight))
        assert args.retain_weight is not None  # `UnlearnConfig` fills it in
        self.retain_weight = args.retain_weight
        self._retain_limit = args.max_retain_loss
        self._step_retain: list[tuple[float, float]] = []
        self._logged_sums: dict[str, float] = {}
        self._logged_updates = 0.0
        self._good_adapter: tuple[int, dict[str, Tensor]] | None = None
        self.update_means: dict[str, float] = {}
        self.taught = taught
        if taught:
            self.add_callback(taught)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train like `transformers.Trainer`, with packed batches and fused adapters where the model supports them."""
        with ExitStack() as stack:
            stack.enter_context(packing(causal_lm(self.model)))
            stack.enter_context(fused_adapters(self.model))
            return super().train(*args, **kwargs)

    # Data

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int]:
        return PairSampler(len(self.pairs), self._train_batch_size * self.args.world_size if processes()[1] > 1 else 1)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of pairs. If the loss needs reference log-probabilities, compute them first."""
        if self.forget_loss.needs_reference_logp and not self.pairs.ref_logp:
            columns = {"forget": self.pairs.forget, "alternate": self.pairs.alternates or []}
            self.pairs.ref_logp = {name: self.reference_logp(columns[name]) for name in self.forget_loss.reads}
        return super().get_train_dataloader()

    def reference_logp(self, examples: Sequence[Example]) -> list[float]:
        """Return the summed log-probability of each example's labels under the model before unlearning, in nats."""
        text_format, size = TextFormat(self.processing_class), self.args.per_device_train_batch_size
        with (
            reference_model(unwrapped(self.model)),
            shown("scoring answers before unlearning", " answers", len(examples)) as progress,
        ):
            nll, _ = example_nll(self.model, examples, text_format, size, progress)
        return (-nll).tolist()

    def _length(self, item: dict[str, Any]) -> int:
        """Return the number of tokens in a pair. Padding does not count, because batches are packed."""
        return sum(len(item[column]["input_ids"]) for column in _COLUMNS if item[column])

    # Loss

    def _items(self, batch: Mapping[str, Any]) -> list[int]:
        """Return the number of items that the forget loss of a batch is the mean of, and that of the retain loss."""
        forget = batch["pairs" if self.forget_loss.mean_over == "pairs" else "forget_tokens"]
        return [forget, batch["retain_tokens"]] if self.retain_loss else [forget]

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Any]], device: torch.device) -> list[int]:
        """Return the number of items in all batches of an update, over all processes."""
        return add_columns([self._items(batch) for batch in batch_samples])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: list[int] | None = None,
    ) -> Any:
        """Return γ · forget loss + λ · retain loss of one batch of pairs. The two losses are logged without weights.

        Each loss is scaled such that its mean over the batches of an update, on all processes, is the mean over all
        tokens (or pairs) of the update, however these are divided into batches.
        """
        forget, retain = self._outputs(model, inputs)
        losses = {"forget_loss": self.forget_loss(forget, **self.args.loss_settings)}
        if self.retain_loss:
            losses["retain_loss"] = self.retain_loss(retain)
        items = self._items(inputs)
        progress = self.forget_loss.progress(forget)
        of_forget = len(progress)  # progress is measured on the items of the forget loss
        of_update = num_items_in_batch and [*num_items_in_batch, *num_items_in_batch[:1] * of_forget]
        self._check_and_log({**losses, **progress}, [*items, *items[:1] * of_forget], of_update)
        if num_items_in_batch is not None:
            # Trainer divides by the batches of an update, and gradients are averaged over processes. This undoes both.
            batches = self.current_gradient_accumulation_steps * self.args.world_size
            shares = [batches * own / whole for own, whole in zip(items, num_items_in_batch, strict=True)]
            losses = {name: loss * part for (name, loss), part in zip(losses.items(), shares, strict=True)}
        weighted = self.args.forget_weight * losses["forget_loss"]
        total = weighted + self.retain_weight * losses.get("retain_loss", 0.0)
        return (total, losses) if return_outputs else total

    def _outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Outputs, Outputs]:
        """Return the model's outputs for the forget and the retain rows, with the references that the losses need."""
        split, rows = inputs["forget_examples"], len(inputs["labels"])
        out = self._call(self.forget_loss.forward, model, inputs)
        forget, retain = out.rows(0, split), out.rows(split, rows)
        if "lesson" in inputs:
            forget = replace(forget, lesson=Lesson(**inputs["lesson"]))
        if "ref_logp" in inputs:
            forget = replace(forget, ref_logp=inputs["ref_logp"])
        of_forget = self.forget_loss.needs_reference_pass
        of_retain = self.retain_loss is not None and self.retain_loss.needs_reference_pass
        if of_forget or of_retain:  # a single pass for both
            start, stop = 0 if of_forget else split, rows if of_retain else split
            part = {name: inputs[name][start:stop] for name in ("input_ids", "attention_mask", "labels")}
            with reference_model(unwrapped(model)):
                reference = self._call(self.forget_loss.forward, model, part)
            forget = forget.with_reference(reference.rows(0, split)) if of_forget else forget
            retain = retain.with_reference(reference.rows(split - start, rows - start)) if of_retain else retain
        return forget, retain

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call one of the forget loss's functions with the loss settings that it accepts."""
        return function(*args, **own_settings(function, self.args.loss_settings))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run one training step. If the base is sharded, average the adapter's gradients over the processes."""
        loss = super().training_step(*args, **kwargs)
        if self.sharded and self.accelerator.sync_gradients:
            parameters = trainable(unwrapped(self.model)).values()
            gradients = [p.grad for p in parameters if p.grad is not None]
            add_up(gradients)
            for gradient in gradients:
                gradient.div_(self.args.world_size)
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Create the schedule of the learning rate: that of `StopWhenTaught` if it is used, else the configured one."""
        if self.taught is None:
            return super().create_scheduler(num_training_steps, optimizer)
        factor = self.taught.factor
        # A plain function, because LambdaLR would save the attributes of any other callable in its state.
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: factor(step))
        return self.lr_scheduler

    def _update_retain_weight(self) -> None:
        """Update λ after an optimiser step from the mean retain loss of its batches."""
        total, items = (sum(column) for column in zip(*self._step_retain, strict=True))
        update = self.forget_loss.update_weight
        assert update is not None
        own = own_settings(update, {**self.args.loss_settings, "epoch": self.state.epoch})
        self.retain_weight = update(self.retain_weight, total / items, **own)
        self._step_retain = []

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the current model, and log and return the evaluator's numbers, with names prefixed by `eval_`."""
        assert self.evaluator is not None
        measured = self.evaluator(self.accelerator.unwrap_model(self.model))
        found = {f"eval_{name}": float(value) for name, value in measured.items()}
        self.log(found)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    # Divergence and logging

    def _check_and_log(self, losses: Mapping[str, Tensor], items: list[int], items_of_update: list[int] | None) -> None:
        """Stop training if a loss has diverged. Otherwise add the losses to the log and keep a copy of the adapter."""
        totals = self._totals(losses, items)
        reason = self._divergence({name: total / count for name, (total, count) in totals.items()})
        if reason:
            self._stop(reason)
        if items_of_update is not None:
            self._add_to_log(totals, items_of_update)
        if self.model.training:
            self._remember_adapter()

    def _totals(self, losses: Mapping[str, Tensor], items: list[int]) -> dict[str, tuple[float, float]]:
        """Return {loss: (sum over the items of all processes, number of these items)}.

        All processes must use the same means. If each used those of its own batch, one process could stop alone while
        the others wait forever for its gradients, and λ of a dual loss would differ between processes.
        """
        own = torch.stack(list(losses.values())).detach().tolist()  # one transfer from the device for all losses
        columns = add_columns([[*items, *(value * count for value, count in zip(own, items, strict=True))]])
        counts, sums = columns[: len(own)], columns[len(own) :]
        return dict(zip(losses, zip(sums, counts, strict=True), strict=True))

    def _divergence(self, means: Mapping[str, float]) -> str | None:
        """Return the reason why training has diverged, or None.

        Unless `max_retain_loss` is set, a retain loss in nats may exceed its value for the first batch by at most
        ln(vocabulary), the NLL of a uniform guess. A model with a higher retain loss has nothing left to retain.
        """
        for name, value in means.items():
            if not math.isfinite(value):
                return f"the {name} is {value}"
        retain_loss = means.get("retain_loss", 0.0)
        if self._retain_limit is None:
            in_nats = self.retain_loss is None or self.retain_loss.nats
            vocabulary = causal_lm(self.model).config.get_text_config().vocab_size
            cost_of_guessing = math.log(vocabulary) if in_nats else math.inf
            self._retain_limit = retain_loss + cost_of_guessing
        if retain_loss > self._retain_limit:
            return f"the retain_loss is {retain_loss:.3g}, above its limit {self._retain_limit:.3g}"
        return None

    def _add_to_log(self, totals: Mapping[str, tuple[float, float]], items_of_update: list[int]) -> None:
        """Add the batch's share of each loss to the sums for the next log entry."""
        for (name, (total, _)), count in zip(totals.items(), items_of_update, strict=True):
            self._logged_sums[name] = self._logged_sums.get(name, 0.0) + total / count
            self.update_means[name] = self.update_means.get(name, 0.0) + total / count
        self._logged_updates += 1 / self.passes
        if self.forget_loss.update_weight:
            self._step_retain.append(totals["retain_loss"])

    def _remember_adapter(self) -> None:
        """Copy the adapter once per optimiser step, so that `_stop` can restore the last good one."""
        if self._good_adapter is None or self._good_adapter[0] != self.state.global_step:
            self._good_adapter = (self.state.global_step, snapshot(unwrapped(self.model)))

    def _stop(self, reason: str) -> NoReturn:
        """Restore the last good adapter, save it, and raise `DivergenceError`."""
        model = unwrapped(self.model)
        step, good = self._good_adapter or (0, {})
        restore(model, good)
        folder = Path(self.args.output_dir) / "last-good-adapter"
        if self.args.should_save:
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_adapter(model, folder)
        raise DivergenceError(
            f"training stopped at step {self.state.global_step}: {reason}. The adapter of step {step} was restored and "
            f"saved as {folder}. Fix: lower learning_rate (now {self.args.learning_rate:g}), raise retain_weight (now "
            f"{self.args.retain_weight:g}), train for fewer steps, or raise max_retain_loss."
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean forget and retain loss since the last log entry, and λ if it is not constant."""
        if "loss" in logs and self._logged_updates:
            logs = {**logs, **{name: value / self._logged_updates for name, value in self._logged_sums.items()}}
            if self.forget_loss.update_weight:
                logs["retain_weight"] = self.retain_weight
            self._logged_sums, self._logged_updates = {}, 0.0
        super().log(logs, *args, **kwargs)

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter(unwrapped(self.model), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_adapter(unwrapped(self.model), Path(resume_from_checkpoint))

    def _progress(self) -> dict[str, Any]:
        return {**super()._progress(), **{name: getattr(self, name) for name in _PROGRESS}}

    def _restore_progress(self) -> None:
        for name, value in (self._resumed or {}).items():
            if name in _PROGRESS:
                setattr(self, name, value)
        super()._restore_progress()


class _AfterStep(TrainerCallback):
    """Call a function after each optimiser step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.function()
