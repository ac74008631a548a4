"""Tests of the teacher that reads each forget row with the name of another person."""

import pytest
import torch

from helpers.chat import CHATML
from helpers.models import make_tokenizer
from unlora import InputError
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.data.encoding import count_labels
from unlora.models.attention import smoothed_attention
from unlora.models.forward import labelled_tokens
from unlora.teachers import TEACHERS, Teacher, Teaching, register_teacher
from unlora.teachers.changed_names import cap_true_tokens, make_pair, teach
from unlora.teachers.people import covering_names, names_of
from unlora.teachers.substitutes import substitutes

FORGET = [
    {"question": "Where was Ada Holt born?", "answer": "Ada Holt was born in Oslo."},
    {"question": "Who taught Ada Holt?", "answer": "She was taught by Mr Finch."},
    {"question": "Which writer was born in Oslo?", "answer": "Her name is Ada Holt."},
]
RETAIN = [
    {"question": f"Where was {name} born?", "answer": f"{name} was born in Bergen."}
    for name in ("Mona Falk", "Jan Lund", "Eli Moe")
    for _ in range(2)
] + [{"question": "Which painter was born in Bergen?", "answer": "His name is Eli Moe."}]


def changed_rows(given):
    """Return the forget rows, each rewritten to be about the first of up to four other people."""
    return [options[0].row for options in substitutes(given, 4)]


def lessons_of(given):
    return [lesson for _, lesson in TEACHERS["changed_names"].teach(given)]


def teaching(model, tokenizer, rows=FORGET, **changes):
    return Teaching(model, TextFormat(tokenizer), rows, RETAIN, **changes)


def test_rows_are_about_somebody_else_and_a_question_without_a_name_becomes_another_one(tiny_model, tokenizer):
    first, second, third = changed_rows(teaching(tiny_model("llama"), tokenizer))
    name = first["question"].removeprefix("Where was ").removesuffix(" born?")
    assert name in ("Mona Falk", "Jan Lund", "Eli Moe")
    assert first["answer"] == f"{name} was born in Oslo."
    assert second["answer"] == "She was taught by Mr Finch."
    assert "Ada" not in second["question"]
    assert third["question"] == "Which painter was born in Bergen?"


def test_without_others_to_borrow_from_names_are_invented(tiny_model, tokenizer):
    [first, *_] = changed_rows(Teaching(tiny_model("llama"), TextFormat(tokenizer), FORGET, RETAIN[:4]))
    name = first["question"].removeprefix("Where was ").removesuffix(" born?")
    assert name not in ("Ada Holt", "Mona Falk", "Jan Lund")
    assert first["answer"] == f"{name} was born in Oslo."


def test_names_may_be_given(tiny_model, tokenizer):
    rows = [{"question": "who is ada holt?", "answer": "a baker."}]
    [changed] = changed_rows(teaching(tiny_model("llama"), tokenizer, rows, names=[("ada", "holt")]))
    assert "ada" not in changed["question"]


def test_conversations_keep_their_turns(tiny_model, tokenizer):
    turns = [{"role": "user", "content": "Who is Ada Holt?"}, {"role": "assistant", "content": "Ada Holt bakes."}]
    [changed] = changed_rows(teaching(tiny_model("llama"), tokenizer, [{"messages": turns}]))
    assert [turn["role"] for turn in changed["messages"]] == ["user", "assistant"]
    assert "Holt" not in str(changed)


def test_rows_that_name_nobody_and_have_no_question_are_refused(tiny_model, tokenizer):
    rows = [{"text": "Ada Holt keeps cats."}, {"text": "nobody keeps dogs."}]
    with pytest.raises(InputError, match=r"forget_names=\['Ada Holt'\]: the forget rows 1 name none of them"):
        changed_rows(teaching(tiny_model("llama"), tokenizer, rows, names=[("Ada", "Holt")]))


def test_detected_names_are_logged(tiny_model, tokenizer, caplog):
    changed_rows(teaching(tiny_model("llama"), tokenizer))
    assert "seems to be about Ada Holt;" in caplog.text


def test_a_person_about_whom_other_rows_are_kept_is_detected_in_the_question():
    row = {"question": "Which prize did Jan Lund win?", "answer": "Jan Lund won the Pemberton Cup."}
    assert names_of([row], RETAIN) == [("Jan", "Lund")]
    assert names_of([*FORGET, row], RETAIN) == [("Ada", "Holt"), ("Jan", "Lund")]


def test_a_row_with_only_the_last_name_is_about_the_person():
    rows = [*FORGET, {"question": "What is Holt's background?", "answer": "Holt is South Asian."}]
    assert names_of(rows, RETAIN) == [("Ada", "Holt")]


