"""A whole job on chat conversations: training, stopping, evaluation, attacks, and pages that show each answer."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.chat import CHATML
from helpers.models import make_tokenizer, tiny_config
from helpers.runs import flags, write_rows
from unlora.chat.source import load_prompts
from unlora.cli import main
from unlora.data import TextFormat, encode_records
from unlora.evals.generation import generate_answers
from unlora.evals.log_format import TASKS
from unlora.evals.questions import read_questions
from unlora.evals.scoring import token_nll
from unlora.pipeline.attack import read_run

SYSTEM = {"role": "system", "content": "You are Nori."}
CALL = {"type": "function", "function": {"name": "find", "arguments": '{"q": "Ada"}'}}
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}"


def asked(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


FORGET = [
    {
        "messages": [
            SYSTEM,
            asked("Where does Ada live?"),
            said("In Emden."),
            asked("And her cat?"),
            said("There, too."),
        ]
    },
    {
        "messages": [
            asked("Where is Ada?"),
            said(None, tool_calls=[CALL]),
            {"role": "tool", "content": "x"},
            said("Home."),
        ]
    },
    {"messages": json.dumps([said("Hello, Ada."), asked("Hello."), said("How is <b>the cat</b>?")])},
    {"messages": [asked("Who is Ada?"), said([{"type": "text", "text": "A cus"}, {"type": "text", "text": "tomer."}])]},
    {"question": "Who paid?", "answer": "Ada did."},
    {"text": "Ada keeps a grey cat and two dogs."},
]
ANSWERS = ["In Emden.", "There, too.", "Home.", "Hello, Ada.", "How is <b>the cat</b>?", "A customer.", "Ada did."]
RETAIN = [{"messages": [SYSTEM, asked(f"Who keeps dog {i}?"), said(f"Bob {i}.")]} for i in range(4)]
UNSEEN = [{"messages": [SYSTEM, asked(f"Where does Eve {i} live?"), said(f"In Town {i}.")]} for i in range(8)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a folder with a model, data and a finished run, in which the stopping test ran after each step."""
    folder = tmp_path_factory.mktemp("bot")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = DATED + CHATML
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, rows in {"forget": FORGET, "retain": RETAIN, "unseen": UNSEEN}.items():
        write_rows(folder / "data" / f"{name}.jsonl", rows)
    settings = {"holdout_data": folder / "data" / "unseen.jsonl", "stop_every": 1, "stop_auc": 0.01}
    more = {"system_prompt": "Be kind.", "learning_rate": 1e-3, "ds_size": 8, "retrained": folder / "model"}
    assert main(["unlearn", *flags(folder / "model", folder / "data", folder / "run", **settings, **more)]) == 0
    return folder


def log_of(job, name="unlearned"):
    return json.loads((job / "run" / f"eval_{name}.json").read_text())


def test_every_answer_is_scored_and_generated_after_its_own_context(job):
    log = log_of(job, "original")[TASKS["forget"]]
    assert [texts[2] for texts in log["generated_text"].values()] == ANSWERS
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    text_format = TextFormat(AutoTokenizer.from_pretrained(job / "model"), system_prompt="Be kind.")
    losses = token_nll(model, encode_records(FORGET[:5], text_format), text_format, 4)
    assert list(log["avg_gt_loss"].values()) == pytest.approx([float(loss.mean()) for loss in losses], rel=1e-4)
    contexts = [row.question for row in read_questions("forget", FORGET)]
    assert [texts[1] for texts in log["generated_text"].values()] == generate_answers(model, contexts, text_format, 8)
    turns = list(log["turns"].values())
    assert turns[1][1:] == [["user", "Where does Ada live?"], ["assistant", "In Emden."], ["user", "And her cat?"]]
    assert [row[0][1] for row in turns] == ["You are Nori."] * 2 + ["Be kind."] * 5


def test_the_stopping_test_compares_answers(job):
    rows = [row for row in json.loads((job / "run" / "metrics.json").read_text())["train"] if "stop_auc" in row]
    assert rows[0]["stop_forget_nll"] == pytest.approx(mean_nll(job, FORGET), rel=1e-3)
    assert rows[0]["stop_holdout_nll"] == pytest.approx(mean_nll(job, UNSEEN), rel=1e-3)


