import pytest

from unlora.data import ForgetRetainDataset, PairSampler

SIZES = [(4, 10), (10, 4), (6, 6), (7, 3), (1, 5), (5, 1)]  # number of forget examples, number of retain examples


def example(number):
    return {"input_ids": [number], "labels": [number]}


def drawn(forget, retain, epochs, seed=42):
    """Return (forget number, retain number, pair number) in the order of training, as one list for each epoch."""
    data = ForgetRetainDataset([example(i) for i in range(forget)], [example(i) for i in range(retain)], seed)
    sampler = PairSampler(len(data))
    result = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        rows = [(data[pair], pair) for pair in sampler]
        result.append([(row["forget"]["input_ids"][0], row["retain"]["input_ids"][0], pair) for row, pair in rows])
    return result


@pytest.mark.parametrize(("forget", "retain"), SIZES)
def test_each_forget_example_comes_once_an_epoch(forget, retain):
    for epoch in drawn(forget, retain, epochs=4):
        assert sorted(row[0] for row in epoch) == list(range(forget))


@pytest.mark.parametrize(("forget", "retain"), SIZES)
def test_all_retain_examples_are_dealt_before_any_is_dealt_again(forget, retain):
    rows = [row for epoch in drawn(forget, retain, epochs=2 * retain) for row in epoch]
    assert [pair for _, _, pair in rows] == list(range(2 * retain * forget))
    dealt = [retain_number for _, retain_number, _ in rows]
    for start in range(0, len(dealt), retain):
        assert sorted(dealt[start : start + retain]) == list(range(retain))


def test_pairs_depend_on_seed_and_epoch_alone():
    first = drawn(8, 11, epochs=3)
    assert drawn(8, 11, epochs=3) == first
    data = ForgetRetainDataset([example(i) for i in range(8)], [example(i) for i in range(11)], 42)
    sampler = PairSampler(8)
    sampler.set_epoch(2)  # as a run that resumes in this epoch: earlier epochs do not matter
    assert [(data[pair]["forget"]["input_ids"][0], data[pair]["retain"]["input_ids"][0]) for pair in sampler] == [
        row[:2] for row in first[2]
    ]


def test_epochs_and_seeds_differ_in_order_and_in_partners():
    first, second = drawn(20, 20, epochs=2)
    other = drawn(20, 20, epochs=1, seed=43)[0]
    for rows in (second, other):
        assert [row[0] for row in rows] != [row[0] for row in first]
        assert {row[0]: row[1] for row in rows} != {row[0]: row[1] for row in first}


def test_the_order_of_an_epoch_is_not_the_order_of_the_deck():
    """If both decks had the same permutation, forget example i would always be paired with retain example i."""
    [rows] = drawn(20, 20, epochs=1)
    assert [row[0] for row in rows] != [row[1] for row in rows]


def test_references_stay_with_their_forget_example():
    data = ForgetRetainDataset([example(i) for i in range(4)], None, ref_logp={"forget": [0.0, -1.0, -2.0, -3.0]})
    sampler = PairSampler(4)
    sampler.set_epoch(3)
    for pair in sampler:
        row = data[pair]
        assert row["ref_logp"] == {"forget": -row["forget"]["input_ids"][0]}
        assert row["retain"] is None
        assert row["alternate"] is None


def test_alternates_and_their_references_stay_with_their_forget_example():
    values = {"forget": [0.0, -1.0, -2.0], "alternate": [0.0, -10.0, -20.0]}
    alternates = [example(10 * i) for i in range(3)]
    data = ForgetRetainDataset([example(i) for i in range(3)], None, alternates=alternates, ref_logp=values)
    rows = [data[pair] for pair in range(9)]
    for row in rows:
        number = row["forget"]["input_ids"][0]
        assert row["alternate"] == example(10 * number)
        assert row["ref_logp"] == {"forget": -number, "alternate": -10 * number}
    assert {row["forget"]["input_ids"][0] for row in rows} == {0, 1, 2}


def test_an_epoch_is_as_long_as_the_forget_set():
    assert len(ForgetRetainDataset([example(0)] * 3, [example(1)] * 9)) == len(PairSampler(3)) == 3
