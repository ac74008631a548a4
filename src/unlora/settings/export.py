"""Settings of the export of a finished run."""

from __future__ import annotations

from dataclasses import dataclass

from unlora.common.errors import Problem
from unlora.settings.checks import missing, value_problems
from unlora.settings.setting import setting
from unlora.settings.training import RANK


@dataclass
class ExportConfig:
    """What to export from a run, and where to."""

    output_dir: str = setting("", "New folder for the result. Required.")
    merge: bool = setting(False, "Export the whole model with the adapter merged into its weights.")
    max_rank: int | None = setting(
        None, "Maximum rank of the exported adapter, by truncated SVD. Defaults to the rank in the run."
    )
    space: bool = setting(
        False, "Write a folder for a Hugging Face Space, with the chat page and the adapter, without any data."
    )
    card: bool = setting(True, "Write a model card (README.md) with the run's metrics.")
    base_model: str | None = setting(
        None,
        "Name of the base model on the Hugging Face Hub, so that others find it. Required if it is a local folder.",
    )
    push_to_hub: str | None = setting(
        None, "Upload the folder to this repository (owner/name) on the Hugging Face Hub."
    )
    private: bool = setting(True, "Whether that repository is private.")

    def problems(self) -> list[Problem]:
        """Check everything that can be checked before anything is loaded."""
        problems = [
            *missing(self, ("output_dir",), fix="name a new folder"),
            *value_problems(self, {"max_rank": RANK}),
        ]
        if self.max_rank is not None and self.merge:
            problems.append(Problem("max_rank", self.max_rank, "a merged model has no adapter", "remove it"))
        if self.space and self.merge:
            reason = "the page compares the base model without and with the adapter"
            problems.append(Problem("space", True, reason, "remove --merge"))
        return problems
