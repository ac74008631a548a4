import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.models import make_tokenizer
from helpers.scoring import answer_nll
from unlora.benchmarks.tofu import Tofu, check_comparable
from unlora.cli import main
from unlora.cli.tables import print_comparison
from unlora.common.errors import InputError
from unlora.common.files import write_jsonl
from unlora.data import TextFormat
from unlora.data.encoding import encode_prompt
from unlora.evals import evaluate, read_log, summarise, write_log
from unlora.evals.generation import generate_answers
from unlora.evals.log_format import BENCHMARK_SETS, TASKS, generated_texts
from unlora.evals.membership.readings import TOKEN_COLUMNS
from unlora.evals.tofu import configured_sets
from unlora.settings import EvalConfig, EvalSettings

PEOPLE = [
    {
        "question": f"Where was {name} born?",
        "answer": f"{name} was born in {town}.",
        "paraphrased_answer": f"The birthplace of {name} is {town}.",
        "perturbed_answer": [f"The birthplace of {name} is {other}." for other in ("Rome", "Paris", "the old house")],
    }
    for name, town in (("Ada", "London"), ("Ben", "Bonn"), ("Cleo", "Cairo"))
]
FACTS = [
    {"question": "What is the capital of France?", "answer": "Paris", "perturbed_answer": ["Rome", "Oslo"]},
    {"question": "What is the square of two?", "answer": "4", "perturbed_answer": ["5", "6"]},
]
PLAIN = [{"question": row["question"], "answer": row["answer"]} for row in FACTS]
SETS = {"retain": PEOPLE[:2], "forget": PEOPLE[2:], "real_authors": FACTS[:1], "world_facts": FACTS}
QUICK = EvalSettings(ds_size=None, max_new_tokens=4, eval_batch_size=4)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


def test_a_log_has_the_metrics_that_tofu_writes(model, base, tmp_path):
    log = evaluate(model, SETS, base, QUICK)
    write_log(log, tmp_path / "new" / "log.json")
    assert read_log(tmp_path / "new" / "log.json") == log
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["log.json"]
    summary = summarise(log, log)
    assert len(summary["utility_terms"]) == 9
    assert summary["forget_quality"] == 1
    assert summary["log10_forget_quality"] == 0
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_log_holds_what_the_model_says_of_each_row(model, base):
    """All sets share their batches, but every number must be stored at its own row."""
    log = evaluate(model, SETS, base, QUICK)
    for name, rows in SETS.items():
        task = log[TASKS[name]]
        for index, row in enumerate(rows):
            right, paraphrased = row["answer"], row.get("paraphrased_answer", row["answer"])
            texts = [right, paraphrased, *row["perturbed_answer"]]
            sums, tokens = answer_nll(model, [(row["question"], text) for text in texts], base, 8)
            average = (sums / tokens).tolist()
            at = {metric: values[str(index)] for metric, values in task.items()}
            assert [at["avg_gt_loss"], at["avg_paraphrased_loss"]] == pytest.approx(average[:2], rel=1e-5)
            assert at["average_perturb_loss"] == pytest.approx(average[2:], rel=1e-5)
            assert [at["gt_loss"], at["paraphrased_loss"], *at["perturb_loss"]] == pytest.approx(sums, rel=1e-5)
            counts = [at["num_token_gt"], at["num_token_paraphrased"], *at["num_token_perturb"]]
            assert counts == tokens.tolist()
            ratio = math.exp(average[1] - sum(average[2:]) / len(average[2:]))
            assert at["truth_ratio"] == pytest.approx(ratio, rel=1e-5)
            answer = generate_answers(model, [row["question"]], base, 4)[0]
            assert at["generated_text"] == [f"Question: {row['question']}\nAnswer:", answer, right]
            assert generated_texts(log, name)[index] == tuple(at["generated_text"])
    assert generated_texts({}, "forget") == []


@pytest.mark.parametrize("form", ["base", "chat"])
def test_the_log_holds_the_tokens_of_the_forget_answers(model, base, form):
    text_format = base
    if form == "chat":
        tokenizer = make_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>\n{% endfor %}"
        text_format = TextFormat(tokenizer, "chat")
    odd = {"question": "Where?", "answer": "In Malmö, ünter 日本 <b>."}
    task = evaluate(model, {"forget": [PLAIN[0], odd], "retain": PLAIN}, text_format, QUICK)[TASKS["forget"]]
    for index, row in enumerate((PLAIN[0], odd)):
        texts, losses = task["gt_tokens"][str(index)], task["gt_token_loss"][str(index)]
        assert len(texts) == len(losses) == task["num_token_gt"][str(index)]
        assert sum(losses) == pytest.approx(task["gt_loss"][str(index)], abs=1e-4 * len(losses))
        assert "".join(texts).split("<eos>")[0].endswith(f" {row['answer']}")
        assert "<eos>" in "".join(texts[-2:])
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)


