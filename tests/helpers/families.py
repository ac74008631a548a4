"""Tiny random models of many families, and how far unlora supports each: the table of docs/models.md.

`python tests/helpers/families.py` checks every entry of the table and then prints it. It takes half a minute.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from unlora.adapter import attach_adapters, check_adapter_settings, detach_adapters, export_adapter
from unlora.adapter.targets import left_out, target_shapes
from unlora.data import pad_batch
from unlora.importance import attach_probe, gradient_moments
from unlora.models.forward import labelled_tokens
from unlora.models.packing import packing
from unlora.models.skeleton import family_problems

_VOCABULARY = 99
_COMMON: dict[str, Any] = {
    **{"vocab_size": _VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.15},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
}
_HEAD = {"head_dim": 8}
_LINEAR_ATTENTION: dict[str, Any] = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ROUTED: dict[str, Any] = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1},
    **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
# {family: (model type in transformers, settings of a tiny model)}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama, 1 to 3.3": ("llama", {}),
    "Mistral": ("mistral", {}),
    "Ministral 3": ("ministral3", {}),
    "Qwen2, Qwen2.5": ("qwen2", {}),
    "Qwen3": ("qwen3", _HEAD),
    "Qwen3.5": ("qwen3_5_text", _HEAD | _LINEAR_ATTENTION),
    "Gemma": ("gemma", _HEAD),
    "Gemma 2": ("gemma2", _HEAD),
    "Gemma 3": ("gemma3_text", _HEAD),
    "Gemma 3n": (
        "gemma3n_text",
        {
            **_HEAD,
            **{"vocab_size_per_layer_input": _VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 8},
            **{"num_hidden_layers": 2, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 2},
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "Gemma 4": (
        "gemma4_text",
        {
            **_HEAD,
            **{"vocab_size_per_layer_input": _VOCABULARY, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "Phi-1, 1.5, 2": ("phi", {}),
    "Phi-3, Phi-4": ("phi3", {}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {}),
    "SmolLM3": ("smollm3", {}),
    "Granite": ("granite", {}),
    "Command R": ("cohere", {}),
    "Command A": ("cohere2", _HEAD),
    "GLM-4-9B": ("glm", _HEAD),
    "GLM-4-0414": ("glm4", _HEAD),
    "EXAONE 4": ("exaone4", {}),
    "StableLM": ("stablelm", {}),
    "StarCoder2": ("starcoder2", {}),
    "Seed-OSS": ("seed_oss", _HEAD),
    "Apertus": ("apertus", {}),
    "Arcee": ("arcee", {}),
    "ERNIE 4.5": ("ernie4_5", _HEAD),
    "Nemotron": ("nemotron", {}),
    "Hunyuan": ("hunyuan_v1_dense", _HEAD),
    "Falcon": ("falcon", {}),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "BLOOM": ("bloom", {}),
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "GPT-Neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}),
    "GPT-NeoX, Pythia": ("gpt_neox", {}),
    "GPT-J": ("gptj", {"rotary_dim": 4, "n_positions": 64}),
    "GPT-BigCode": ("gpt_bigcode", {}),
    "Mixtral": ("mixtral", {"num_local_experts": 4}),
    "Qwen2-MoE": ("qwen2_moe", _EXPERTS | {"shared_expert_intermediate_size": 24}),
    "Qwen3-MoE": ("qwen3_moe", _EXPERTS | _HEAD),
    "Qwen3-Next": ("qwen3_next", _EXPERTS | _HEAD | _LINEAR_ATTENTION | {"shared_expert_intermediate_size": 24}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, **_HEAD}),
    "OLMoE": ("olmoe", _EXPERTS),
    "DeepSeek-V2": ("deepseek_v2", _ROUTED | _LATENT | {"num_key_value_heads": 4}),
    "DeepSeek-V3, R1": ("deepseek_v3", _ROUTED | _LATENT | {"num_key_value_heads": 4}),
    "GLM-4.5": ("glm4_moe", _ROUTED | _HEAD),
    "Llama 4": (
        "llama4_text",
        {"num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 64, **_HEAD},
    ),
    "Phi-3.5-MoE": ("phimoe", {"num_local_experts": 4}),
    "Granite MoE": ("granitemoe", {"num_local_experts": 4}),
    "ERNIE 4.5 MoE": ("ernie4_5_moe", {"moe_num_experts": 4, "moe_intermediate_size": 24, "moe_k": 2}),
    "MiniMax-M2": ("minimax_m2", {"num_local_experts": 4, "num_experts_per_tok": 2, **_HEAD}),
    "Mamba": ("mamba", {"state_size": 4}),
    "Mamba-2": ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "Falcon Mamba": ("falcon_mamba", {"state_size": 4}),
    "Falcon-H1": ("falcon_h1", {"mamba_d_ssm": 64, **_MAMBA_2, **_HEAD}),
    "Bamba": ("bamba", _MAMBA_2 | {"attn_layer_indices": [1]}),
    "Granite 4": (
        "granitemoehybrid",
        _MAMBA_2 | {"num_local_experts": 4, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    ),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "RWKV-4": ("rwkv", {"attention_hidden_size": 32}),
}
_SUPPORT = {True: "full", False: "partly"}
# Rows of different lengths. The first three tokens of each are the prompt.
_EXAMPLES = [
    {"input_ids": ids, "labels": [-100] * 3 + ids[3:]}
    for ids in ([5, 80, 23, 9, 41, 7, 66, 90, 12], [31, 8, 77, 50, 2], [60, 61, 19, 4, 88, 37, 11])
]
_CONFIG = LoraConfig(r=2, lora_alpha=4)


def tiny(name: str, **changes: Any) -> PreTrainedModel:
    """Return a seeded random model of a family, in evaluation mode."""
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_COMMON, **settings, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if not parameter.any():  # weights that are initialised to zero would hide the effect of others
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@dataclass(frozen=True)
class Support:
    """A row of the table.

    Args:
        name: name of the family.
        kind: model type in transformers.
        support: "full", "partly" or "refused".
        rest: the weights that get no adapter, or the reason why the model is refused.
    """

    name: str
    kind: str
    support: str
    rest: str

    def __str__(self) -> str:
        return f"| {self.name} | `{self.kind}` | {self.support} | {self.rest} |\n"


def support(name: str, model: PreTrainedModel) -> Support:
    """Return how far unlora supports a model."""
    kind = FAMILIES[name][0]
    problems = [*family_problems(model), *check_adapter_settings(model, _CONFIG)]
    if problems:
        return Support(name, kind, "refused", "; ".join(problem.reason for problem in problems))
    rest = left_out(model)
    names = ", ".join(f"`{part}`" for part in rest.names) if rest else ""
    return Support(name, kind, _SUPPORT[rest is None], names)


def faults(model: PreTrainedModel) -> Iterator[str]:
    """Yield the faults of a supported model. If the table is right, there are none."""
    alone = torch.cat([_own_logits(model, example["input_ids"]) for example in _EXAMPLES])
    batch = pad_batch(_EXAMPLES, 0)
    for side in ("left", "right"):
        if not _close(_logits(model, pad_batch(_EXAMPLES, 0, side)), alone):
            yield f"padding on the {side} changes predictions"
    with packing(model):
        if not _close(_logits(model, batch), alone):
            yield "packing changes predictions"
    if not torch.equal(_continued(model, _EXAMPLES), torch.cat([_continued(model, [one]) for one in _EXAMPLES])):
        yield "generation depends on the batch"
    yield from _measuring_faults(model)
    importance = {name: torch.linspace(0.1, 1, shape[0]) for name, shape in target_shapes(model, None).items()}
    attached = attach_adapters(model, _CONFIG, importance)
    if not _close(_logits(attached, batch), alone):
        yield "the model does not start at the original"
    labelled_tokens(attached, batch).logp.mean().backward()
    trainable = {name: factor for name, factor in attached.named_parameters() if factor.requires_grad}
    yield from (f"{name} gets no gradient" for name, factor in trainable.items() if not factor.grad.any())
    for factor in trainable.values():
        factor.data += 0.05 * torch.randn_like(factor)
    yield from _export_faults(attached, batch, alone)


def _measuring_faults(model: PreTrainedModel) -> Iterator[str]:
    """Yield the factors whose gradient moments over a batch differ from those of its examples one by one."""
    probe = attach_probe(model, _CONFIG)
    together, apart = (
        gradient_moments(probe, batches)
        for batches in ([pad_batch(_EXAMPLES, 0)], [pad_batch([example], 0) for example in _EXAMPLES])
    )
    detach_adapters(probe)
    for name, square in together.second.items():
        scale = apart.second[name].max()
        if not square.any() or not _close(square / scale, apart.second[name] / scale):
            yield f"the gradient of {name} is wrong"


def _export_faults(attached: PeftModel, batch: dict[str, torch.Tensor], original: torch.Tensor) -> Iterator[str]:
    """Yield the faults of the trained adapter after it is exported and loaded with PEFT."""
    trained = _logits(attached, batch)
    if _close(trained, original):
        yield "the adapter has no effect"
    with tempfile.TemporaryDirectory() as folder:
        export_adapter(attached, Path(folder) / "adapter")
        loaded = PeftModel.from_pretrained(detach_adapters(attached), str(Path(folder) / "adapter"))
        if not _close(_logits(loaded, batch), trained):
            yield "the exported adapter gives other predictions"


@torch.no_grad()
def _logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return labelled_tokens(model, batch).logits


@torch.no_grad()
def _own_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, 2:-1]


def _continued(model: PreTrainedModel, examples: list[dict[str, list[int]]]) -> torch.Tensor:
    batch = pad_batch(examples, 0, "left")
    settings = GenerationConfig(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return model.generate(**inputs, generation_config=settings)[:, -3:]


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def table() -> str:
    """Return the table in Markdown."""
    head = "| family | model type | support | left out |\n| --- | --- | --- | --- |\n"
    return head + "".join(str(support(name, tiny(name))) for name in FAMILIES)


if __name__ == "__main__":
    for family in FAMILIES:
        found = tiny(family)
        if support(family, found).support != "refused":
            assert not (wrong := list(faults(found))), f"{family}: {wrong}"
    print(table(), end="")
