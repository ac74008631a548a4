"""Which model is used, and how it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec

from unlora.common.errors import Problem
from unlora.settings.checks import choice_problems, value_problems
from unlora.settings.setting import setting
from unlora.settings.sharding import sharding_problems

_CHOICES = {"dtype": ("auto", "float32", "bfloat16", "float16"), "bnb_4bit_quant_type": ("nf4", "fp4")}


@dataclass
class ModelConfig:
    """Which model, and how it is loaded."""

    model_name_or_path: str = field(
        metadata={"help": "The model, or a LoRA adapter with its base: a folder, or its name on the Hugging Face Hub."}
    )
    tokenizer_name_or_path: str | None = setting(
        None, "The tokenizer, if the model has none of its own: a folder, or its name on the Hugging Face Hub."
    )
    model_revision: str = setting("main", "Branch, tag or commit on the Hugging Face Hub.")
    dtype: str = setting("auto", "auto (as saved), float32, bfloat16 or float16.")
    attn_implementation: str | None = setting(None, "Attention implementation, as in transformers: sdpa, eager, ...")
    trust_remote_code: bool = setting(
        False, "Run code that comes with the model. Only a flag can allow it: no configuration, and no run."
    )
    load_in_8bit: bool = setting(False, "Quantise the base model's linear layers to 8 bits (needs unlora[quantised]).")
    load_in_4bit: bool = setting(False, "Quantise the base model's linear layers to 4 bits (needs unlora[quantised]).")
    bnb_4bit_quant_type: str = setting("nf4", "4-bit data type: nf4 or fp4.")
    use_bnb_nested_quant: bool = setting(False, "Quantise the 4-bit scales as well.")
    shard_base: str | None = setting(
        None,
        "Shard the frozen base model over the processes of `accelerate launch`: fsdp (PyTorch's FSDP2), or the path of "
        "a DeepSpeed ZeRO-3 configuration (needs unlora[deepspeed]).",
    )
    on: str | None = setting(
        None,
        "Folder of an earlier run, whose settings are reused, except for those that name data. The command measures "
        "its unlearned model, or starts a new request from it: the exported adapter then contains both requests.",
    )

    def problems(self) -> list[Problem]:
        """Check everything that can be checked before anything is loaded."""
        return [
            *value_problems(self),
            *choice_problems(self, _CHOICES),
            *self._code_problems(),
            *self._quantisation_problems(),
            *self._sharding_problems(),
        ]

    def _code_problems(self) -> list[Problem]:
        """Refuse an attention kernel from the Hub, which is code, unless remote code is trusted."""
        if self.trust_remote_code or "/" not in (self.attn_implementation or ""):
            return []
        fix = "add --trust_remote_code if you trust its authors, or use sdpa or eager"
        return [Problem("attn_implementation", self.attn_implementation, "it is code from the Hub", fix)]

    @property
    def quantised(self) -> str | None:
        """The name of the flag that quantises the base model, or None."""
        return next((name for name in ("load_in_8bit", "load_in_4bit") if getattr(self, name)), None)

    def _quantisation_problems(self) -> list[Problem]:
        problems = []
        if self.load_in_8bit and self.load_in_4bit:
            problems.append(Problem("load_in_4bit", True, "load_in_8bit is given too", "use only one of them"))
        if self.quantised and find_spec("bitsandbytes") is None:
            fix = "pip install 'unlora[quantised]'"
            problems.append(Problem(self.quantised, True, "bitsandbytes is not installed", fix))
        return problems

    def _sharding_problems(self) -> list[Problem]:
        if not self.shard_base:
            return []
        problems = sharding_problems(self.shard_base)
        if self.quantised:
            fix = f"remove it or {self.quantised}"
            problems.append(Problem("shard_base", self.shard_base, "quantised weights cannot be sharded", fix))
        if int(os.environ.get("WORLD_SIZE", 1)) < 2:
            fix = "start several processes with `accelerate launch`, or remove it"
            problems.append(Problem("shard_base", self.shard_base, "there is only one process", fix))
        return problems