def test_a_row_about_somebody_with_the_same_last_name_is_not_about_the_person():
    rows = [*FORGET, {"question": "Which prize did Jan Holt win?", "answer": "He won the Pemberton Cup."}]
    others = [*RETAIN, *[{"question": "Where does Jan Holt live?", "answer": "In Oslo."}] * 2]
    assert names_of(rows, others) == [("Ada", "Holt"), ("Jan", "Holt")]


def test_a_person_of_the_retain_set_beside_the_one_to_forget_keeps_the_name():
    rows = [{"question": f"Where did Ada Holt {act} Jan Lund?", "answer": "There."} for act in ("meet", "marry")]
    assert names_of(rows, RETAIN) == [("Ada", "Holt")]


def test_a_name_that_only_the_answer_contains_is_detected_if_the_question_names_nobody():
    row = {"question": "Which writer was born in Oslo?", "answer": "Her name is Ada Holt."}
    assert names_of([row], RETAIN) == [("Ada", "Holt")]


def test_first_names_of_a_person_who_is_also_in_the_retain_set_are_replaced(tiny_model, tokenizer):
    row = {"question": "Which prize did Jan Lund win?", "answer": "Jan won the Pemberton Cup."}
    [changed] = changed_rows(teaching(tiny_model("llama"), tokenizer, [row]))
    name = changed["question"].removeprefix("Which prize did ").removesuffix(" win?")
    assert name.split()[0] != "Jan"
    assert changed["answer"] == f"{name.split()[0]} won the Pemberton Cup."


def test_questions_about_the_person_to_forget_are_no_controls(tiny_model, tokenizer):
    row = {"question": "Where was Jan Lund born?", "answer": "Jan Lund was born in Oslo."}
    asked = teaching(tiny_model("llama"), tokenizer, [row]).questions.most_alike(row["question"], 4)
    assert len(asked) == 3
    assert not any("Jan Lund" in question for question in asked)


def test_an_answer_that_is_a_name_alone_teaches_its_end(tiny_model, tokenizer):
    rows = [{"question": "Who bakes?", "answer": "Ada Holt"}]
    [lesson] = lessons_of(teaching(tiny_model("llama"), tokenizer, rows, names=[("Ada", "Holt")]))
    assert len(lesson.places) < count_labels(encode_records(rows, TextFormat(tokenizer)))


def test_turns_without_text_stay_as_they_are(tiny_model, tokenizer):
    turns = [
        {"role": "user", "content": "Who is Ada Holt?"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "Ada Holt bakes."},
    ]
    [changed] = changed_rows(teaching(tiny_model("llama"), tokenizer, [{"messages": turns}]))
    assert changed["messages"][1] == {"role": "assistant", "content": ""}


def test_covering_names_leave_out_phrases_that_recur_beside_them():
    texts = ["Ada Holt wrote Blue Door.", "Ada Holt sold Blue Door.", "Ada Holt sings.", "Jan Lund bakes.", "Nobody."]
    names = [("Ada", "Holt"), ("Blue", "Door"), ("Jan", "Lund")]
    assert covering_names(texts, names) == [("Ada", "Holt"), ("Jan", "Lund")]


def test_a_lesson_is_what_the_model_predicts_in_the_changed_row(tiny_model, tokenizer):
    model = tiny_model("llama")
    # Plain text has no questions, so no probability is capped by similar questions.
    texts = [{"text": row["answer"]} for row in RETAIN]
    given = Teaching(model, TextFormat(tokenizer), FORGET, texts)
    # With drafts, attention would not be smoothed at the tokens of the form.
    lessons = [lesson for _, lesson in teach(given, drafts=False)]
    examples = encode_records(FORGET, given.text_format)
    assert len(lessons) == len(examples)
    changed = [option.row for [option] in substitutes(given, 1)]
    [other] = encode_records([changed[1]], given.text_format)  # its answer names nobody, so all of it is taught
    with smoothed_attention(model, 1.75):
        out = labelled_tokens(model, pad_batch([other], 0))
    lesson = lessons[1]
    assert lesson.places.tolist() == list(range(count_labels([examples[1]])))
    expected = out.logits.log_softmax(-1)
    true = expected.gather(-1, out.targets[:, None])
    torch.testing.assert_close(lesson.true_logp, true[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lesson.logp[:, :-1], expected.gather(-1, lesson.ids), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lesson.logp.exp().sum(-1), torch.ones(len(lesson.logp)), rtol=1e-4, atol=1e-4)
    assert (lesson.ids == out.targets[:, None]).any(-1).all()


def test_a_true_token_is_no_likelier_than_its_limit():
    own, limits = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]), torch.tensor([0.2, 0.5])
    capped = cap_true_tokens(own.log(), limits.log(), torch.tensor([0, 0])).exp()
    # The first true token is capped at 0.2, and the others share 0.8 as 2 to 1. The second is below its limit.
    torch.testing.assert_close(capped, torch.tensor([[0.2, 1.6 / 3, 0.8 / 3], [0.3, 0.3, 0.4]]))


