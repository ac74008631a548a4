"""`unlora attack` from the command line: it writes a file and prints a table, or fails before any long work."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.attacked import FORGET, RETAIN, unlearn
from helpers.models import CORPUS, make_tokenizer, save_tiny_llama
from helpers.runs import write_rows
from unlora.cli import main
from unlora.cli.attack import print_attacks
from unlora.evals.attacks import ATTACKS
from unlora.pipeline.attack import differences, mean_of_draws
from unlora.runs.folder import DIFFERENCE

QUICK = ("--seeds", "2", "--relearn_steps", "2", "--relearn_percent", "20", "50", "--r", "2", "--shots", "1")
QUICK += ("--samples", "1", "2")
NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn")
NAMED = [{**row, "answer": f"{name} does."} for row, name in zip(FORGET, NAMES, strict=True)]


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    return str(save_tiny_llama(tmp_path_factory.mktemp("retrained"), 1))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    return unlearn(folder, save_tiny_llama(folder / "model", 0), NAMED)


@pytest.fixture
def run(attacked, tmp_path):
    return shutil.copytree(attacked, tmp_path / "run")


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_all_attacks_on_three_models(attacked, run, retrained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    before = hashes(run) | hashes(attacked.parent)
    assert main(["attack", str(run), "--retrained", retrained, *QUICK]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == str(run / "attacks.json")
    assert "relearn: 20 % (1 of 6)" in shown
    assert "difference: unlearned − retrained" in shown
    after = hashes(run) | hashes(attacked.parent)
    assert after.keys() - before.keys() == {run / "attacks.json"}
    assert {path: after[path] for path in before} == before

    report = json.loads((run / "attacks.json").read_text())
    monkeypatch.setenv("COLUMNS", "80")
    print_attacks(report)
    narrow = capsys.readouterr().out
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    assert "paraphrased_qu" in narrow
    assert report["models"]["retrained"] == retrained
    assert report["settings"]["learning_rate"] == 1e-2  # as in the run
    assert {attack: list(settings) for attack, settings in report["attacks"].items()} == {
        "none": ["whole forget set"],
        "relearn": ["20 % (1 of 6)", "50 % (3 of 6)"],
        "quantise": ["8 bits", "4 bits"],
        "paraphrase": ["paraphrased_question"],
        "prefix": ["25 %", "50 %"],
        "fewshot": ["1-shot"],
        "sampling": ["1 sample", "2 samples"],
    }
    assert "facts revealed: number on average" in shown
    assert "of 6" in shown
    for models in report["attacks"].pop("sampling").values():
        assert list(models) == ["original", "unlearned", "retrained", DIFFERENCE]
        keys = {"revealed", "revealed_low", "revealed_high", "facts"}
        assert all(values.keys() == keys and values["facts"] == 6 for values in models.values())
    for attack, settings in report["attacks"].items():
        metrics = {"forget_probability", "forget_rougeL_recall"}
        metrics |= {"retain_probability"} if attack in ("none", "quantise") else set()
        metrics |= {f"{name}_se" for name in metrics} if attack in ("relearn", "fewshot") else set()
        for models in settings.values():
            assert list(models) == ["original", "unlearned", "retrained", DIFFERENCE]
            assert all(values.keys() == metrics for values in models.values())
            assert models[DIFFERENCE]["forget_probability"] == pytest.approx(
                models["unlearned"]["forget_probability"] - models["retrained"]["forget_probability"]
            )
            assert all(0 <= value <= 1 for values in list(models.values())[:3] for value in values.values())


def test_without_an_attack_the_numbers_are_those_of_the_run(run, capsys):
    assert main(["attack", str(run), "--attacks", "paraphrase"]) == 0
    models = json.loads((run / "attacks.json").read_text())["attacks"]["none"]["whole forget set"]
    metrics = json.loads((run / "metrics.json").read_text())
    for model in ("original", "unlearned"):
        sets = metrics[model]["sets"]
        assert models[model]["forget_probability"] == pytest.approx(sets["forget"]["probability"], rel=1e-5)
        assert models[model]["forget_rougeL_recall"] == pytest.approx(sets["forget"]["rougeL_recall"])
        assert models[model]["retain_probability"] == pytest.approx(sets["retain"]["probability"], rel=1e-5)
    assert models["retrained"] is None
    assert models[DIFFERENCE] is None
    assert "retrained: not available" in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_data_do_not_allow_is_in_the_file_with_the_reason(tmp_path, capsys):
    """A duplicate row counts once. Otherwise an attack could show one copy to the model and measure the other."""
    rows = [{key: row[key] for key in ("question", "answer")} for row in FORGET]
    run = unlearn(tmp_path, save_tiny_llama(tmp_path / "model", 0), [*rows, rows[0]])
    assert main(["attack", str(run), *QUICK]) == 0
    attacks = json.loads((run / "attacks.json").read_text())["attacks"]
    assert attacks.keys() == {"none", *ATTACKS}
    assert "6 of the 6 forget rows have no paraphrased_question" in attacks["paraphrase"]["not available"]
    assert "20 % (1 of 6)" in attacks["relearn"]
    kept = (run / "attacks.json").read_bytes()
    capsys.readouterr()
    assert main(["attack", str(run), "--attacks", "paraphrase"]) == 2
    assert "attacks='paraphrase': 6 of the 6" in capsys.readouterr().err
    assert (run / "attacks.json").read_bytes() == kept


@pytest.mark.slow
def test_plain_text_is_attacked_by_what_needs_no_question(tmp_path, retrained, capsys):
    texts = [{"text": f"Ada {i} keeps a grey cat and two dogs in the old house of Bob {i}."} for i in range(3)]
    model = save_tiny_llama(tmp_path / "model", 0)
    run = unlearn(tmp_path, model, [*texts, texts[0]], max_length=32)
    assert main(["attack", str(run), "--retrained", retrained, *QUICK, "--given_tokens", "4"]) == 0
    assert "not available: the rows are plain text" in " ".join(capsys.readouterr().out.replace("│", "").split())
    report = json.loads((run / "attacks.json").read_text())
    attacks = report["attacks"]
    assert all(
        "the rows are plain text" in attacks[name]["not available"] for name in ("paraphrase", "fewshot", "sampling")
    )
    tokenizer = make_tokenizer()
    lengths = [len(tokenizer(row["text"])["input_ids"]) + 1 for row in texts]  # plus the end token
    chunks = sum(-(-length // 32) for length in lengths)
    assert f"50 % ({round(chunks / 2)} of {chunks})" in attacks["relearn"]
    assert list(attacks["prefix"]) == ["25 %", "50 %"]
    plain = attacks["none"]["whole forget set"]
    for models in (plain, attacks["quantise"]["4 bits"]):
        assert models["unlearned"].keys() == {"forget_probability", "forget_rougeL_recall", "retain_probability"}
    assert plain["unlearned"]["forget_probability"] != plain["original"]["forget_probability"]  # the adapter is active
    capsys.readouterr()
    assert main(["attack", str(run), "--attacks", "fewshot"]) == 2
    assert "attacks='fewshot': the rows are plain text" in capsys.readouterr().err


def test_a_single_forget_row_cannot_be_relearned(tmp_path, capsys):
    run = unlearn(tmp_path, save_tiny_llama(tmp_path / "model", 0), FORGET[:1], init="lora")
    assert main(["attack", str(run), "--attacks", "relearn"]) == 2
    assert re.search("attacks='relearn'.*at least 2", capsys.readouterr().err)


@pytest.mark.slow
def test_the_rows_of_the_run_s_benchmark_are_asked(tmp_path):
    """In practice, often only the rows of the benchmark have paraphrases."""
    rows = [{key: row[key] for key in ("question", "answer")} for row in FORGET]
    data = tmp_path / "benchmark"
    facts = [{**row, "perturbed_answer": ["No."]} for row in RETAIN]
    write_rows(data / "forget_perturbed.jsonl", FORGET[:5])
    for name in ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write_rows(data / f"{name}.jsonl", facts)
    evaluation = {"eval_data": data, "eval_forget_name": "forget_perturbed", "ds_size": 3}
    run = unlearn(tmp_path, save_tiny_llama(tmp_path / "model", 0), rows, **evaluation)
    assert main(["attack", str(run), "--attacks", "paraphrase", "relearn", *QUICK]) == 0
    attacks = json.loads((run / "attacks.json").read_text())["attacks"]
    assert list(attacks["paraphrase"]) == ["paraphrased_question"]
    assert list(attacks["relearn"]) == ["20 % (1 of 3)", "50 % (2 of 3)"]


@pytest.mark.slow
def test_a_run_on_top_of_another_is_attacked_whole(attacked, tmp_path):
    more = [{"question": f"Where is fox {i}?", "answer": f"In house {i}."} for i in range(4)]
    data = [str(write_rows(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("more", more), ("retain", RETAIN))]
    flags = ["--on", str(attacked), "--forget_data", data[0], "--retain_data", data[1], "--max_steps", "2", "--r", "2"]
    settings = ["--output_dir", str(tmp_path / "second"), "--save_strategy", "no", "--max_new_tokens", "8"]
    assert main(["unlearn", *flags, *settings, "--use_cpu", "true", "--disable_tqdm", "true"]) == 0
    assert main(["attack", str(tmp_path / "second"), "--attacks", "quantise"]) == 0
    models = json.loads((tmp_path / "second" / "attacks.json").read_text())["attacks"]["none"]["whole forget set"]
    after = json.loads((tmp_path / "second" / "metrics.json").read_text())["unlearned"]["sets"]["forget"]
    assert models["unlearned"]["forget_probability"] == pytest.approx(after["probability"], rel=1e-5)


REFUSED = {
    "no run": ([], "RUN='': no run is named"),
    "no such run": (["no/such/run"], "RUN='no/such/run': there is no such folder"),
    "an unknown attack": (["RUN", "--attacks", "relern"], "attacks='relern'.*did you mean 'relearn'"),
    "an unknown flag": (["RUN", "--seed", "1"], "flag='seed'.*did you mean 'seeds'"),
    "no seeds": (["RUN", "--seeds", "0"], "seeds=0"),
    "too many shots": (["RUN", "--attacks", "fewshot", "--shots", "6"], "6 of the 6 forget rows.*fewer shots"),
    "no such retrained model": (["RUN", "--retrained", "no/such/model/folder"], "no/such/model/folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused_and_an_earlier_report_kept(run, capsys, case):
    arguments, message = REFUSED[case]
    (run / "attacks.json").write_text("mine")
    assert main(["attack", *(str(run) if part == "RUN" else part for part in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert (run / "attacks.json").read_text() == "mine"


def test_a_run_without_its_configuration_is_refused(run, capsys):
    (run / "config.yaml").write_text("- a list")
    assert main(["attack", str(run)]) == 2
    assert "its config.yaml cannot be read" in capsys.readouterr().err


def test_a_retrained_model_with_other_tokens_is_refused(run, tmp_path, capsys):
    own = make_tokenizer()
    own.add_tokens([CORPUS[0].split()[3]])
    other = save_tiny_llama(tmp_path / "other", 0, own)
    assert main(["attack", str(run), "--retrained", str(other)]) == 2
    assert "it has another vocabulary than" in capsys.readouterr().err


def test_means_and_errors_computed_by_hand():
    one, other = [{"x": 0.5}, {"x": 0.9}, {"x": 0.7}], [{"x": 0.25}, {"x": 0.25}, {"x": 0.25}]
    assert mean_of_draws(one) == pytest.approx({"x": 0.7, "x_se": 0.2 / 3**0.5})
    assert mean_of_draws(one[:1]) == {"x": 0.5}
    assert mean_of_draws(differences(one, other)) == pytest.approx({"x": 0.45, "x_se": 0.2 / 3**0.5})
    assert differences(one, None) is None


numbers = st.lists(st.floats(-1, 1), min_size=2, max_size=8)


@given(numbers, st.floats(-1, 1), st.randoms())
def test_means_and_errors_of_any_draws(values, shift, order):
    """Shifting all draws shifts the mean but not the error. The order of draws does not matter.

    Values that two models share cancel in their difference.
    """
    draws = [{"x": value} for value in values]
    found = mean_of_draws(draws)
    assert min(values) - 1e-12 <= found["x"] <= max(values) + 1e-12
    assert found["x_se"] >= 0
    moved = mean_of_draws([{"x": value + shift} for value in values])
    assert moved["x"] == pytest.approx(found["x"] + shift, abs=1e-9)
    assert moved["x_se"] == pytest.approx(found["x_se"], abs=1e-9)
    shuffled = order.sample(draws, len(draws))
    assert mean_of_draws(shuffled) == pytest.approx(found, abs=1e-12)
    other = [{"x": value + shift} for value in values]
    one, two = differences(draws, other), differences(other, draws)
    assert [a["x"] for a in one] == [-b["x"] for b in two]
    assert mean_of_draws(one) == pytest.approx({"x": -shift, "x_se": 0}, abs=1e-9)
