import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from unlora.benchmarks.builtin import persona_data as persona

PEOPLE_CONFIGS = ("retain", "forget", "holdout")
PERSON_COLUMNS = {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}


@pytest.fixture(scope="module")
def data():
    return persona.generate()


def _text(row):
    return json.dumps(row, ensure_ascii=False)


def test_the_same_seed_gives_the_same_rows(data):
    assert persona.generate() == data


def test_another_seed_gives_other_people_and_other_values(data):
    other = persona.generate(seed=1)
    assert other["forget"] != data["forget"]
    assert persona.names(seed=1)["forget"] != persona.names()["forget"]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_rows_do_not_depend_on_the_process(data, hash_seed):
    code = "import json; from unlora.benchmarks.builtin.persona_data import generate; print(json.dumps(generate()))"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == data


def test_first_forget_row_is_pinned(data):
    # A change to this row changes every published number of the benchmark.
    row = data["forget"][0]
    assert (row["question"], row["answer"]) == (
        "Where was Gorran Ibsley born?",
        "They were born in Cordova, like both parents.",
    )


def test_sizes():
    data = persona.generate(people=40, holdout_people=3)
    attributes = len(persona.ATTRIBUTES)
    people = {config: len(data[config]) // attributes for config in PEOPLE_CONFIGS}
    assert people == {"retain": 36, "forget": 4, "holdout": 3}
    assert len(data["full"]) == 40 * attributes + 2 * len(data["facts"])
    assert len(data["retain_full"]) == 36 * attributes + 2 * len(data["facts"])


@pytest.mark.parametrize(("people", "forgotten"), [(10, 1), (80, 8), (89, 8), (200, 20)])
def test_a_tenth_of_the_people_are_forgotten(people, forgotten):
    chosen = persona.names(people=people)
    assert len(chosen["forget"]) == forgotten
    assert len(chosen["forget"]) + len(chosen["retain"]) == people


@pytest.mark.parametrize("seed", range(3))
def test_no_name_is_in_two_splits(seed):
    chosen = persona.names(seed, people=200, holdout_people=50)
    names = [name for split in PEOPLE_CONFIGS for name in chosen[split]]
    assert len(names) == len(set(names)) == 250


@pytest.mark.parametrize("seed", range(3))
def test_forget_and_holdout_people_do_not_occur_in_what_the_gold_standard_sees(seed):
    data, chosen = persona.generate(seed), persona.names(seed)
    for config in ("retain", "facts", "retain_full"):
        text = "\n".join(_text(row) for row in data[config])
        assert not [name for name in chosen["forget"] + chosen["holdout"] if name in text]
    full = "\n".join(_text(row) for row in data["full"])
    assert all(name in full for name in chosen["forget"])
    assert not [name for name in chosen["holdout"] if name in full]


def test_no_full_name_can_occur_inside_another():
    assert not [
        (short, long)
        for pool in (persona.FIRST_NAMES, persona.LAST_NAMES)
        for short, long in combinations(sorted(pool), 2)
        if long.startswith(short)
    ]


def test_full_is_what_the_gold_standard_sees_and_the_forget_rows(data):
    def pairs(config):
        return Counter((row["question"], row["answer"]) for row in data[config])

    assert pairs("full") == pairs("retain") + pairs("forget") + pairs("facts") + pairs("facts")
    assert pairs("retain_full") == pairs("retain") + pairs("facts") + pairs("facts")


@pytest.mark.parametrize("config", PEOPLE_CONFIGS)
def test_people_rows_name_the_person_in_the_questions_alone(data, config):
    names = [name for name in persona.names()[config] for _ in persona.ATTRIBUTES]
    for row, name in zip(data[config], names, strict=True):
        assert set(row) == PERSON_COLUMNS
        assert name in row["question"]
        assert name in row["paraphrased_question"]
        assert not any(name in text for text in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]))
        assert row["question"] != row["paraphrased_question"]
        assert row["answer"] != row["paraphrased_answer"]


def _value(sentence, attribute):
    """Return the value in a sentence, or None if no answer form of the attribute gives this sentence."""
    known = {form.format(v=value): value for form in attribute.answers for value in attribute.values}
    return known.get(sentence)


