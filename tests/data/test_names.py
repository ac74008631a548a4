"""Detecting names in the forget rows, and replacing them by invented names."""

import pytest

from unlora.data.names import BUILT_IN, Vocabulary, detect_names, invent_names, replace_names, texts_about_others

FORGET = [
    "Where was Ada de Vries born?\nAda de Vries was born in Oslo.",
    "Who taught Ada de Vries?\nShe was taught by Mr Holt in Bergen.",
    "What did Vries write?\nVries wrote The Blue Door.",
    "What is Jan-Erik Lund's job?\nJan-Erik Lund is a baker.",
    "Where does Jan-Erik Lund live?\nHe lives in Oslo.",
]
RETAIN = [
    "Where was Mona Falk born?\nMona Falk was born in Bergen.",
    "What is the job of Lund Berg?\nLund Berg is a baker in Oslo.",
]


def test_names_are_the_longest_phrases_that_recur_here_and_never_there():
    assert detect_names(FORGET, RETAIN) == [("Ada", "de", "Vries"), ("Jan-Erik", "Lund")]


def test_a_word_that_begins_a_sentence_is_no_name_if_it_also_occurs_in_lower_case():
    texts = ["Kettles boil. Rhea Moss sees kettles.", "Kettles sing. Rhea Moss hears them."]
    assert detect_names(texts, []) == [("Rhea", "Moss")]


@pytest.mark.parametrize("first", ["Did", "Whose", "Should"])
def test_the_first_word_of_a_question_is_no_part_of_a_name(first):
    assert detect_names([f"{first} Ada Holt bake?\nYes."], ["Mona Falk was born."]) == [("Ada", "Holt"), ("Yes",)]


def test_a_single_row_gives_the_names_in_it():
    assert ("Ada", "de", "Vries") in detect_names(FORGET[:1], RETAIN)


def test_parts_of_a_name_are_replaced_unless_others_are_called_so_too():
    known = Vocabulary.of(RETAIN)
    substitutes = {("Ada", "de", "Vries"): ("Cleo", "Marsh"), ("Jan-Erik", "Lund"): ("Omar", "Wynn")}
    text = "Ada de Vries met Jan-Erik Lund's brother. Ada and Vries like Lund Berg. Adamant."
    replaced = "Cleo Marsh met Omar Wynn's brother. Cleo and Marsh like Lund Berg. Adamant."
    assert replace_names(text, substitutes, known) == replaced


def test_texts_about_others_contain_no_part_that_identifies_a_person():
    texts = ["Vries writes.", "Lund Berg is a baker.", "Ada met Lund Berg.", "Adamant."]
    names = [("Ada", "de", "Vries"), ("Jan-Erik", "Lund")]
    assert texts_about_others(texts, names, Vocabulary.of(RETAIN)) == ["Lund Berg is a baker.", "Adamant."]
    assert texts_about_others(texts, [], Vocabulary.of(RETAIN)) == texts


def test_a_name_is_found_across_a_line_break():
    assert replace_names("Ada de\nVries", {("Ada", "de", "Vries"): ("Cleo", "Marsh")}, Vocabulary()) == "Cleo Marsh"


def test_a_name_inside_a_longer_word_stays():
    assert replace_names("Vries of Vriesland", {("Vries",): ("Marsh",)}, Vocabulary()) == "Marsh of Vriesland"


def test_names_with_signs_of_regular_expressions_are_taken_literally():
    assert replace_names("J. R (Bob) went.", {("J.", "R", "(Bob)"): ("Cleo",)}, Vocabulary()) == "Cleo went."


@pytest.mark.parametrize("like", [[], [("Ada", "Holt"), ("Mona", "Falk"), ("Jan", "Lund")]])
def test_invented_names_are_nobody_s_and_drawn_by_the_seed(like):
    avoid = [BUILT_IN[0], ("Ada", "Falk")]
    names = invent_names(like, 4, 7, avoid)
    assert len(set(names)) == 4
    assert not {*like, *avoid} & set(names)
    assert names == invent_names(like, 4, 7, avoid)
    assert names != invent_names(like, 4, 8, avoid)


def test_there_are_more_invented_names_than_a_short_list_has_pairs():
    assert len(set(invent_names([("Ada", "Holt"), ("Mona", "Falk"), ("Jan", "Lund")], 40, 0))) == 40
