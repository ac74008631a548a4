"""Early stopping when the forget set looks unseen: with a tiny Llama that has memorised it, and in a whole request."""

from __future__ import annotations

import json
import logging
import math
import random

import pytest
import torch
import yaml
from transformers import TrainerCallback

from helpers.chat import CHATML
from helpers.models import make_tokenizer
from helpers.runs import flags, write_rows
from helpers.scoring import answer_nll
from helpers.trainer import adapter_state, config, ones
from unlora import DivergenceError, InputError, UnlearnTrainer, attach_adapters
from unlora.cli import main
from unlora.data import TextFormat, encode_records
from unlora.settings import StoppingConfig
from unlora.training.stopping import Comparison, StopWhenUnseen, UnseenTest, holdout_rows, unseen_test

NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon")
FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"{name} does."} for i, name in enumerate(NAMES)]
HOLDOUT = [{"question": f"Who keeps cat {i + 10}?", "answer": row["answer"]} for i, row in enumerate(FORGET)]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The fox {i}."} for i in range(10)]


@pytest.fixture(scope="module")
def learned(tiny_model, tokenizer):
    """Return the state dict of a tiny Llama that has memorised the forget and retain sets and never saw the holdout."""
    from unlora.data import pad_batch
    from unlora.models.forward import labelled_tokens

    model = tiny_model("llama").train()
    batch = pad_batch(encode_records([*FORGET, *RETAIN], TextFormat(tokenizer)), tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        (-labelled_tokens(model, batch).logp.mean()).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture
def trainer_of(learned, tiny_model, tokenizer, tmp_path):
    """Return a factory of trainers of that model, with early stopping unless `every` is None."""

    def make(every=1, folder="run", test=None, **settings):
        base = tiny_model("llama")
        base.load_state_dict(learned)
        defaults = {"loss": "npo", "learning_rate": 3e-3, "num_train_epochs": 12, "per_device_train_batch_size": 5}
        args = config(tmp_path / folder, **{**defaults, **settings})
        text_format = TextFormat(tokenizer)
        forget, retain = (encode_records(rows, text_format) for rows in (FORGET, RETAIN))
        trainer = UnlearnTrainer(attach_adapters(base, args, ones(base)), args, forget, retain, tokenizer)
        if every is not None:
            test = test or UnseenTest(FORGET, HOLDOUT, text_format)
            trainer.add_callback(StopWhenUnseen(trainer, test, every))
        return trainer

    return make


def checks(trainer):
    return [row for row in trainer.state.log_history if "stop_auc" in row]


def test_the_comparison_uses_the_losses_of_answers(tiny_model, tokenizer):
    model, text_format = tiny_model("llama"), TextFormat(tokenizer)
    found = UnseenTest(FORGET, HOLDOUT, text_format, batch_size=3)(model)
    one, other = (
        (sums / tokens).tolist()
        for sums, tokens in (
            answer_nll(model, [(row["question"], row["answer"]) for row in rows], text_format, 8)
            for rows in (FORGET, HOLDOUT)
        )
    )
    pairs = [0.5 if math.isclose(x, y, rel_tol=1e-5) else float(x < y) for x in one for y in other]
    assert found.auc == pytest.approx(sum(pairs) / 100)
    assert found.forget_nll == pytest.approx(sum(one) / 10, rel=1e-5)
    assert found.holdout_nll == pytest.approx(sum(other) / 10, rel=1e-5)


def with_wrong_answers(rows):
    return [{**row, "paraphrased_answer": f"It is {row['answer']}", "perturbed_answer": ["No.", "Me."]} for row in rows]


def test_auto_takes_the_truth_ratio_too_where_every_row_has_wrong_answers(tokenizer):
    text_format = TextFormat(tokenizer)
    forget, holdout = with_wrong_answers(FORGET), with_wrong_answers(HOLDOUT)
    assert UnseenTest(forget, holdout, text_format).statistics == ["nll", "truth_ratio"]
    assert UnseenTest(forget, HOLDOUT, text_format).statistics == ["nll"]
    assert UnseenTest(forget, holdout, text_format, "nll").statistics == ["nll"]
    unlike = [{**row, "perturbed_answer": ["No."]} for row in HOLDOUT]  # relative to the answer, not a paraphrase
    assert UnseenTest(forget, unlike, text_format).statistics == ["nll"]
    for rows in (HOLDOUT, unlike):
        with pytest.raises(InputError, match="stop_statistic='truth_ratio': not every row has perturbed_answer"):
            UnseenTest(forget, rows, text_format, "truth_ratio")


def test_an_answer_that_is_likely_in_itself_does_not_change_the_truth_ratio(tiny_model, tokenizer):
    """Answers that equal their own wrong answers have ratio 1 in both sets, however likely they are."""
    same = [[{**row, "perturbed_answer": [row["answer"]]} for row in rows] for rows in (FORGET, RETAIN)]
    found = UnseenTest(*same, TextFormat(tokenizer), "truth_ratio")(tiny_model("llama"))
    assert found.forget_nll != pytest.approx(found.holdout_nll, rel=0.01)
    assert (found.auc, found.ks_pvalue) == (0.5, 1.0)


def test_two_statistics_give_their_mean_auc_and_smaller_p_value(tiny_model, tokenizer):
    model, sets = tiny_model("llama"), (with_wrong_answers(FORGET), with_wrong_answers(HOLDOUT))
    one, other, both = (UnseenTest(*sets, TextFormat(tokenizer), s)(model) for s in ("nll", "truth_ratio", "auto"))
    assert one.auc != other.auc
    assert both.auc == pytest.approx((one.auc + other.auc) / 2)
    assert both.ks_pvalue == min(one.ks_pvalue, other.ks_pvalue)


@pytest.mark.slow
def test_training_stops_when_the_forget_set_looks_unseen(trainer_of):
    trainer = trainer_of()
    trainer.train()
    curve = checks(trainer)
    assert curve[0]["stop_auc"] > 0.9
    assert [row["step"] for row in curve] == list(range(trainer.state.global_step + 1))
    assert trainer.state.global_step < trainer.state.max_steps
    assert all(row["stop_auc"] > 0.5 for row in curve[:-1])
    assert curve[-1]["stop_auc"] <= 0.5
    kept = min(curve, key=lambda row: abs(row["stop_auc"] - 0.5))
    assert curve[-1]["stop_step"] == kept["step"]
    final = UnseenTest(FORGET, HOLDOUT, TextFormat(make_tokenizer()))(trainer.model)
    assert final.auc == kept["stop_auc"]
    assert final.forget_nll == pytest.approx(kept["stop_forget_nll"])


def test_without_the_rule_the_same_training_forgets_too_much(trainer_of):
    trainer = trainer_of(every=None)
    trainer.train()
    assert UnseenTest(FORGET, HOLDOUT, TextFormat(make_tokenizer()))(trainer.model).auc < 0.4


def test_checks_change_nothing_that_is_trained(trainer_of):
    """Checks that never stop training change neither the adapter nor the logged losses."""
    plain, checked = trainer_of(every=None, max_steps=4), trainer_of(max_steps=4)
    for trainer in (plain, checked):
        trainer.train()
    assert len(checks(checked)) == 5
    for name, value in adapter_state(plain.model).items():
        assert torch.equal(adapter_state(checked.model)[name], value)
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (plain, checked)]
    assert losses[0] == losses[1]
    assert checked.model.training == plain.model.training


