import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, BloomConfig, MambaConfig, MistralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from helpers.models import ARCHITECTURES
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.models.forward import hidden_states, labelled_tokens
from unlora.models.memory import enable_checkpointing
from unlora.models.packing import Rows, is_packing, packing

ROWS = [
    {"question": "Where was Ada Lovelace born?", "answer": "London."},
    {"question": "Why?", "answer": "Nobody minds at all, and the gardener of the old house keeps two dogs."},
    {"text": "The quick brown fox jumps."},
]
SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}


@pytest.fixture
def examples(tokenizer):
    return encode_records(ROWS, TextFormat(tokenizer))


def adapted(base):
    torch.manual_seed(1)
    transposed = base.config.model_type == "gpt2"
    config = LoraConfig(r=3, target_modules="all-linear", fan_in_fan_out=transposed, init_lora_weights=False)
    return get_peft_model(base, config).eval()


def outputs(model, batch):
    """Return logits, hidden states and the gradients of all trainable parameters, and the labelled tokens."""
    out = labelled_tokens(model, batch)
    out.logp.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return {"logits": out.logits, "states": hidden_states(model, batch, 1).states, **gradients}, out


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_say_and_teach_what_padded_rows_do(tiny_model, examples, name, side, checkpointing):
    model = adapted(tiny_model(name))
    core = model.get_base_model()
    if checkpointing is not None:
        enable_checkpointing(model, {"use_reentrant": checkpointing})
        model.enable_input_require_grads()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # dropout would differ between the passes
    batch = pad_batch(examples, 0, side)
    padded, before = outputs(model, batch)
    seen = []
    hook = core.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    with packing(core):
        packed, after = outputs(model, batch)
    hook.remove()
    assert set(seen) == {(1, sum(len(example["input_ids"]) for example in examples))}
    assert torch.equal(before.targets, after.targets)
    assert torch.equal(before.example, after.example)
    for key, value in padded.items():
        torch.testing.assert_close(packed[key], value, atol=5e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    assert not is_packing(core)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_hand_the_rows_on_to_their_attention_in_every_layer(tiny_model, examples, name, recorded):
    model = tiny_model(name)
    with packing(model), torch.no_grad():
        labelled_tokens(model, pad_batch(examples, 0))
    lengths = [len(example["input_ids"]) for example in examples]
    assert [(rows.count, rows.longest, len(rows.slots)) for rows in recorded] == [(3, max(lengths), sum(lengths))] * 2


@pytest.fixture
def recorded(monkeypatch):
    """Record the `rows` argument of each call of packed attention, and return the list."""
    calls = []
    attention = AttentionInterface()["unlora_packed"]

    def record(*args, rows=None, **kwargs):
        calls.append(rows)
        return attention(*args, rows=rows, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "unlora_packed", record)
    return calls


def test_a_window_shorter_than_a_row_is_kept(examples):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MistralConfig(**SMALL, sliding_window=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
    ).eval()
    batch = pad_batch(examples, 0)
    with torch.no_grad():
        padded = labelled_tokens(model, batch).logits
        with packing(model):
            packed = labelled_tokens(model, batch).logits
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-4)


def test_attention_of_packed_rows_is_that_of_each_row(tiny_model):
    layer = tiny_model("llama").model.layers[0].self_attn
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 7, 8)
    key, value = key[:, :2], value[:, :2]
    slots, tokens = torch.tensor([0, 1, 2, 4, 5, 6, 7]), torch.tensor([0, 1, 2, 0, 3, 4, 5, 6])
    rows = Rows(2, 4, slots, tokens)  # one row of three tokens and one of four
    whole, _ = AttentionInterface()["unlora_packed"](layer, query, key, value, None, rows=rows, scaling=0.5)
    for part in (slice(0, 3), slice(3, 7)):
        own, _ = sdpa_attention_forward(layer, *(x[:, :, part] for x in (query, key, value)), None, scaling=0.5)
        torch.testing.assert_close(whole[:, part], own)


def test_models_that_mix_tokens_outside_attention_or_take_no_positions_are_not_packed(tiny_model):
    bloom = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=320, hidden_size=32, n_layer=1, n_head=4))
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**SMALL))
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    for model in (bloom, mamba, eager):
        with packing(model):
            assert not is_packing(model)
