"""A request: all settings of an unlearning run, and every check that needs neither model nor data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unlora.common.errors import Problem, raise_if, unknown_name
from unlora.common.files import unwritable_problems
from unlora.data.sources import is_hub_id
from unlora.importance.table import initialiser_problems, unread_settings
from unlora.losses import LOSSES
from unlora.runs.folder import continued_problems, continued_settings, settings_of
from unlora.runs.stages import check_start
from unlora.settings import DataConfig, EvalConfig, ImportanceConfig, ModelConfig, StoppingConfig
from unlora.settings.names import AUTO
from unlora.settings.training import DISTILLING, PUSHING, STARTED_LEARNING_RATE
from unlora.training.arguments import changed_arguments
from unlora.training.config import UnlearnConfig

logger = logging.getLogger(__name__)
# The parts of a `Request`, in its order.
_KINDS: tuple[type[Any], ...] = (ModelConfig, DataConfig, ImportanceConfig, EvalConfig, UnlearnConfig, StoppingConfig)


@dataclass(frozen=True)
class Request:
    """All settings of one unlearning request."""

    model: ModelConfig
    data: DataConfig
    importance: ImportanceConfig
    evaluation: EvalConfig
    args: UnlearnConfig
    stopping: StoppingConfig = field(default_factory=StoppingConfig)

    def __post_init__(self) -> None:
        if self.importance.init == AUTO:
            defaults = DISTILLING if self.args.has_teacher else PUSHING
            object.__setattr__(self, "importance", replace(self.importance, init=str(defaults["init"])))
        plain = self.importance.init == DISTILLING["init"]
        if self.args.has_teacher and self.args.learning_rate_is_default and not plain:
            object.__setattr__(self, "args", replace(self.args, learning_rate=STARTED_LEARNING_RATE))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Request:
        """Return the request for a flat mapping of settings. This is the inverse of `settings`.

        Raises:
            InputError: a name is not a setting, or `UnlearnConfig` refuses its settings.
        """
        known = {name for kind in _KINDS for name in kind.__dataclass_fields__}
        raise_if(unknown_name("settings", name, known) for name in values if name not in known)
        return cls(*(settings_of(kind, values) for kind in _KINDS))

    def check(self) -> None:
        """Raise one `InputError` with every problem that can be seen before anything is loaded."""
        parts = (self.data, self.importance, self.evaluation, self.args, self.stopping)
        raise_if(
            [
                *model_problems(self.model),
                *initialiser_problems(self.importance),
                *(problem for part in parts for problem in part.problems()),
                *self._unread_alternates(),
            ]
        )
        unread = unread_settings(self.importance)
        if unread:  # only a warning, because a grid shares one configuration between several initialisers
            logger.warning("init=%r does not read %s", self.importance.init, ", ".join(unread))
        check_start(Path(self.args.output_dir), self.settings(), self.args.resume_from_checkpoint)

    @property
    def reads_alternates(self) -> bool:
        """Whether the loss teaches the model another answer to each forget question."""
        return "alternate" in LOSSES[self.args.loss].reads

    @property
    def choices(self) -> dict[str, str]:
        """{kind: chosen name}, for everything that a plugin can provide."""
        chosen = {"initialiser": self.importance.init, "loss": self.args.loss, "teacher": self.args.teacher}
        return {**chosen, "retain loss": self.args.chosen_retain_loss}

    def _unread_alternates(self) -> Iterator[Problem]:
        if self.data.alternate_key is not None and not self.reads_alternates:
            readers = " or ".join(name for name, loss in LOSSES.items() if "alternate" in loss.reads)
            reason, fix = f"{self.args.loss!r} does not read alternate answers", f"remove it, or use {readers}"
            yield Problem("alternate_key", self.data.alternate_key, reason, fix)

    def settings(self) -> dict[str, Any]:
        """Return a flat mapping of settings: all of our own, and the training arguments that are not at their defaults.

        `resume_from_checkpoint` is left out, because a resumed run is the same run.
        """
        flat: dict[str, Any] = {}
        for part in (self.model, self.data, self.importance, self.evaluation, self.stopping):
            flat |= asdict(part)
        flat |= {"loss": self.args.loss, **changed_arguments(self.args)}
        # Some training arguments are recorded even at their defaults: those whose defaults depend on the loss, and
        # those that would otherwise be taken over from the earlier run.
        recorded = set() if self.args.has_teacher else {*PUSHING}
        if self.model.on is not None:
            recorded |= {*continued_settings(self.model.on)}
        flat |= {name: value for name, value in self.args.to_dict().items() if name in recorded}
        return {name: value for name, value in flat.items() if name != "resume_from_checkpoint"}


def model_problems(model: ModelConfig) -> list[Problem]:
    """Check the model's settings, the run that it continues from, and the cache if it has to be downloaded."""
    return [*model.problems(), *continued_problems(model), *_cache_problems(model)]


def _cache_problems(model: ModelConfig) -> list[Problem]:
    """Return a problem if the model has to be downloaded, but the cache folder is not writable."""
    from huggingface_hub import constants, try_to_load_from_cache

    name = model.model_name_or_path
    if Path(name).exists() or not is_hub_id(name):
        return []
    if isinstance(try_to_load_from_cache(name, "config.json", revision=model.model_revision), str):
        return []
    fix = "set HF_HOME to a folder that you may write to"
    return unwritable_problems(Path(constants.HF_HUB_CACHE), "model_name_or_path", fix)
