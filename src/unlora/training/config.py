"""`UnlearnConfig`: the settings of `UnlearnTrainer` and the adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from transformers import TrainingArguments

from unlora.adapter.targets import is_everything
from unlora.common.errors import Problem, raise_if
from unlora.losses.table import LOSSES, check_losses
from unlora.settings.training import DISTILLING, PUSHING, UnlearnSettings
from unlora.training.arguments import SafeArguments


@dataclass
class UnlearnConfig(UnlearnSettings, SafeArguments):
    """Adapter, losses and training settings: every field of `transformers.TrainingArguments`, and `UnlearnSettings`.

    The names of adapter settings are those of `peft.LoraConfig`. The defaults of losses without a teacher follow the
    paper (rank 8, alpha 16, weight decay 0.01, 5 epochs, effective batch size 32).

    Raises:
        InputError: unknown losses or loss settings, or invalid values. It lists all of them.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "loss_kwargs"]

    def __post_init__(self) -> None:
        self.learning_rate_is_default = self.learning_rate is None
        for name, value in (DISTILLING if self.has_teacher else PUSHING).items():
            if getattr(self, name, "") is None:
                setattr(self, name, value)
        super().__post_init__()
        self.loss_kwargs = self.loss_kwargs or {}
        if is_everything(self.target_modules):
            self.target_modules = None
        if self.until_taught is None:
            given = self.max_steps > 0 or self.num_train_epochs != type(self).num_train_epochs
            self.until_taught = self.has_teacher and not given
        raise_if(self.problems())

    def problems(self) -> list[Problem]:
        """Return the problems of the settings alone. `model_problems` checks them for a model."""
        if not isinstance(self.loss_kwargs, dict):
            return [Problem("loss_kwargs", self.loss_kwargs, "not a JSON object", "write it as '{\"beta\": 0.1}'")]
        return [
            *check_losses(self.loss, self.retain_loss, self.loss_kwargs),
            *super().problems(),
            *self.own_problems(),
            *self._teacher_problems(),
            *self._smoothing_problems(),
        ]

    def _smoothing_problems(self) -> list[Problem]:
        if not self.label_smoothing_factor:
            return []
        reason = "the losses of unlearning do not smooth labels"
        return [Problem("label_smoothing_factor", self.label_smoothing_factor, reason, "remove it")]

    def _teacher_problems(self) -> list[Problem]:
        if not self.until_taught or self.has_teacher or self.loss not in LOSSES:
            return []
        fix = "remove it, or use --loss distil"
        return [Problem("until_taught", True, f"{self.loss!r} has no teacher to agree with", fix)]

    @property
    def has_teacher(self) -> bool:
        """Whether the forget loss distils a teacher."""
        return self.loss in LOSSES and LOSSES[self.loss].needs_teacher

    @property
    def chosen_retain_loss(self) -> str:
        """The name of the retain loss: the user's choice, or the default of the forget loss."""
        return self.retain_loss or LOSSES[self.loss].retain

    @property
    def scaling(self) -> float:
        """The scaling s of the adapter's weight change s·B·A."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def pairing_seed(self) -> int:
        """The seed of the order of the data."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def loss_settings(self) -> dict[str, Any]:
        """All settings of the forget loss: the user's values, and defaults for the rest."""
        assert isinstance(self.loss_kwargs, dict)
        return {**LOSSES[self.loss].settings, **self.loss_kwargs}

    def model_problems(self, model: nn.Module) -> list[Problem]:
        """Return the problems of the forget loss's settings for this model."""
        return LOSSES[self.loss].model_problems(model, self.loss_settings)