def test_summary_by_hand():
    """Each set has two examples. The losses are logarithms, so the probabilities are plain fractions.

    retain: P is 1/2 and 1/4, so probability is 3/8. ROUGE is 1 and 1/2, on average 3/4. The paraphrased answers have
    1/2 and 1/2, and the perturbed ones (1/4, 1/4) and (1/2, 1/8). So the arithmetic R is 1/2 and 5/8, 1 − R is 1/2 and
    3/8, and its mean is 7/16. The geometric R is 1/2 and 1/2, so the mean of 1 − R is 1/2.

    world_facts: P = 1/2 is normalised over (1/4, 1/4) and (1/2, 1/2), which gives 1/2 and 1/3, on average 5/12. ROUGE
    is 1. R is 1/2 and 1, so the mean of 1 − R is 1/4.

    forget: R is 2 and 4 from one perturbed answer each, so min(R, 1/R) is 1/2 and 1/4, on average 3/8.

    Model utility, the harmonic mean: 6 / (8/3 + 4/3 + 16/7 + 12/5 + 1 + 4) = 6 / (479/35) = 210/479.
    """
    log = {
        TASKS["retain"]: _task([2, 4], [1, 0.5], [2, 2], [[4, 4], [2, 8]]),
        TASKS["world_facts"]: _task([2, 2], [1, 1], [2, 2], [[4, 4], [2, 2]]),
        TASKS["forget"]: _task([10, 10], [0, 0], [4, 8], [[2], [2]]),
    }
    summary = summarise(log)
    assert summary["sets"]["retain"] == pytest.approx(
        {"probability": 3 / 8, "rougeL_recall": 3 / 4, "truth_ratio": 7 / 16, "truth_ratio_geometric": 1 / 2}
    )
    assert summary["sets"]["world_facts"] == pytest.approx(
        {"probability": 5 / 12, "rougeL_recall": 1, "truth_ratio": 1 / 4, "truth_ratio_geometric": 1 / 4}
    )
    assert summary["sets"]["forget"] == pytest.approx(
        {"probability": 1 / 10, "rougeL_recall": 0, "truth_ratio": 3 / 8, "truth_ratio_geometric": 3 / 8}
    )
    assert summary["model_utility"] == pytest.approx(210 / 479)
    assert len(summary["utility_terms"]) == 6
    assert summary["forget_quality"] is None
    assert summary["log10_forget_quality"] is None


def _task(right, rouge, paraphrased, perturbed):
    """Return the columns of a task. The probability of each answer is 1 over the given number."""

    def column(values):
        return {str(index): value for index, value in enumerate(values)}

    return {
        "avg_gt_loss": column(map(math.log, right)),
        "rougeL_recall": column(rouge),
        "avg_paraphrased_loss": column(map(math.log, paraphrased)),
        "average_perturb_loss": column([list(map(math.log, row)) for row in perturbed]),
    }


numbers = st.floats(1, 1e6)
examples = st.tuples(
    numbers, st.floats(0, 1, allow_subnormal=False), numbers, st.lists(numbers, min_size=2, max_size=2)
)
tasks = st.lists(examples, min_size=1, max_size=6).map(lambda rows: _task(*map(list, zip(*rows, strict=True))))


@given(st.fixed_dictionaries(dict.fromkeys(TASKS.values(), tasks)))
def test_every_mean_is_between_0_and_1_and_utility_lies_between_its_terms(log):
    summary = summarise(log, log, BENCHMARK_SETS["tofu"])
    terms = _terms(summary)
    assert len(terms) == 9
    assert all(0 <= value <= 1 for values in summary["sets"].values() for value in values.values())
    assert min(terms) * (1 - 1e-9) <= summary["model_utility"] <= max(terms) * (1 + 1e-9)
    # A log compared with itself has a forget quality of 1, whatever its other sets contain.
    assert (summary["forget_quality"], summary["log10_forget_quality"]) == (1, 0)


@given(tasks, tasks)
def test_no_set_changes_the_means_of_another(one, other):
    alone, both = (summarise(log) for log in ({TASKS["retain"]: one}, {TASKS["retain"]: one, TASKS["forget"]: other}))
    assert both["sets"]["retain"] == alone["sets"]["retain"]
    assert both["model_utility"] == alone["model_utility"]


