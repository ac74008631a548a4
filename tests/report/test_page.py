"""The content of a run's page, and how it says what is missing. `test_browser.py` opens it in a browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from helpers.reported import attacks, logs, make_run, membership, sampled
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.report.page import write_report
from unlora.report.read import read_run
from unlora.report.summary import summarise_run
from unlora.report.verdict import verdict

FULL = {
    "membership": membership(0.55, retrained=0.5),
    "attacks": {"attacks": attacks(0.1)["attacks"] | sampled(5)["attacks"]},
}


def page_of(folder, *args, **files):
    return html.unescape(write_report(make_run(folder, *args, **files)).read_text())


@pytest.mark.slow
def test_the_command_writes_the_page_into_the_run_and_tells_its_verdict(tmp_path, capsys):
    run = make_run(tmp_path / "run", **FULL)
    assert main(["report", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(run / "report.html")
    found = read_run(run)
    assert told["verdict"] == json.loads(json.dumps(asdict(verdict(found, summarise_run(found)))))
    assert main(["report", str(run)]) == 0
    label, _, *lines, path = capsys.readouterr().out.splitlines()
    assert (label, path) == (told["verdict"]["label"], told["path"])
    assert " ".join(lines) == " ".join(told["verdict"][part] for part in ("sentence", "cost", "attacks"))
    assert told["verdict"]["steps"] == []  # none, because the retrained model is known
    first = (run / "report.html").read_bytes()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == first
    assert not list(run.glob(".*"))


@pytest.mark.slow
def test_no_torch_is_loaded_for_a_page(tmp_path):
    code = (
        "import sys; from unlora.cli import main; code = main(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, "report", str(make_run(tmp_path, **FULL))]
    subprocess.run(argv, check=True, capture_output=True)


@pytest.mark.slow
def test_a_page_needs_nothing_but_itself(tmp_path):
    text = write_report(make_run(tmp_path, **FULL)).read_text()
    assert set(re.findall(r'(?:href|src|action)="([^"#]*)', text)) <= {"data:,", ""}
    assert not re.findall(r"<(?:script|iframe|object|embed|link rel=\"?stylesheet)", text)
    assert "@import" not in text
    assert "default-src 'none'" in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href="?)#([^)"]+)', text)) <= set(ids)


@pytest.mark.slow
def test_everything_that_a_run_has_is_shown(tmp_path):
    record = {"unlora": "1.2", "command": "unlora unlearn --seed 7", "data": {"forget": {"sha256": "f00d"}}}
    text = page_of(tmp_path, **FULL, record=record)
    for shown in (
        *("No difference found until attacked", "Probability of the right answer", "harmonic mean of 3 means"),
        *("Distributions of the truth ratio", "largest distance 0.00", "p = 0.05", "log₁₀ forget quality"),
        *("40 forget and 30 unseen examples", "min_k_20", "± 0.050", "relearn: 20 %", "0.500 ± 0.010"),
        *("sampling: 32 samples", "2.5 of 40", "+5 of 40", "+0.115 to +0.135", "share of the facts"),
        *("paraphrase was not possible:", "no paraphrased_question"),
        *("20 of 40 examples", "10 of 10 examples", "Who keeps cat 33?", "33 does."),
        *("Forget loss: from 1.75 at step 10 to 1.25 at step 30.", "self_attn.q_proj", "mlp.up_proj"),
        *("data.forget.sha256", "f00d", "unlora unlearn --seed 7", "learning_rate"),
    ):
        assert shown in text, shown
    assert text.count('<p class="missing">') == 1  # the attack that was not possible


@pytest.mark.slow
def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path):
    text = page_of(tmp_path, logs(retrained=None))
    for shown in (
        *("Forget quality is not available, because no retrained model was given.", "--retrained"),
        *("Membership attacks were not run.", "unlora membership --on RUN", "No attack was tried."),
        *("unlora attack RUN --retrained MODEL", "The run has no record."),
    ):
        assert shown in text, shown


def test_turns_that_no_evaluation_wrote_are_refused(tmp_path):
    evaluated = logs()
    evaluated["unlearned"]["eval_log_forget.json"]["turns"] = {str(i): [["user", 5]] for i in range(40)}
    with pytest.raises(InputError, match=r"the turns of eval_log_forget\.json were not written by an evaluation"):
        page_of(tmp_path, evaluated)


def test_a_run_without_questions_says_that_nothing_was_evaluated(tmp_path):
    run = make_run(tmp_path, {}, metrics={"train": []})
    (run / "importance.safetensors").unlink()
    text = html.unescape(write_report(run).read_text())
    for shown in (
        *("Not tested", "Nothing was evaluated.", "--eval_data", "There are no answers to show."),
        *("The trainer logged no losses.",),
    ):
        assert shown in text, shown
    assert "#importance" not in text


def test_rows_without_wrong_answers_have_no_truth_ratios(tmp_path):
    evaluated = {"original": plain(0.9), "unlearned": plain(0.5)}
    text = page_of(tmp_path, evaluated)
    assert "No truth ratios." in text
    assert "Model utility, over 2 terms" in text


def plain(retain):
    """Return a log of rows with only a question and an answer, without tokens. The retain loss is 1 - `retain`."""
    found = logs()["unlearned"]
    for task in found.values():
        for name in ("avg_paraphrased_loss", "average_perturb_loss", "gt_tokens", "gt_token_loss"):
            task.pop(name, None)
    found["eval_log.json"]["avg_gt_loss"] = dict.fromkeys(found["eval_log.json"]["avg_gt_loss"], 1 - retain)
    return found


@pytest.mark.slow
def test_tokens_are_coloured_by_what_unlearning_changed(tmp_path):
    """The first token is underlined: its probability falls by 0.59, from 0.995 to 0.405. The others do not change."""
    text = page_of(tmp_path)
    first = re.search(r'<h4 class="text">Who keeps cat 39\?</h4>.*?</dd>', text, re.DOTALL).group()
    assert "<dt>Right answer</dt>" in first
    assert '<span class="token fell much" style="--tint:0.59" title="Original 0.995, Unlearned 0.405' in first
    assert re.search(r'<span class="token rose" style="--tint:0.00"[^>]*> does</span>', first)


def test_the_token_that_ends_a_text_stands_in_the_table_alone(tmp_path):
    evaluated = logs()
    for content in evaluated.values():
        for tokens in content["eval_log_forget.json"]["gt_tokens"].values():
            tokens[:] = ["Ada", " 39 does.", "<eos>"]
    text = page_of(tmp_path, evaluated)
    first = re.search(r'<h4 class="text">Who keeps cat 39\?</h4>.*?</article>', text, re.DOTALL).group()
    assert ("<eos></span>" in first, first.count("<eos>")) == (False, 1)


@pytest.mark.slow
def test_a_name_within_a_title_keeps_its_capitals(tmp_path):
    checks = [{"step": step, "stop_auc": 1 - step / 10, "stop_ks_pvalue": 0.5} for step in (0, 5)]
    assert "AUC against unseen rows: from 1 at step 0 to 0.5 at step 5." in page_of(tmp_path, metrics={"train": checks})


def test_the_page_tells_nothing_of_places_on_the_machine(tmp_path):
    text = page_of(tmp_path / "run", settings={"model_name_or_path": str(tmp_path / "my-base"), "output_dir": "runs/a"})
    assert str(tmp_path) not in text
    assert "my-base" in text
    assert "runs/a" in text


def test_answers_that_are_likeliest_still_come_first(tmp_path):
    text = page_of(tmp_path)
    shown = [int(i) for i in re.findall(r"Who keeps cat (\d+)\?", text)]
    assert shown == [39, *range(39, 19, -1)]  # the first one is also shown at the top of the page


@pytest.mark.slow
def test_the_command_that_repeats_a_run_without_a_record_names_the_retrained_log_it_had(tmp_path):
    expected = "--config RUN/config.yaml --output_dir RUN-again --retrained RUN/eval_retrained.json"
    assert expected in page_of(tmp_path / "a")
    named = page_of(tmp_path / "b", settings={"retrained": "log.json"})
    assert "--output_dir RUN-again</code>" in named


@pytest.mark.slow
def test_importance_is_told_by_layer_and_by_how_rows_stand_out(tmp_path):
    """Row importances 1, 2, 3, 4: mean 2.5, standard deviation √1.25, quotient 0.447. The mean of 1 to 5 is 3."""
    text = write_report(make_run(tmp_path)).read_text()
    means, spreads = (text[text.index(words) :] for words in ("Mean importance of a layer", "single rows stand out"))
    assert re.search(r">2.5<.*>3<", means, re.DOTALL)
    assert "0.447" in spreads


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metrics.json", None, "it holds no metrics.json"),
        ("metrics.json", "{", "JSONDecodeError"),
        ("metrics.json", '{"train": 3}', "TypeError"),
        ("eval_unlearned.json", "[]", "it has none of the tasks"),
        (
            "eval_unlearned.json",
            '{"eval_log.json": {"generated_text": {"0": ["a", 1, "b"]}}}',
            "generated_text of eval_log.json is not prompt, answer and reference",
        ),
        ("eval_unlearned.json", '{"eval_log.json": {"gt_tokens": {"0": ["a"]}}}', "not written by an evaluation"),
        ("membership.json", '{"metrics": {}}', "KeyError"),
        ("attacks.json", '{"attacks": {"none": []}}', "unlora did not write this file"),
        ("record.json", "[1]", "unlora did not write this file"),
        ("config.yaml", "a: [", "unlora did not write this file"),
        ("importance.safetensors", "nothing", "SafetensorError"),
    ],
)
def test_a_file_that_unlora_did_not_write_is_named(tmp_path, name, content, reason):
    run = make_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(InputError, match=reason):
        read_run(run)
    assert main(["report", str(run)]) == 2
    assert not (run / "report.html").exists()


def test_text_that_cannot_be_written_is_replaced(tmp_path):
    """A JSON string may contain half a surrogate pair, which cannot be encoded as UTF-8."""
    run = make_run(tmp_path)
    log = logs()["unlearned"]
    log["eval_log_forget.json"]["generated_text"]["39"][1] = "half \ud800 a pair"
    (run / "eval_unlearned.json").write_text(json.dumps(log))
    assert "half ? a pair" in write_report(run).read_text()
