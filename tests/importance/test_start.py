"""`start_adapter`, and training of the adapter that it returns with transformers and TRL."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from helpers.memory import memory_for, told
from helpers.models import make_tokenizer
from unlora import InputError, export_adapter, start_adapter
from unlora.data import TextFormat, encode_records
from unlora.data.padding import pad_batch, padding_id

FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i} does."} for i in range(3)]
RETAIN = [{"question": f"Who keeps dog {i}?", "answer": f"Bob {i} does."} for i in range(3)]


@pytest.fixture
def started(tiny_model):
    model = tiny_model("llama")
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer("Who keeps cat 1?")["input_ids"]])
    with torch.no_grad():
        before = model(ids).logits
    model = start_adapter(model, tokenizer, FORGET, RETAIN)
    with torch.no_grad():
        assert (model(ids).logits - before).abs().max() < 1e-4  # before training, the function is the original's
    return model, tokenizer, ids


def trainable(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def check_trained(started, before, folder, base):
    """Check that only "unlearn" was trained, and that the exported adapter gives the logits of the trained model."""
    model, _, ids = started
    assert all(".unlearn." in name for name in before)
    assert any(not torch.equal(value, before[name]) for name, value in trainable(model).items())
    model.eval()
    loaded = PeftModel.from_pretrained(base, export_adapter(model, folder))
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids).logits).abs().max() < 1e-4


def test_transformers_trains_the_started_adapter(started, tiny_model, tmp_path):
    model, tokenizer, _ = started
    before = trainable(model)
    examples = encode_records(FORGET, TextFormat(tokenizer))
    args = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True, report_to=[]
    )
    Trainer(model, args, lambda rows: dict(pad_batch(rows, padding_id(tokenizer))), examples).train()
    check_trained(started, before, tmp_path / "adapter", tiny_model("llama"))


@pytest.mark.slow
def test_trl_trains_the_started_adapter(started, tiny_model, tmp_path):
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, _ = started
    before = trainable(model)
    rows = Dataset.from_list([{"prompt": row["question"], "completion": row["answer"]} for row in FORGET])
    args = SFTConfig(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
    )
    SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train()
    check_trained(started, before, tmp_path / "adapter", tiny_model("llama"))


def test_a_start_that_is_short_of_memory_is_the_same(tiny_model, caplog):
    tokenizer = make_tokenizer()
    expected = trainable(start_adapter(tiny_model("llama"), tokenizer, FORGET, RETAIN))
    with memory_for(40):
        found = trainable(start_adapter(tiny_model("llama"), tokenizer, FORGET, RETAIN))
    assert 1 <= len(told(caplog)) <= 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_an_unknown_start_too_few_rows_and_a_batch_without_rows_are_refused(tiny_model):
    with pytest.raises(InputError, match="did you mean 'vila'"):
        start_adapter(tiny_model("llama"), make_tokenizer(), FORGET, RETAIN, init="villa")
    with pytest.raises(InputError, match="retain='1 rows'"):
        start_adapter(tiny_model("llama"), make_tokenizer(), FORGET, RETAIN[:1])
    with pytest.raises(InputError, match=r"batch_size=0: .*use at least 1"):
        start_adapter(tiny_model("llama"), make_tokenizer(), FORGET, RETAIN, batch_size=0)
