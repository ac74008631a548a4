"""Joining the lessons of the examples of a batch."""

import torch

from unlora.data.lessons import Lesson, join_lessons


def lesson(places, first):
    count = len(places)
    ids = torch.arange(first, first + 2 * count).view(count, 2)
    return Lesson(torch.tensor(places), ids, -ids.float(), -ids[:, 0].float())


def test_places_count_through_the_labelled_tokens_of_the_batch():
    joined = join_lessons([lesson([0, 2], 0), lesson([1], 10), lesson([0], 20)], [3, 2, 4])
    assert joined.places.tolist() == [0, 2, 4, 5]
    assert joined.ids.tolist() == [[0, 1], [2, 3], [10, 11], [20, 21]]
    assert joined.true_logp.tolist() == [0.0, -2.0, -10.0, -20.0]