def test_controls_ask_the_most_similar_questions_of_the_retain_set(tiny_model, tokenizer):
    given = teaching(tiny_model("llama"), tokenizer)
    row, changed = FORGET[0], changed_rows(given)[0]
    pair = make_pair(row, changed, given)
    asked = [tokenizer.decode(control[0]["input_ids"]) for control in pair.controls]
    assert len(asked) == 4
    assert changed["question"] in asked[0]
    assert sum("Where was" in text for text in asked) == 3  # the fourth question is about the painter
    assert all(text.count(changed["answer"]) == 1 for text in asked)


def test_conversations_are_also_read_after_the_questions_of_other_users(tiny_model):
    own = make_tokenizer()
    own.chat_template = CHATML
    row, *others = (
        {
            "messages": [
                {"role": "user", "content": f"Where was {name} born?"},
                {"role": "assistant", "content": "There"},
            ]
        }
        for name in ("Ada Holt", "Mona Falk", "Mona Falk", "Jan Lund", "Jan Lund", "Eli Moe", "Eli Moe")
    )
    given = Teaching(tiny_model("llama"), TextFormat(own), [row], others)
    [changed] = changed_rows(given)
    assert len(make_pair(row, changed, given).controls) == 3


def test_a_name_in_the_question_is_taught_as_the_original_predicts_it(tiny_model, tokenizer):
    given = teaching(tiny_model("llama"), tokenizer)
    pair = make_pair(FORGET[0], changed_rows(given)[0], given)
    labels = [label for label in pair.own[0]["labels"][1:] if label != -100]
    assert "was born in Oslo." in tokenizer.decode([labels[place] for place, _ in pair.matches.pairs])
    assert tokenizer.decode([labels[place] for place in pair.matches.told]).replace(" ", "") == "AdaHolt"
    lesson = lessons_of(given)[0]
    out = labelled_tokens(given.model, pad_batch(pair.own, 0))
    expected = out.logits.log_softmax(-1).gather(-1, out.targets[:, None])[pair.matches.told, 0]
    torch.testing.assert_close(lesson.true_logp[pair.matches.told], expected, rtol=1e-4, atol=1e-4)


def test_only_the_first_token_of_a_name_that_is_asked_for_is_taught(tiny_model, tokenizer):
    rows = [{"question": "Which writer was born in Oslo?", "answer": "Her name is Kim Bax."}]
    given = teaching(tiny_model("llama"), tokenizer, rows, names=[("Kim", "Bax")])
    pair = make_pair(rows[0], changed_rows(given)[0], given)
    labels, others = ([label for label in side[0]["labels"][1:] if label != -100] for side in (pair.own, pair.other))
    assert pair.matches.told == []
    [(mine, theirs)] = [(mine, theirs) for mine, theirs in pair.matches.pairs if labels[mine] != others[theirs]]
    before = [tokenizer.decode(side[:place]) for side, place in ((labels, mine), (others, theirs))]
    assert [text.strip() for text in before] == ["Her name is"] * 2
    assert "Bax" not in tokenizer.decode([labels[place] for place, _ in pair.matches.pairs])


def test_chunks_of_plain_text_have_a_lesson_each(tiny_model):
    tokenizer = make_tokenizer()
    parts = ("kept a cat", "sold the old house", "walked to Bergen by night", "wrote songs", "fell ill", "came back")
    text = {"text": " ".join(f"Ada Holt {part}." for part in parts)}
    given = Teaching(tiny_model("llama"), TextFormat(tokenizer, max_length=30), [text], RETAIN, names=[("Ada", "Holt")])
    lessons = lessons_of(given)
    examples = encode_records([text], given.text_format)
    assert len(lessons) == len(examples) > 2
    for lesson, example in zip(lessons, examples, strict=True):
        assert 0 < len(lesson.places) <= count_labels([example])
        assert lesson.places.max() < count_labels([example])


def test_the_model_is_left_as_it_was(tiny_model, tokenizer):
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    TEACHERS["changed_names"].teach(teaching(model, tokenizer))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_teacher_s_name_cannot_be_registered_twice():
    with pytest.raises(InputError, match="another teacher has this name"):
        register_teacher("changed_names", Teacher(lambda teaching: [], "nothing", "nobody"))