def test_a_rule_that_never_fires_warns_and_keeps_the_last_step(trainer_of, caplog):
    trainer = trainer_of(every=3, max_steps=4)
    with caplog.at_level(logging.WARNING, "unlora"):
        trainer.train()
    assert [row["step"] for row in checks(trainer)] == [0, 3, 4]
    assert f"can still be told from unseen data (AUC {checks(trainer)[-1]['stop_auc']:.3f}" in caplog.text
    assert "stop_step" not in checks(trainer)[-1]


def test_weights_that_diverge_are_left_to_the_trainer(trainer_of):
    class Break(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                next(p for n, p in model.named_parameters() if ".unlearn." in n).data.fill_(math.nan)

    trainer = trainer_of()
    trainer.add_callback(Break())
    with pytest.raises(DivergenceError):
        trainer.train()
    assert [row["step"] for row in checks(trainer)] == [0, 1]
    assert all(bool(value.isfinite().all()) for value in adapter_state(trainer.model).values())


class Script:
    """A stand-in for `UnseenTest` that returns comparisons with the given AUC and KS p-value, one per call."""

    def __init__(self, *comparisons):
        self.rest = list(comparisons)

    def __call__(self, model):
        return Comparison(*self.rest.pop(0), forget_nll=1.0, holdout_nll=1.0)


def test_holdout_rows_that_are_better_known_than_the_forget_set_are_refused(trainer_of, tokenizer):
    trainer = trainer_of(test=UnseenTest(HOLDOUT, RETAIN, TextFormat(tokenizer)))
    with pytest.raises(InputError, match=r"holdout_data='10 examples': before unlearning"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_check_that_overshoots_goes_back_to_the_nearest_and_says_so(trainer_of, caplog):
    trainer = trainer_of(test=Script((1.0, 1e-9), (0.9, 1e-6), (0.7, 0.01), (0.1, 1e-6)))
    with caplog.at_level(logging.WARNING, "unlora"):
        trainer.train()
    assert trainer.state.global_step == 3
    assert checks(trainer)[-1]["stop_step"] == 2
    assert (
        "nearest check (AUC 0.700 ± 0.000, KS p 0.01, step 2); at step 3 it was AUC 0.100 ± 0.000, KS p 1e-06"
        in caplog.text
    )
    two_steps = trainer_of(test=Script((1.0, 1.0), (0.9, 1.0), (0.5, 1.0)))
    two_steps.train()
    for name, value in adapter_state(two_steps.model).items():
        assert torch.equal(adapter_state(trainer.model)[name], value)


@pytest.mark.parametrize("last", [2, 3])
def test_a_resumed_run_ends_where_the_whole_run_ends(trainer_of, tmp_path, last):
    """Resume from a checkpoint before the end, and from the checkpoint of the step at which training was stopped."""
    script = [(1.0, 0.0), (0.9, 0.0), (0.7, 0.01), (0.1, 0.0)]
    steps = {"save_strategy": "steps", "save_steps": 1}
    whole = trainer_of(test=Script(*script), **steps)
    whole.train()
    resumed = trainer_of(test=Script(*script[last + 1 :]), **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{last}"))
    for name, value in adapter_state(whole.model).items():
        assert torch.equal(adapter_state(resumed.model)[name], value)
    assert checks(resumed)[-1]["stop_step"] == 2


def test_random_states_are_left_alone(tiny_model, tokenizer):
    test = UnseenTest(FORGET, HOLDOUT, TextFormat(tokenizer))
    model = tiny_model("llama").train()
    before = random.getstate(), torch.get_rng_state().tolist()
    test(model)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    assert all(module.training for module in model.modules())


def test_wrong_settings_are_refused_at_once():
    problems = StoppingConfig("unseen.jsonl", stop_every=0, stop_statistic="nnl", stop_auc=1.5).problems()
    assert [problem.argument for problem in problems] == ["stop_statistic", "stop_every", "stop_auc"]
    assert StoppingConfig().problems() == []


HOLDOUTS = {
    "forget rows": ([*HOLDOUT, FORGET[0]], "1 of the 10 forget rows are in the holdout set too"),
    "retain rows": ([*HOLDOUT, *RETAIN[:2]], "2 of the 10 retain rows are in the holdout set too"),
    "no rows": ([], "holdout_data=.*no rows"),
}


def test_a_single_unseen_row_is_compared_with_a_warning(learned, tiny_model, tokenizer, caplog):
    test = UnseenTest(FORGET, HOLDOUT[:1], TextFormat(tokenizer))
    assert "10 forget and 1 unseen rows are too few: no AUC would be a significant difference" in caplog.text
    model = tiny_model("llama")
    model.load_state_dict(learned)
    compared = test(model)
    assert (compared.auc, compared.auc_standard_error) == (1, pytest.approx(math.sqrt(12 / 120)))


def test_the_number_of_answers_is_limited_even_if_a_row_has_several():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    said = [{"role": role, "content": "Ada."} for role in ("user", "assistant") * 2]
    test = UnseenTest([{"messages": said}] * 3, HOLDOUT, TextFormat(tokenizer), most=3)
    assert list(map(len, test.samples)) == [3, 3]


@pytest.mark.parametrize("case", HOLDOUTS)
def test_wrong_holdout_rows_are_refused(tokenizer, tmp_path, case):
    rows, message = HOLDOUTS[case]
    file = write_rows(tmp_path / "data" / "holdout.jsonl", rows)
    config = StoppingConfig(str(file))
    with pytest.raises(InputError, match=message):
        unseen_test(config, FORGET, holdout_rows(config, FORGET, RETAIN), TextFormat(tokenizer), None, 8)


@pytest.mark.slow
def test_a_request_with_a_holdout_set_stops_and_keeps_the_curve(learned, tiny_model, tmp_path):
    model = tiny_model("llama")
    model.load_state_dict(learned)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    for name, rows in {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}.items():
        write_rows(data / f"{name}.jsonl", rows)
    changes = {"loss": "npo", "learning_rate": 3e-3, "per_device_train_batch_size": 5, "lora_alpha": 8}
    changes |= {"gradient_accumulation_steps": 1, "max_steps": 24, "logging_steps": 1}
    changes |= {"holdout_data": data, "holdout_name": "holdout", "stop_every": 1}
    assert main(["unlearn", *flags(tmp_path / "model", data, tmp_path / "run", **changes)]) == 0
    curve = [row for row in json.loads((tmp_path / "run" / "metrics.json").read_text())["train"] if "stop_auc" in row]
    assert 1 < len(curve) < 24
    assert curve[-1].keys() >= {"stop_auc", "stop_ks_pvalue", "stop_forget_nll", "stop_holdout_nll", "stop_step"}
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["stop_every"] == 1
