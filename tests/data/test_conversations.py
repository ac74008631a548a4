"""Conversations of all common forms are converted to one form."""

import json

import pytest

from unlora.common.errors import InputError
from unlora.data import answers_of
from unlora.data.conversations import Context, read_turns
from unlora.data.sources import check_rows, fingerprint

SYSTEM = {"role": "system", "content": "You are kind."}
CALL = {"type": "function", "function": {"name": "find", "arguments": '{"q": "Orla"}'}}
TOOLS = [
    {"role": "user", "content": "Where does Orla live?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "Tarrow", "tool_call_id": "1"},
    {"role": "assistant", "content": "In Tarrow."},
    {"role": "user", "content": "And what does she paint?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Har"}, {"type": "text", "text": "bours."}]},
]


def test_every_turn_of_the_assistant_with_a_text_is_an_answer_after_its_own_context():
    first, second = answers_of({"messages": [SYSTEM, *TOOLS]}, "data[7]")
    assert (first.answer, second.answer) == ("In Tarrow.", "Harbours.")
    assert (first.where, second.where) == ("data[7].messages[4]", "data[7].messages[6]")
    assert [turn["role"] for turn in first.asked.turns] == ["system", "user", "assistant", "tool"]
    assert first.asked.turns[2]["content"] == ""
    assert first.asked.turns[2]["tool_calls"][0]["function"]["arguments"] == {"q": "Orla"}
    assert second.asked.turns == read_turns([SYSTEM, *TOOLS])[:-1]
    assert first.asked.shown()[2] == ["assistant", '{"name": "find", "arguments": {"q": "Orla"}}']
    assert first.asked != second.asked
    assert first.asked == answers_of({"messages": [SYSTEM, *TOOLS[:4]]})[0].asked


@pytest.mark.parametrize("form", ["json", "parts", "gaps", "named"])
def test_other_forms_of_a_conversation_say_the_same(form):
    turns = [SYSTEM, *TOOLS[4:]]
    plain = [*turns[:2], {**turns[2], "content": "Harbours."}]
    forms = {
        "json": json.dumps(turns),
        "parts": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in plain],
        "gaps": [{**turn, "tool_calls": None, "name": None} for turn in plain],
        "named": [{**turn, "id": place} for place, turn in enumerate(plain)],
    }
    assert (
        fingerprint({"messages": forms[form]})
        == fingerprint({"messages": plain})
        == json.dumps([plain, None], sort_keys=True)
    )
    assert [one.answer for one in answers_of({"messages": forms[form]})] == ["Harbours."]


def test_the_assistant_may_begin():
    [one] = answers_of({"messages": [{"role": "assistant", "content": "Hello, this is Nori."}, TOOLS[0]]})
    assert (one.asked.turns, one.answer) == ([], "Hello, this is Nori.")


def test_columns_belong_to_the_only_answer_or_to_each_turn():
    wrong = {"perturbed_answer": ["In Oslo."]}
    [one] = answers_of({"messages": TOOLS[:4], **wrong})
    assert one.columns["perturbed_answer"] == ["In Oslo."]
    first, second = answers_of({"messages": [*TOOLS[:3], {**TOOLS[3], **wrong}, *TOOLS[4:]]})
    assert (first.columns.get("perturbed_answer"), second.columns.get("perturbed_answer")) == (["In Oslo."], None)
    with pytest.raises(InputError, match=r"row.perturbed_answer=.*has 2 answers.*assistant's turn"):
        answers_of({"messages": TOOLS, **wrong})


def test_thoughts_stay_beside_an_answer_only_where_thinking_is_wanted():
    turn = {**TOOLS[3], "reasoning_content": "Let me see.", "tool_calls": [CALL]}
    [one] = answers_of({"messages": [*TOOLS[:3], turn]})
    assert one.asked.answered("In Oslo.", thinks=True)[-1]["reasoning_content"] == "Let me see."
    said = one.asked.answered("In Oslo.")[-1]
    assert said == {"role": "assistant", "content": "In Oslo.", "tool_calls": read_turns([turn])[0]["tool_calls"]}


def test_turns_go_behind_a_system_prompt_and_a_question_replaces_the_last():
    context = Context.of([SYSTEM, *TOOLS[:1]])
    assert context.after(TOOLS[4:5]).turns == [SYSTEM, TOOLS[4], TOOLS[0]]
    assert context.asking("Who?").turns == [SYSTEM, {"role": "user", "content": "Who?"}]
    assert str(context) == "You are kind.\nWhere does Orla live?"


WRONG = {
    "no list": ("Hello", r"\[3\].messages='Hello'.*list of turns with role and content"),
    "empty": ([], r"\[3\].messages=\[\].*list of turns"),
    "no turns": (["Hello"], r"\[3\].messages\[0\]='Hello'.*role and content"),
    "other keys": ([{"from": "human", "value": "Hi"}], r"\[3\].messages\[0\]=.*role and content"),
    "no content": ([{"role": "assistant", "value": "Hi"}], r"messages\[0\]=.*no content.*rename"),
    "picture": (
        [{"role": "user", "content": [{"type": "image"}]}],
        r"messages\[0\].content\[0\]=.*only parts with a text",
    ),
    "number": ([{"role": "user", "content": 5}], r"messages\[0\].content=5: it is of type int"),
    "calls": ([{"role": "assistant", "tool_calls": "find"}], r"messages\[0\].tool_calls='find'.*list of objects"),
    "no answer": (
        [TOOLS[0], {"role": "model", "content": "Hi"}],
        r"messages=\['user', 'model'\].*no turn of the assistant",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_conversation_is_refused_with_row_and_turn_before_a_model_is_loaded(case):
    messages, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        check_rows([{"messages": TOOLS}] * 3 + [{"messages": messages}], "forget_data")