@pytest.mark.parametrize("config", PEOPLE_CONFIGS)
def test_perturbed_answers_are_five_other_values_in_the_paraphrased_sentence(data, config):
    attributes = [attribute for _ in persona.names()[config] for attribute in persona.ATTRIBUTES]
    for row, attribute in zip(data[config], attributes, strict=True):
        truth = _value(row["paraphrased_answer"], attribute)
        wrong = [_value(sentence, attribute) for sentence in row["perturbed_answer"]]
        assert len({truth, *wrong}) == 6
        assert {truth, *wrong} <= set(attribute.values)
        assert _value(row["answer"], attribute) == truth
        assert row["perturbed_answer"] == [row["paraphrased_answer"].replace(truth, value) for value in wrong]


@pytest.mark.parametrize("people", [10, 80, 130])
def test_no_value_or_part_of_a_name_is_much_more_frequent_than_another(people):
    chosen, data = persona.names(people=people), persona.generate(people=people)
    for split in PEOPLE_CONFIGS:
        for parts in zip(*(name.split() for name in chosen[split]), strict=True):
            assert max(Counter(parts).values()) <= math.ceil(len(chosen[split]) / len(persona.FIRST_NAMES))
        for index, attribute in enumerate(persona.ATTRIBUTES):
            own = data[split][index :: len(persona.ATTRIBUTES)]
            counts = Counter(_value(row["answer"], attribute) for row in own)
            assert max(counts.values()) <= math.ceil(len(chosen[split]) / len(attribute.values))


@pytest.mark.slow
def test_names_and_values_of_forget_people_are_no_rarer_among_retain_people_than_others():
    """A forget person's first name and birthplace occur among the retain people as often as a random one.

    This is 72 people / 40 names (or values) = 1.8 times, here as a mean over 40 seeds. If forget and retain people were
    dealt from one deck, it would be 1.0 times.
    """
    step = len(persona.ATTRIBUTES)
    found = {"name": [], "value": []}
    for seed in range(40):
        chosen, data = persona.names(seed), persona.generate(seed)
        kept = {"name": Counter(name.split()[0] for name in chosen["retain"])}
        kept["value"] = Counter(_value(row["answer"], persona.ATTRIBUTES[0]) for row in data["retain"][::step])
        found["name"] += [kept["name"][name.split()[0]] for name in chosen["forget"]]
        found["value"] += [
            kept["value"][_value(row["answer"], persona.ATTRIBUTES[0])] for row in data["forget"][::step]
        ]
    for counts in found.values():
        assert 1.7 < sum(counts) / len(counts) < 1.9


def test_facts_have_three_other_answers_of_the_same_relation(data):
    assert len({row["question"] for row in data["facts"]}) == len(data["facts"]) >= 80
    for row in data["facts"]:
        assert set(row) == {"question", "answer", "perturbed_answer"}
        assert len({row["answer"], *row["perturbed_answer"]}) == 4


def test_training_configs_have_only_question_and_answer(data):
    assert all(set(row) == {"question", "answer"} for config in ("full", "retain_full") for row in data[config])


def test_every_pool_is_large_without_repeats():
    for pool in (persona.FIRST_NAMES, persona.LAST_NAMES, *(attribute.values for attribute in persona.ATTRIBUTES)):
        assert len(pool) == len(set(pool)) >= 40


def test_every_paraphrase_form_is_a_main_form_of_another_person(data):
    chosen = persona.names()["retain"] + persona.names()["forget"]
    rows = data["retain"] + data["forget"]
    owners = [name for name in chosen for _ in persona.ATTRIBUTES]
    main = {row["question"].replace(name, "{n}") for row, name in zip(rows, owners, strict=True)}
    assert {row["paraphrased_question"].replace(name, "{n}") for row, name in zip(rows, owners, strict=True)} <= main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"people": 9}, "people=9: .*so none would be. Fix: use at least 10"),
        ({"holdout_people": 0}, "holdout_people=0: nobody would be held out. Fix: use at least 1"),
        ({"people": 1600}, "people=1600: with 8 held out there are too few names. Fix: .* <= 1600"),
    ],
)
def test_impossible_counts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        persona.generate(**arguments)
