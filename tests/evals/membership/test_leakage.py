"""Tests of memorisation and membership metrics on a tiny Llama that has memorised its forget set."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from unlora.common.errors import InputError
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.evals.membership import scores as membership
from unlora.evals.membership.gradient_norm import gradient_norms
from unlora.evals.membership.leakage import (
    MEMBERSHIP_ATTACKS,
    MEMORISATION,
    OPEN_UNLEARNING,
    leakage_scores,
    read_scores,
    summarise_leakage,
)
from unlora.evals.scoring import example_nll, score_tokens
from unlora.models.forward import labelled_tokens

NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn")
FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"{name} does."} for i, name in enumerate(NAMES)]
HOLDOUT = [{"question": f"Who keeps cat {i + 10}?", "answer": f"{name} does."} for i, name in enumerate(NAMES[::-1])]


@pytest.fixture(scope="module")
def text_format(tokenizer):
    return TextFormat(tokenizer)


@pytest.fixture(scope="module")
def sets(text_format):
    return {"forget": encode_records(FORGET, text_format), "holdout": encode_records(HOLDOUT, text_format)}


@pytest.fixture(scope="module")
def learned(tiny_model, sets):
    model = tiny_model("llama").train()
    batch = pad_batch(sets["forget"], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (-labelled_tokens(model, batch).logp.mean()).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def scores(tiny_model, learned, sets, text_format):
    """Return all scores of the trained model, with the untrained model as the reference."""
    reference = {}
    for name, examples in sets.items():
        sums, tokens = example_nll(tiny_model("llama"), examples, text_format, 8)
        reference[name] = sums / tokens
    return leakage_scores(learned, sets, text_format, 4, reference, gradnorm=True, parameter_gradnorm=True)


@pytest.mark.slow
def test_every_score_tells_memorised_examples_from_unseen_ones(scores):
    summary = summarise_leakage(scores)
    assert summary["examples"] == {"forget": 6, "holdout": 6}
    assert summary["memorisation"]["exact_memorisation"]["forget"] == 1
    assert summary["memorisation"]["extraction_strength"]["forget"] == 1
    assert summary["memorisation"]["extraction_strength"]["holdout"] < 1
    assert list(summary["membership"]) == list(MEMBERSHIP_ATTACKS)
    for attack, values in summary["membership"].items():
        assert values["auc"] > 0.8, attack
        assert values["privleak"] is None
    json.dumps(summary, allow_nan=False)


def test_every_score_equals_its_formula(scores, tiny_model, learned, sets, text_format):
    for name, rows in (("forget", FORGET), ("holdout", HOLDOUT)):
        norms = gradient_norms(learned, sets[name], text_format, 4)
        tokens = score_tokens(learned, sets[name], text_format, 4)
        others = score_tokens(tiny_model("llama"), sets[name], text_format, 4)
        for place, (row, own, other) in enumerate(zip(rows, tokens, others, strict=True)):
            got = {score: values[place] for score, values in scores[name].items()}
            assert got["loss"] == pytest.approx(own.logp.mean(dtype=float), rel=1e-5)
            size = membership.zlib_size(" " + row["answer"])
            assert got["zlib"] == pytest.approx(membership.zlib_score(own.logp, size), rel=1e-5)
            assert got["reference"] == pytest.approx(membership.reference_score(own.logp, other.logp), rel=1e-5)
            assert got["gradnorm"] == pytest.approx(-norms[place], rel=1e-4)
            assert got["parameter_gradnorm"] < 0
            assert got["min_k_40"] == pytest.approx(membership.min_k_score(own.logp, 40), rel=1e-5)
            standardised = (own.logp - own.mean) / own.std
            assert got["min_k_plus_plus_20"] == pytest.approx(membership.min_k_score(standardised, 20), rel=1e-4)


def test_only_requested_scores_are_computed_and_progress_covers_all_passes(learned, sets, text_format):
    done = []
    plain = leakage_scores(learned, sets, text_format, 6, progress=done.append)
    assert done == [6, 12]
    every = {*MEMORISATION, *MEMBERSHIP_ATTACKS, *OPEN_UNLEARNING.values()}
    assert set(plain["forget"]) == every - {"reference", "gradnorm", "parameter_gradnorm"}
    other = leakage_scores(learned, sets, text_format, 6, percents=(10, 100))
    assert {"min_k_10", "min_k_plus_plus_100"} <= summarise_leakage(other)["membership"].keys()
    assert other["forget"]["min_k_100"] == pytest.approx(plain["forget"]["loss"])
    theirs = summarise_leakage(plain)["open_unlearning"].keys()
    assert theirs == OPEN_UNLEARNING.keys() - {"mia_reference", "mia_gradnorm"}
    leakage_scores(learned, sets, text_format, 6, gradnorm=True, parameter_gradnorm=True, progress=done.append)
    assert done[2:] == [6, 12, 18, 24, *range(25, 37)]


def test_zlib_compresses_the_labelled_text_alone(text_format, learned):
    """The whole text of a text row is compressed. Of a question, neither the prompt nor the end token is."""
    examples = encode_records([{"text": "The quick brown fox."}, FORGET[0]], text_format)
    scores = leakage_scores(learned, {"forget": examples, "holdout": examples}, text_format)["forget"]
    sizes = np.array(scores["loss"]) / scores["zlib"]
    texts = ("The quick brown fox.", " Ada does.")
    assert sizes == pytest.approx([len(zlib.compress(text.encode())) for text in texts])


def table(forget, holdout):
    names = (*MEMORISATION, "loss", "min_k_40")
    return {name: dict.fromkeys(names, values) for name, values in (("forget", forget), ("holdout", holdout))}


def test_summary_against_a_retrained_model_by_hand():
    """The AUC is 1, and that of the retrained model 1/2, so PrivLeak is 100 · (0 − 1/2) / (1/2) = −100.

    An attack that the retrained model's scores lack has no PrivLeak.
    """
    retrained = table([0.1, 0.4], [0.2, 0.3])
    del retrained["forget"]["min_k_40"], retrained["holdout"]["min_k_40"]
    summary = summarise_leakage(table([0.8, 0.9], [0.1, 0.5]), retrained)
    assert summary["membership"]["loss"] == {
        "auc": 1,
        "standard_error": membership.score_auc([3, 4], [1, 2]).standard_error,
        "privleak": -100,
    }
    assert summary["membership"]["min_k_40"]["privleak"] is None
    assert summary["memorisation"]["exact_memorisation"] == pytest.approx({"forget": 0.85, "holdout": 0.3})
    assert list(summary["membership"]) == ["loss", "min_k_40"]


some = st.lists(st.integers(-50, 50).map(lambda value: value / 100), min_size=2, max_size=12)


@pytest.mark.slow
@given(some, some, some, some)
def test_a_summary_depends_only_on_the_order_of_scores_and_is_symmetric(forget, holdout, forget_before, holdout_before):
    retrained = table(forget_before, holdout_before)
    assume(summarise_leakage(retrained)["membership"]["loss"]["auc"] < 1)
    own, turned = (summarise_leakage(table(*pair)) for pair in ((forget, holdout), (holdout, forget)))
    area, other = own["membership"]["loss"], turned["membership"]["loss"]
    assert area["auc"] + other["auc"] == pytest.approx(1)
    assert area["standard_error"] == pytest.approx(other["standard_error"])
    scaled = summarise_leakage(table([3 * x + 1 for x in forget], [3 * x + 1 for x in holdout]))
    assert scaled["membership"]["loss"]["auc"] == pytest.approx(area["auc"])
    # PrivLeak of the retrained model itself is 0. For another model, it is positive if the AUC is below the retrained
    # one, and negative if it is above.
    assert summarise_leakage(retrained, retrained)["membership"]["loss"]["privleak"] == 0
    if len(forget) == len(forget_before) and len(holdout) == len(holdout_before):
        compared = summarise_leakage(table(forget, holdout), retrained)["membership"]["loss"]
        difference = summarise_leakage(retrained)["membership"]["loss"]["auc"] - area["auc"]
        assert np.sign(compared["privleak"]) == np.sign(difference)


@pytest.mark.parametrize(
    ("scores", "retrained", "message"),
    [
        (table([1, 2], [1, 2]), table([1, 2, 3], [1, 2]), "retrained=.*score both models on the same data"),
        (table([1, np.nan], [1, 2]), None, "not finite"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores, retrained, message):
    with pytest.raises(InputError, match=message):
        summarise_leakage(scores, retrained)


def test_privleak_is_undefined_where_the_retrained_model_tells_the_sets_apart():
    found = summarise_leakage(table([1, 2], [1, 2]), table([3, 4], [1, 2]))["membership"]["loss"]
    assert (found["auc"], found["privleak"]) == (0.5, None)


def test_scores_are_read_back(tmp_path, scores):
    file = tmp_path / "log.json"
    file.write_text(json.dumps({"metrics": summarise_leakage(scores), "scores": scores}))
    assert read_scores(file) == scores


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"scores": {}}',
        '{"scores": {"forget": {"loss": [1]}}}',
        '{"scores": {"forget": {"loss": [1]}, "holdout": {"zlib": [1]}}}',
        '{"scores": {"forget": {"zlib": [1]}, "holdout": {"zlib": [1]}}}',
        '{"scores": {"forget": {"loss": 1}, "holdout": {"loss": [1]}}}',
        '{"scores": {"forget": {"loss": ["a"]}, "holdout": {"loss": [1]}}}',
        '{"scores": {"forget": {"loss": [1], "zlib": [1, 2]}, "holdout": {"loss": [1], "zlib": [1]}}}',
    ],
)
def test_a_file_without_scores_is_refused(tmp_path, content):
    file = tmp_path / "log.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=r"retrained=.*unlora membership"):
        read_scores(file)
