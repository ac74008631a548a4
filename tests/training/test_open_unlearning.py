"""The trainer for open-unlearning, tested with stubs that have the signatures of open-unlearning's own classes."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from helpers.models import make_tokenizer
from unlora import InputError
from unlora.data import TextFormat, encode_records
from unlora.data.padding import pad_batch, padding_id
from unlora.training.open_unlearning import unlora_trainer


class FinetuneTrainer(Trainer):
    """A stub of `trainer.base.FinetuneTrainer`, which takes evaluators and template arguments as well."""

    def __init__(self, evaluators=None, template_args=None, *args, **kwargs):
        self.evaluators, self.template_args = evaluators, template_args
        super().__init__(*args, **kwargs)


class UnlearnTrainer(FinetuneTrainer):
    """A stub of `trainer.unlearn.base.UnlearnTrainer`."""


class ForgetRetainDataset(torch.utils.data.Dataset):
    """A stub of `data.unlearn.ForgetRetainDataset`: pairs of a forget and a retain example, as tensors."""

    def __init__(self, forget, retain):
        self.forget, self.retain = forget, retain

    def __len__(self):
        return len(self.forget)

    def __getitem__(self, place):
        pair = {"forget": self.forget[place], "retain": self.retain[place % len(self.retain)]}
        return {name: {key: torch.tensor(row[key]) for key in ("input_ids", "labels")} for name, row in pair.items()}


def load_trainer(config, model, tokenizer, trainer_cls, folder, name="tokenizer"):
    """Create a trainer as `trainer.load_trainer` does. Its versions pass the tokenizer under different names."""
    registry = {trainer_cls.__name__: trainer_cls}  # like `_register_trainer`
    rows = [[{"question": f"{kind} {i}?", "answer": f"Ada {i} does."} for i in range(3)] for kind in ("Cat", "Dog")]
    forget, retain = (encode_records(part, TextFormat(tokenizer)) for part in rows)

    def collate(pairs):
        return {
            name: pad_batch([{k: v.tolist() for k, v in pair[name].items()} for pair in pairs], padding_id(tokenizer))
            for name in ("forget", "retain")
        }

    return registry[config["handler"]](
        model=model,
        train_dataset=ForgetRetainDataset(forget, retain),
        eval_dataset=None,
        **{name: tokenizer},
        data_collator=collate,
        args=TrainingArguments(
            **{
                "output_dir": folder,
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "gradient_checkpointing": True,  # as in open-unlearning's configs/trainer/finetune.yaml
                "remove_unused_columns": False,
                "save_strategy": "no",
                "report_to": [],
                "use_cpu": True,
                **config["args"],
            }
        ),
        evaluators={"tofu": "evaluator"},
        template_args={},
        **config["method_args"],
    )


def loaded(model, tokenizer, folder, method_args, base=UnlearnTrainer, **name):
    """Return the trainer for a config with these `method_args`."""
    config = {"handler": "Unlora", "args": {"learning_rate": 1e-2}, "method_args": method_args}
    return load_trainer(config, model, tokenizer, unlora_trainer(base), folder, **name)


def test_the_config_in_the_documentation_trains(tiny_model, tmp_path):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "open-unlearning.md"
    [text] = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    config = yaml.safe_load(text)
    config["args"]["learning_rate"] = float(config["args"]["learning_rate"])  # PyYAML, unlike Hydra, reads it as text
    trainer = load_trainer(config, tiny_model("llama"), make_tokenizer(), unlora_trainer(UnlearnTrainer), tmp_path)
    assert trainer.train().global_step == 2
    assert config["method_args"].keys() <= inspect.signature(type(trainer)).parameters.keys()


@pytest.mark.parametrize("loss", ["ihl", "npo", "kl", "rmu"])
def test_it_trains_the_adapter_and_saves_a_model_that_their_evaluation_loads(tiny_model, tmp_path, loss):
    tokenizer, settings = make_tokenizer(), {"layer": 1} if loss == "rmu" else {}
    args = {"init": "pissa", "loss": loss, "retain_weight": 0.5, "r": 2, "loss_kwargs": settings}
    trainer = loaded(tiny_model("llama"), tokenizer, tmp_path / "out", args, name="processing_class")
    assert trainer.evaluators == {"tofu": "evaluator"}
    parameters = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in parameters.items()}
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert all(".unlearn." in name for name in parameters)
    assert any(not torch.equal(value, before[name]) for name, value in parameters.items())
    ids = torch.tensor([tokenizer("Cat 1?")["input_ids"]])
    saved = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "saved")
    trainer.model.eval()
    with torch.no_grad():
        assert (saved(ids).logits - trainer.model(ids).logits).abs().max() < 1e-4
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_the_loss_is_the_sum_that_the_config_asks_for(tiny_model, tmp_path):
    args = {"init": "vila", "loss": "gd", "forget_weight": 0.5, "retain_weight": 0.25}
    tokenizer = make_tokenizer()
    trainer = loaded(tiny_model("llama"), tokenizer, tmp_path, args)
    assert trainer.processing_class is tokenizer
    batch = next(iter(trainer.get_train_dataloader()))
    loss, parts = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    nll = trainer.model(**{key: batch["retain"][key] for key in ("input_ids", "attention_mask", "labels")}).loss
    assert parts["retain_loss"].item() == pytest.approx(nll.item(), rel=1e-4)
    assert loss.item() == pytest.approx((0.5 * parts["forget_loss"] + 0.25 * parts["retain_loss"]).item())
    assert parts["forget_loss"] < 0


@pytest.mark.parametrize(("loss", "message"), [("ilh", "did you mean 'ihl'"), ("dpo", "use `unlora unlearn`")])
def test_a_loss_that_it_does_not_offer_is_refused(tiny_model, tmp_path, loss, message):
    with pytest.raises(InputError, match=message):
        loaded(tiny_model("llama"), make_tokenizer(), tmp_path, {"loss": loss}, base=Trainer)


def test_pairs_without_a_retain_example_are_refused():
    pairs = [{"forget": {"input_ids": torch.tensor([1]), "labels": torch.tensor([1])}}]
    with pytest.raises(InputError, match=r"data\.retain"):
        unlora_trainer()(train_dataset=pairs)
