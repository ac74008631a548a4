"""What a finished run is exported as."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlora.common.errors import Problem
from unlora.settings.checks import below, missing


@dataclass
class ExportConfig:
    """What is made of a run, and where it goes."""

    output_dir: str = field(default="", metadata={"help": "Where it is written: a new folder. Required."})
    merge: bool = field(
        default=False,
        metadata={"help": "Export the whole model with the adapter merged into its weights."},
    )
    max_rank: int | None = field(
        default=None, metadata={"help": "Most ranks of the adapter, by truncated SVD. As in the run if not given."}
    )
    card: bool = field(default=True, metadata={"help": "Write a model card (README.md) with the run's metrics."})
    base_model: str | None = field(
        default=None,
        metadata={"help": "The base model's name on the Hub, for others to find it. Needed if it is a local folder."},
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Upload the folder to this repository on the Hub (owner/name)."}
    )
    private: bool = field(default=True, metadata={"help": "Whether that repository is private."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = [
            *missing(self, ("output_dir",), fix="name a new folder"),
            *below(self, {"max_rank": 1}, "an adapter has at least rank 1"),
        ]
        if self.max_rank is not None and self.merge:
            problems.append(Problem("max_rank", self.max_rank, "a merged model has no adapter", "remove it"))
        return problems