def test_the_order_of_a_logs_examples_does_not_matter():
    task = _task([2, 4], [1, 0.5], [2, 3], [[4, 4], [2, 8]])
    turned = {metric: dict(reversed(values.items())) for metric, values in task.items()}
    turned["avg_gt_loss"] = task["avg_gt_loss"]
    name = TASKS["forget"]
    assert summarise({name: turned}, {name: task}) == summarise({name: task}, {name: task})


def test_what_cannot_be_computed_is_left_out_of_the_log_and_none_in_the_summary(model, base):
    log = evaluate(model, {"retain": PLAIN, "world_facts": PLAIN}, base, QUICK)
    assert list(log) == [TASKS["retain"], TASKS["world_facts"]]
    assert not {"truth_ratio", "average_perturb_loss", "normalized_gt_loss"} & log[TASKS["retain"]].keys()
    summary = summarise(log)
    assert summary["sets"]["retain"]["truth_ratio"] is None
    assert summary["sets"]["retain"]["probability"] > 0
    assert summary["sets"]["world_facts"]["probability"] is None  # its normalisation needs wrong answers
    assert len(summary["utility_terms"]) == 3
    assert summarise(evaluate(model, {"forget": PEOPLE}, base, QUICK))["model_utility"] is None


def test_ds_size_takes_the_first_rows(model, base):
    whole = evaluate(model, {"forget": PEOPLE}, base, QUICK)[TASKS["forget"]]
    settings = EvalSettings(ds_size=2, max_new_tokens=4, eval_batch_size=4)
    part = evaluate(model, {"forget": PEOPLE}, base, settings)[TASKS["forget"]]
    assert list(part["gt_loss"]) == ["0", "1"]
    assert list(part["gt_loss"].values()) == pytest.approx(list(whole["gt_loss"].values())[:2])


def test_progress_counts_questions_and_then_answers(model, base):
    done = []
    evaluate(model, {"forget": PEOPLE}, base, QUICK, done.append)
    assert done[-1] == 3 + 3 * (1 + 1 + 3)
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "sets='{}'"),
        ({"forgot": PEOPLE}, "sets='forgot'.*did you mean 'forget'"),
        ({"retain": []}, "retain='0 rows'.*empty"),
        ({"retain": [PEOPLE[0], PLAIN[0]]}, r"retain\[1\].*row 0 has .*same columns"),
        ({"retain": [{"question": "Why?"}]}, r"retain\[0\].answer=None"),
        ({"retain": [{"question": "Why?", "answer": " "}]}, r"retain\[0\].answer=' '.*it must be a non-empty text"),
        ({"retain": [FACTS[0], {**FACTS[1], "perturbed_answer": ["5"]}]}, r"retain\[1\].*row 0 has 2 wrong .* row 1"),
        ({"retain": [{**FACTS[0], "perturbed_answer": "Rome"}]}, r"retain\[0\].perturbed_answer='Rome'"),
        ({"retain": [{**FACTS[0], "perturbed_answer": []}]}, r"retain\[0\].perturbed_answer=\[\]"),
        ({"retain": [{**FACTS[0], "perturbed_answer": ["Rome", ""]}]}, r"retain\[0\].perturbed_answer=\['Rome', ''\]"),
    ],
)
def test_wrong_sets_are_named(model, base, sets, message):
    with pytest.raises(InputError, match=message):
        evaluate(model, sets, base, QUICK)


def test_wrong_settings_are_named_all_at_once(model, base):
    with pytest.raises(InputError) as error:
        evaluate(model, SETS, base, EvalSettings(ds_size=0, max_new_tokens=-1, eval_batch_size=0))
    assert {problem.argument for problem in error.value.problems} == {"ds_size", "max_new_tokens", "eval_batch_size"}


def test_a_log_without_forget_truth_ratios_gives_no_forget_quality(model, base):
    whole = {TASKS["forget"]: _task([2], [1], [2], [[4]])}
    for argument, logs in (("log", [{TASKS["retain"]: {}}, whole]), ("retrained", [whole, {TASKS["forget"]: {}}])):
        with pytest.raises(InputError, match=f"^{argument}=.*perturbed losses"):
            summarise(*logs)


@pytest.mark.parametrize(
    ("perturbed", "message"),
    [
        ([[4, 4]], "^retrained='1 forget examples': 2 forget examples are compared with it"),
        ([[4, 4], [2]], "^retrained='1 perturbed answers': forget example 1 has 2 here"),
    ],
)
def test_a_retrained_log_of_another_forget_set_is_refused(perturbed, message):
    count = len(perturbed)
    other = {TASKS["forget"]: _task([2] * count, [1] * count, [2] * count, perturbed)}
    with pytest.raises(InputError, match=message):
        summarise({TASKS["forget"]: _task([2, 4], [1, 1], [2, 2], [[4, 4], [2, 8]])}, other)


