"""The loss of fine-tuning."""

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import LabelSmoother

from helpers.trainer import RETAIN
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.training.finetune import FinetuneConfig, finetune


def test_smoothed_labels_give_the_step_of_transformers_over_all_batches_of_the_update(tiny_model, tokenizer, tmp_path):
    examples = encode_records(RETAIN[:3], TextFormat(tokenizer))
    expected = tiny_model("llama")
    batch = pad_batch(examples, 0)
    loss = LabelSmoother(0.2)(expected(batch["input_ids"], batch["attention_mask"]), batch["labels"], shift_labels=True)
    loss.backward()
    args = FinetuneConfig(
        str(tmp_path / "tuned"),
        label_smoothing_factor=0.2,
        optim="sgd",
        learning_rate=1.0,
        warmup_steps=0,
        max_grad_norm=0,
        weight_decay=0,
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="no",
        use_cpu=True,
        report_to=[],
    )
    found = load_file(finetune(tiny_model("llama"), tokenizer, examples, args) / "model.safetensors")
    weights = dict(expected.named_parameters())
    assert found
    for name, value in found.items():
        torch.testing.assert_close(value, weights[name].detach() - weights[name].grad, rtol=1e-4, atol=1e-5)
