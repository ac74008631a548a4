"""The trainer inside open-unlearning, against stubs with its signatures."""

import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from helpers.models import make_tokenizer
from unlora import InputError
from unlora.data import TextFormat, encode_records
from unlora.data.padding import pad_batch, padding_id
from unlora.training.open_unlearning import unlora_trainer


class FinetuneTrainer(Trainer):
    """As `trainer.base.FinetuneTrainer` there: evaluators and template arguments beside transformers' own."""

    def __init__(self, evaluators=None, template_args=None, *args, **kwargs):
        self.evaluators, self.template_args = evaluators, template_args
        super().__init__(*args, **kwargs)


class UnlearnTrainer(FinetuneTrainer):
    """As `trainer.unlearn.base.UnlearnTrainer` there."""


class ForgetRetainDataset(torch.utils.data.Dataset):
    """As `data.unlearn.ForgetRetainDataset` there: pairs of tensors."""

    def __init__(self, forget, retain):
        self.forget, self.retain = forget, retain

    def __len__(self):
        return len(self.forget)

    def __getitem__(self, place):
        pair = {"forget": self.forget[place], "retain": self.retain[place % len(self.retain)]}
        return {name: {key: torch.tensor(row[key]) for key in ("input_ids", "labels")} for name, row in pair.items()}


def load_trainer(trainer_cls, model, tokenizer, folder, method_args, name="processing_class"):
    """As `trainer.load_trainer` there. Its older versions pass the tokenizer by another name."""
    rows = [[{"question": f"{kind} {i}?", "answer": f"Ada {i} does."} for i in range(3)] for kind in ("Cat", "Dog")]
    forget, retain = (encode_records(part, TextFormat(tokenizer)) for part in rows)

    def collate(pairs):
        return {
            name: pad_batch([{k: v.tolist() for k, v in pair[name].items()} for pair in pairs], padding_id(tokenizer))
            for name in ("forget", "retain")
        }

    return trainer_cls(
        model=model,
        train_dataset=ForgetRetainDataset(forget, retain),
        eval_dataset=None,
        **{name: tokenizer},
        data_collator=collate,
        args=TrainingArguments(
            folder,
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            remove_unused_columns=False,
            save_strategy="no",
        ),
        evaluators={"tofu": "evaluator"},
        template_args={},
        **method_args,
    )


@pytest.mark.parametrize("loss", ["ihl", "npo", "kl", "rmu"])
def test_it_trains_the_adapter_and_saves_a_model_that_their_evaluation_loads(tiny_model, tmp_path, loss):
    tokenizer, settings = make_tokenizer(), {"layer": 1} if loss == "rmu" else {}
    args = {"init": "pissa", "loss": loss, "retain_weight": 0.5, "r": 2, "loss_kwargs": settings}
    trainer = load_trainer(unlora_trainer(UnlearnTrainer), tiny_model("llama"), tokenizer, tmp_path / "out", args)
    assert trainer.evaluators == {"tofu": "evaluator"}
    parameters = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in parameters.items()}
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert all(".unlearn." in name for name in parameters)
    assert any(not torch.equal(value, before[name]) for name, value in parameters.items())
    ids = torch.tensor([tokenizer("Cat 1?")["input_ids"]])
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "saved")
    trainer.model.eval()
    with torch.no_grad():
        assert (loaded(ids).logits - trainer.model(ids).logits).abs().max() < 1e-4
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_the_loss_is_the_sum_that_the_config_asks_for(tiny_model, tmp_path):
    args = {"init": "vila", "loss": "gd", "forget_weight": 0.5, "retain_weight": 0.25}
    tokenizer, theirs = make_tokenizer(), unlora_trainer(UnlearnTrainer)
    trainer = load_trainer(theirs, tiny_model("llama"), tokenizer, tmp_path, args, name="tokenizer")
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
        load_trainer(unlora_trainer(), tiny_model("llama"), make_tokenizer(), tmp_path, {"loss": loss})
