"""The ranking of a grid's methods, rows from logs of other runs, and the files for open-unlearning."""

import json

import pytest

from unlora import InputError
from unlora.bench import Cell, rows_of
from unlora.bench.logs import Measurement, SharedLogs
from unlora.bench.ranking import ranked, write_community
from unlora.bench.table import markdown
from unlora.benchmarks import find_benchmark
from unlora.benchmarks.tofu import Tofu, _holdout
from unlora.cli import main
from unlora.runs.folder import EVALUATIONS, REPORT
from unlora.runs.stages import STAGES
from unlora.settings import ModelConfig

ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")


def summary(path, forgotten, auc, utility=0.6, quality=0.01):
    """Write a log with only aggregated values, whose memorisation metrics are all `1 - forgotten`. Return its path."""
    memorised = ("extraction_strength", "exact_memorization", "forget_Q_A_PARA_Prob", "forget_truth_ratio_prob_mean")
    values = {**dict.fromkeys(memorised, 1 - forgotten), **dict.fromkeys(ATTACKS, auc)}
    path.parent.mkdir(parents=True, exist_ok=True)
    fluent = {"forget_Q_A_gibberish": 0.8}
    path.write_text(json.dumps({**values, **fluent, "model_utility": utility, "forget_quality": quality}))
    return path


@pytest.fixture
def grid(tmp_path):
    """Return cells, reference logs and rows of two finished methods and of one that was unlearned elsewhere."""
    cells = [Cell(method, "forget10", 0, tmp_path / method) for method in ("vila+ihl", "lora+gd")]
    for cell, forgotten in zip(cells, (0.2, 0.5), strict=True):
        summary(cell.folder / "run" / EVALUATIONS["unlearned"], forgotten, 0.5)
        stages = {"settings": {}, "contents": {}, "stages": {REPORT: ""}}
        (cell.folder / "run" / STAGES).write_text(json.dumps(stages))
    logs = {"original": summary(tmp_path / "o.json", 0.1, 1.0), "retrained": summary(tmp_path / "r.json", 0.5, 0.5)}
    others = {"forget10": {"NPO": summary(tmp_path / "n.json", 0.4, 0.5, utility=0.3)}}
    references = {("forget10", 0): logs}
    return cells, references, rows_of(cells, references, Tofu(), lambda method, split: f"run {method}", others)


def test_the_best_method_of_a_split_comes_first_after_the_models(grid):
    """The overall score is the harmonic mean of memorisation, privacy and utility.

    lora+gd: 1/2, 1 and 1 give 3/4. vila+ihl: 1/5, 1 and 1 give 3/7. NPO: 2/5, 1 and 2/3 give 3/5, where 2/3 is the
    harmonic mean of 1/2 (model utility) and 1 (fluency).
    """
    cells, references, rows = grid
    order = ranked(cells, references, Tofu(), rows)
    assert [row.method for row in order] == ["retrained", "original", "lora+gd", "NPO", "vila+ihl"]
    assert [row.values["overall"][0] for row in order[2:]] == pytest.approx([3 / 4, 3 / 5, 3 / 7])
    assert order[1].values["privacy"] == [0]
    assert "| forget10 | lora+gd | 1 | **0.750** | **0.500** | **1.000** | **1.000** |" in markdown(order, Tofu())


def test_a_row_from_elsewhere_has_its_numbers_and_says_where_they_are_from(grid):
    row = next(row for row in grid[-1] if row.method == "NPO")
    assert (row.values["model utility, geometric"], row.values["log10 forget quality"]) == ([0.3], [-2])
    assert row.command.startswith("# its log was given: ")


def test_the_files_for_open_unlearning_are_complete(grid, tmp_path):
    cells, references, rows = grid
    write_community(tmp_path / "out", cells, references, Tofu(), rows)
    place = tmp_path / "out" / "community" / "methods" / "vila-ihl"
    assert "run vila+ihl" in (place / "run.sh").read_text()
    assert "| forget10 | 1.00e-02 | 0.60 |" in (place / "README.md").read_text()
    assert json.loads((place / "evals/forget10/seed-0/TOFU_SUMMARY.json").read_text())["mia_loss"] == 0.5
    assert (tmp_path / "out/community/evals/retrained-forget10-seed-0/TOFU_EVAL.json").is_file()
    assert "| forget10 | Retain | 1.00e-02 | 0.60 |" in (tmp_path / "out/community/leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("NPO", "write it as forget01:NPO=LOG.json"),
        ("NPO=x.json", "each needs one of the splits forget01, forget05, forget10"),
        ("forget10:NPO=missing.json", "cannot be read"),
    ],
)
def test_a_row_that_names_no_split_or_no_log_is_refused_before_anything_runs(tmp_path, capsys, row, message):
    flags = ["--output_dir", str(tmp_path / "b"), "--model_name_or_path", "m", "--data", "d", "--rows", row]
    assert main(["bench", "tofu", *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_holdout_set_is_taken_where_the_data_has_one(tmp_path):
    assert _holdout("locuslab/TOFU", "forget10") == "holdout10"
    assert _holdout(str(tmp_path), "forget10") == "none"
    (tmp_path / "holdout10.jsonl").touch()
    assert _holdout(str(tmp_path), "forget10") == "holdout10"


def test_logs_at_hand_take_the_place_of_evaluations(tmp_path):
    """The model "nothing" does not exist, so evaluating it would be an error."""
    names = {name: tmp_path / f"{name}.json" for name in ("original", "retrained")}
    for path in names.values():
        path.write_text("{}")
    shared, model = SharedLogs(tmp_path), ModelConfig("nothing")
    measurement = Measurement(find_benchmark("tofu"), {})
    assert shared.references(measurement, model, str(names["retrained"]), str(names["original"])) == names
    with pytest.raises(InputError, match=r"original_log='.*none\.json': no such file"):
        shared.references(measurement, model, None, str(tmp_path / "none.json"))