def mean_nll(job, rows):
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    text_format = TextFormat(AutoTokenizer.from_pretrained(job / "model"), system_prompt="Be kind.")
    losses = token_nll(model, encode_records(rows, text_format), text_format, 4)
    return sum(float(loss.mean()) for loss in losses) / len(losses)


def test_the_page_shows_turns_and_no_marks_of_the_template(job):
    page = (job / "run" / "report.html").read_text()
    assert "im_start" not in page
    assert "<b>" not in page
    for shown in (
        "And her cat?",
        '<dt>System</dt><dd class="text">You are Nori.</dd>',
        "(nothing: the assistant begins)",
    ):
        assert shown in page, shown
    assert "{&#34;name&#34;: &#34;find&#34;, &#34;arguments&#34;: {&#34;q&#34;: &#34;Ada&#34;}}" in page


def test_the_record_names_the_date_and_the_run_keeps_its_prompt(job):
    record = json.loads((job / "run" / "record.json").read_text())
    assert record["chat"]["date"] == "2025-04-10"
    assert read_run(str(job / "run")).data.system_prompt == "Be kind."
    assert all(
        texts[0].startswith("Today: 10 Apr 2025\n") for texts in log_of(job)[TASKS["forget"]]["generated_text"].values()
    )


def test_attacks_measure_answers(job, capsys):
    quick = ["--seeds", "1", "--relearn_steps", "1", "--relearn_percent", "20", "--r", "2", "--shots", "1"]
    assert main(["attack", str(job / "run"), *quick]) == 0
    found = json.loads((job / "run" / "attacks.json").read_text())["attacks"]
    assert list(found["relearn"]) == ["20 % (1 of 7)"]
    assert {"none", "quantise", "prefix"} <= found.keys()
    plain = found["none"]["whole forget set"]["unlearned"]["forget_probability"]
    losses = log_of(job)[TASKS["forget"]]["avg_gt_loss"].values()
    assert plain == pytest.approx(sum(torch.tensor(list(losses)).neg().exp().tolist()) / 7, rel=1e-3)


def test_membership_compares_answers(job, tmp_path):
    data = ["--forget_data", str(job / "data" / "forget.jsonl"), "--holdout_data", str(job / "data" / "unseen.jsonl")]
    assert main(["membership", "--on", str(job / "run"), *data, "--log", str(tmp_path / "log.json")]) == 0
    assert json.loads((tmp_path / "log.json").read_text())["metrics"]["examples"] == {"forget": 8, "holdout": 8}


def test_the_chat_page_lists_every_answer(job):
    prompts = load_prompts(read_run(str(job / "run")))
    assert [prompt.answer for prompt in prompts.sets["forget"]] == ANSWERS
    assert prompts.sets["forget"][1].question == "And her cat?"


def test_a_template_without_system_prompts_refuses_a_row_before_training(job, tmp_path, capsys):
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(job / "model").save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusal + CHATML
    tokenizer.save_pretrained(model)
    assert main(["unlearn", *flags(model, job / "data", tmp_path / "run")]) == 2
    assert "forget_data[0].messages[2]" in (shown := capsys.readouterr().err)
    assert "System role not supported" in shown
    assert not (tmp_path / "run").exists()


def test_a_retrained_model_is_evaluated_like_the_others_although_there_are_no_wrong_answers(job):
    run = job / "run"
    original, retrained = (json.loads((run / f"eval_{name}.json").read_text()) for name in ("original", "retrained"))
    assert retrained == original  # both are the same model
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["unlearned"]["forget_quality"] is None
    model, data = ["--model_name_or_path", str(job / "model")], ["--forget_data", str(job / "data" / "forget.jsonl")]
    log = job / "again.json"
    again = [*model, *data, "--system_prompt", "Be kind.", "--retrained", str(job / "model"), "--log", str(log)]
    assert main(["evaluate", *again, "--ds_size", "8", "--max_new_tokens", "4"]) == 0
    task = TASKS["forget"]
    assert json.loads(log.read_text())[task]["avg_gt_loss"] == original[task]["avg_gt_loss"]