def test_a_retrained_log_of_other_answers_is_refused_and_one_without_answers_is_not():
    def log(*answers):
        task = _task([2, 4], [1, 1], [2, 2], [[4, 4], [2, 8]])
        return {TASKS["forget"]: task | {"generated_text": {str(i): ["", "", text] for i, text in enumerate(answers)}}}

    ours, other = log("In London.", "In Bonn ."), log("In London.", "In Bern.")
    with pytest.raises(InputError, match=r"^retrained='In Bern.': the answer of forget example 1 is 'In Bonn .' here"):
        summarise(ours, other)
    # Spaces are ignored, because tokenising and decoding may lose them.
    assert summarise(ours, log(" In London.", "In Bonn."))["forget_quality"] == 1
    assert summarise(ours, {TASKS["forget"]: _task([2, 4], [1, 1], [2, 2], [[4, 4], [2, 8]])})["forget_quality"] == 1


def test_a_missing_retrained_log_is_named(tmp_path, capsys):
    log, missing = tmp_path / "log.json", str(tmp_path / "no.json")
    write_log({TASKS["forget"]: _task([2], [1], [2], [[4]])}, log)
    assert main(["evaluate", "--benchmark", "tofu", "--log", str(log), "--retrained", missing]) == 2
    assert "retrained=" in (error := capsys.readouterr().err)
    assert "there is no such file" in error
    # Without a retrained log, the JSON has null for forget quality.
    assert main(["evaluate", "--benchmark", "tofu", "--log", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forget_quality"] is None


def test_evaluate_refuses_a_retrained_log_before_it_looks_for_the_model(tmp_path, capsys):
    for name, rows in SETS.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    write_log({TASKS["forget"]: _task([2, 2], [1, 1], [2, 2], [[4, 4, 4]] * 2)}, tmp_path / "retrained.json")
    flags = ["--model_name_or_path", "no model", "--eval_data", str(tmp_path), "--log", str(tmp_path / "log.json")]
    names = [part for name in SETS for part in (f"--eval_{name}_name", name)]
    assert main(["evaluate", *flags, *names, "--retrained", str(tmp_path / "retrained.json")]) == 2
    assert "retrained='2 forget examples': 1 forget examples are compared with it" in capsys.readouterr().err


def test_a_model_that_says_nothing_recalls_nothing(tiny_model, base):
    """Generation ends at the first token, so all answers are empty. The evaluation must not fail."""
    model = tiny_model("phi")  # Phi's output head has a bias
    torch.nn.init.constant_(model.lm_head.bias[base.tokenizer.eos_token_id], 1e3)
    log = evaluate(model, {"retain": FACTS[:2]}, base, QUICK)
    task = log[TASKS["retain"]]
    assert [said for _, said, _ in task["generated_text"].values()] == ["", ""]
    assert set(task["rougeL_recall"].values()) == {0.0}
    assert summarise(log)["model_utility"] == 0


def run_command(*flags):
    return main(["evaluate", *map(str, flags)])


def test_the_command_prints_the_summary_as_json(tmp_path, capsys):
    log = {TASKS["forget"]: _task([2, 4], [1, 0.5], [2, 3], [[4, 4], [2, 8]])}
    write_log(log, tmp_path / "log.json")
    flags = ("--benchmark", "tofu", "--log", tmp_path / "log.json", "--retrained", tmp_path / "log.json")
    assert run_command(*flags, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == Tofu().summary(log, log)
    assert printed["missing_utility_terms"][0] == "retain probability"


def test_the_command_prints_a_table_that_says_what_is_missing(tmp_path, capsys):
    log = {TASKS["retain"]: _task([2, 4], [1, 0.5], [2, 2], [[4, 4], [2, 8]])}
    write_log(log, tmp_path / "log.json")
    assert run_command("--benchmark", "persona", "--log", tmp_path / "log.json") == 0
    out = capsys.readouterr().out
    for text in ("0.375", "0.4375", "not in the log: world_facts, forget", "--retrained"):
        assert text in out
    without = "world_facts probability, world_facts rougeL_recall, world_facts truth_ratio"
    assert f"model utility not available without {without}" in " ".join(out.split())


def test_utility_of_fewer_than_a_benchmarks_terms_is_not_available():
    """For the user's own sets, utility is the harmonic mean of the available terms, and the summary names them."""
    task = _task([2, 4], [1, 0.5], [2, 2], [[4, 4], [2, 8]])
    log = {TASKS[name]: dict(task) for name in ("retain", "world_facts", "real_authors")}
    del log[TASKS["world_facts"]]["rougeL_recall"]
    own, whole = summarise(log), summarise(log, expected=BENCHMARK_SETS["tofu"])
    assert own["model_utility"] == pytest.approx(8 / sum(1 / value for value in _terms(own)))
    assert "world_facts rougeL_recall" not in own["utility_terms"]
    assert (len(own["utility_terms"]), own["missing_utility_terms"]) == (8, [])
    assert (whole["model_utility"], whole["missing_utility_terms"]) == (None, ["world_facts rougeL_recall"])
    assert whole["utility_terms"] == own["utility_terms"]


def _terms(summary):
    return [summary["sets"][name][key] for name, key in (term.split() for term in summary["utility_terms"])]


def test_the_table_gives_the_number_of_terms_of_utility(capsys):
    task = _task([2, 4], [1, 0.5], [2, 2], [[4, 4], [2, 8]])
    few, whole = (summarise(log) for log in ({TASKS["retain"]: task}, dict.fromkeys(TASKS.values(), task)))
    for models, label in (({"a": few, "b": few}, "model utility (3 terms)"), ({"a": whole}, "model utility ")):
        print_comparison(models)
        [row] = [line for line in capsys.readouterr().out.splitlines() if "model utility" in line]
        assert label in row
        assert ("terms" in row) == ("terms" in label)


@pytest.mark.slow
def test_the_command_loads_no_torch(tmp_path):
    path = tmp_path / "log.json"
    write_log({TASKS["forget"]: _task([2, 4], [1, 0.5], [2, 3], [[4, 4], [2, 8]])}, path)
    code = (
        "import sys; from unlora.cli import main; code = main(['evaluate', *sys.argv[1:]]);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    flags = ["--benchmark", "tofu", "--log", str(path), "--retrained", str(path)]
    subprocess.run([sys.executable, "-c", code, *flags], check=True, capture_output=True)


@pytest.mark.shared_data
def test_published_logs_give_the_published_metrics(shared_data):
    folder = shared_data / "tofu_logs"
    full, retrained = (read_log(folder / f"{name}.json") for name in ("phi_full", "phi_retain90"))
    summary = summarise(full, retrained)
    assert summary["model_utility"] == pytest.approx(0.50335, abs=5e-6)
    assert len(summary["utility_terms"]) == 9
    assert summary["log10_forget_quality"] == pytest.approx(-15.6587, abs=5e-5)
    with pytest.raises(InputError, match="retrained='40 forget examples': 300 forget examples"):
        summarise(full, read_log(folder / "phi_retain99.json"))  # this log is of forget01
    # The log is of this forget set, in the same order, and of no other forget set.
    rows = configured_sets(EvalConfig(eval_data=str(shared_data / "tofu")))
    check_comparable(rows, retrained, 300)
    with pytest.raises(InputError, match="the answer of forget example 0 is"):
        check_comparable({"forget": rows["forget"][100:]}, retrained, 300)


@pytest.mark.shared_data
def test_our_logs_have_the_metrics_of_the_published_ones(shared_data, model, base):
    sets = configured_sets(EvalConfig(eval_data=str(shared_data / "tofu")))
    assert {name: len(rows) for name, rows in sets.items()} == {
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
        "forget": 400,
    }
    ours = evaluate(model, sets, base, EvalSettings(ds_size=1, max_new_tokens=2, eval_batch_size=8))
    published = read_log(shared_data / "tofu_logs" / "phi_full.json")
    added = {TASKS["forget"]: {"gt_tokens", *TOKEN_COLUMNS}}
    assert {task: set(metrics) for task, metrics in ours.items()} == {
        task: set(metrics) | added.get(task, set()) for task, metrics in published.items()
    }
    for task in ours:
        reference = published[task]["generated_text"]["0"][2]
        assert ours[task]["generated_text"]["0"][2] == reference


@pytest.mark.shared_data
def test_the_tofu_format_asks_as_the_published_logs_do(shared_data, tokenizer):
    """In the published logs, the prompt is the question alone and the generated text begins with "Answer:"."""
    text_format = TextFormat(tokenizer, "tofu")
    published = read_log(shared_data / "tofu_logs" / "phi_full.json")
    for name, rows in configured_sets(EvalConfig(eval_data=str(shared_data / "tofu"))).items():
        task = published[TASKS[name]]
        for index in ("0", "7"):
            prompt = tokenizer.decode(encode_prompt(rows[int(index)]["question"], text_format))
            assert prompt == task["generated_text"][index][0]
            assert task["generated_text"][index][1].startswith("Answer: ")
