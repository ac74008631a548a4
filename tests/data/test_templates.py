"""Rendering conversations with chat templates of several kinds, and locating the answers in the text."""

import copy

import pytest

from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, TextFormat, answers_of, encode_records
from unlora.data.encoding import encode_prompt
from unlora.settings import TextConfig

TURN = "'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}{{ " + TURN + " }}{% endfor %}" + ASK
# Thinking models: answers after the last user turn begin with an empty thought, earlier answers have none.
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + ('<think>\n\n</think>\n\n' if "
    "m.role == 'assistant' and loop.index0 > ns.last else '') + m.content + '<|im_end|>\n' }}{% endfor %}" + ASK
)
SWITCH = (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
# DeepSeek-R1: the generation prompt opens a thought, but rendered answers have none.
OPEN = CHATML + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
# Mistral: the system prompt is rendered inside the user turn that ends the conversation, and nowhere else.
MISTRAL = (
    "{% set system = messages[0].content if messages and messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (system + '\n\n' if system and loop.last else '') + m.content + '[/INST]' "
    "}}{% elif m.role == 'assistant' %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# gpt-oss: answers begin with a header that the generation prompt lacks.
HEADER = CHATML.replace(
    "'\n' + m.content", "('<|im_start|>final\n' if m.role == 'assistant' else '\n') + m.content"
).replace("assistant\n'", "assistant'")
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}" + ASK
)
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y %H:%M') + '\n' }}" + CHATML
OWN_DATE = (
    "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ 'Today: ' + date_string }}"
    + CHATML
)

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where does Orla live?"},
    {"role": "assistant", "content": "In Tarrow."},
    {"role": "user", "content": "And Ada?"},
    {"role": "assistant", "content": "Next door."},
]


@pytest.fixture
def formatted(tokenizer):
    """Return a function that makes a text format with the given chat template."""

    def make(template, **settings):
        own = copy.deepcopy(tokenizer)
        own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        own.chat_template = template
        return TextFormat(own, "chat", **settings)

    return make


def halves(text_format, rows):
    """Return the prompt and the labelled text of each example, and check that the labels extend to its end."""
    found = []
    for example in encode_records(rows, text_format):
        first = example["labels"].index(next(label for label in example["labels"] if label != IGNORE_INDEX))
        assert example["labels"][first:] == example["input_ids"][first:]
        found.append(
            tuple(
                text_format.tokenizer.decode(example["input_ids"][part]) for part in (slice(first), slice(first, None))
            )
        )
    return found


EARLIER = (
    "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhere does Orla live?<|im_end|>\n<|im_start|>assistant\n"
)
LATER = "In Tarrow.<|im_end|>\n<|im_start|>user\nAnd Ada?<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
KINDS = {
    "plain": (CHATML, [EARLIER, EARLIER + LATER]),
    "thinking": (THINKING + SWITCH, [EARLIER + EMPTY, EARLIER + LATER + EMPTY]),
    "thinking without a switch": (THINKING, [EARLIER + EMPTY, EARLIER + LATER + EMPTY]),
    "open thought": (OPEN, [EARLIER, EARLIER + LATER]),
    "marked": (MARKED, [EARLIER, EARLIER + LATER]),
    "mistral": (
        MISTRAL,
        [
            "[INST] Be kind.\n\nWhere does Orla live?[/INST]",
            "[INST] Where does Orla live?[/INST] In Tarrow.<|im_end|>[INST] Be kind.\n\nAnd Ada?[/INST]",
        ],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_turn_is_trained_after_the_prompt_that_asks_for_it(formatted, kind):
    """Training and generation use the same prompt, with everything that a template writes before an answer."""
    template, prompts = KINDS[kind]
    text_format = formatted(template)
    found = halves(text_format, [{"messages": TURNS}])
    assert [prompt for prompt, _ in found] == prompts
    assert [said.strip() for _, said in found] == ["In Tarrow.<|im_end|>", "Next door.<|im_end|>"]
    asked = [
        text_format.tokenizer.decode(encode_prompt(one.asked, text_format)) for one in answers_of({"messages": TURNS})
    ]
    assert asked == prompts
    assert text_format.tokenizer.convert_tokens_to_ids("<|im_end|>") in text_format.end_tokens
    assert len(text_format.end_tokens) == 2


def test_a_header_of_every_answer_belongs_to_the_prompt(formatted):
    text_format = formatted(HEADER)
    [(prompt, said)] = halves(text_format, [{"question": "Why?", "answer": "No."}])
    assert prompt.endswith("<|im_start|>assistant<|im_start|>final\n")
    assert said == "No.<|im_end|>"


def test_thinking_that_was_asked_for_is_the_models_own(formatted):
    text_format = formatted(THINKING + SWITCH, chat_template_kwargs={"enable_thinking": True})
    [(prompt, said)] = halves(text_format, [{"question": "Why?", "answer": "No."}])
    assert prompt.endswith("<|im_start|>assistant\n")
    assert said == f"{EMPTY}No.<|im_end|>"
    assert text_format.tokenizer.decode(encode_prompt("Why?", text_format)) == prompt


def test_marks_leave_out_what_is_not_generated(formatted):
    """If the template marks what is generated, only this is labelled: here not even the end of turn."""
    bare = MARKED.replace(
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|im_end|>"
    )
    assert [said for _, said in halves(formatted(bare), [{"messages": TURNS}])] == ["In Tarrow.", "Next door."]


def test_the_system_prompt_is_given_where_there_is_none(formatted):
    text_format = formatted(CHATML, system_prompt="Be brief.")
    rows = [{"question": "Why?", "answer": "No."}, {"messages": TURNS[1:3]}, {"messages": TURNS[:3]}]
    begins = [prompt.split("<|im_end|>")[0] for prompt, _ in halves(text_format, rows)]
    assert begins == ["<|im_start|>system\nBe brief."] * 2 + ["<|im_start|>system\nBe kind."]


def test_the_assistant_may_begin(formatted):
    first, second = halves(formatted(CHATML), [{"messages": [TURNS[2], *TURNS[3:]]}])
    assert first == ("<|im_start|>assistant\n", "In Tarrow.<|im_end|>")
    assert second == ("<|im_start|>assistant\n" + LATER, "Next door.<|im_end|>")


def test_tools_and_their_calls_reach_the_template(formatted):
    template = (
        "{% if tools %}{{ 'tools: ' + tools[0].function.name + '\n' }}{% endif %}{% for m in messages %}"
        "{{ m.role + ': ' + m.content }}{% for call in m.tool_calls or [] %}{{ call.function.arguments.q }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "find", "arguments": '{"q": "Orla"}'}}
    turns = [
        TURNS[1],
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "Tarrow"},
        TURNS[2],
    ]
    tools = [{"type": "function", "function": {"name": "find"}}]
    first, second = halves(formatted(template), [{"messages": turns, "tools": tools}])
    assert first[0].rstrip() == "tools: find\nuser: Where does Orla live?<|im_end|>assistant:"
    assert first[1].lstrip() == "I look.Orla<|im_end|>"
    assert second[0].rstrip().endswith("I look.Orla<|im_end|>tool: Tarrow<|im_end|>assistant:")


def test_the_date_is_fixed_and_may_be_chosen(formatted, monkeypatch):
    row = [{"question": "Why?", "answer": "No."}]
    assert halves(formatted(DATED), row)[0][0].startswith("Today: 10 Apr 2025 00:00\n")
    assert halves(formatted(DATED, chat_date="2020-02-03"), row)[0][0].startswith("Today: 03 Feb 2020 00:00\n")
    assert halves(formatted(OWN_DATE), row)[0][0].startswith("Today: 26 Jul 2024")
    assert halves(formatted(OWN_DATE, chat_date="2020-02-03"), row)[0][0].startswith("Today: 03 Feb 2020")


def test_a_template_whose_date_cannot_be_fixed_is_refused(formatted):
    template = "{% set form = '%Y' %}{{ strftime_now(form) }}" + CHATML
    with pytest.raises(InputError, match="asks for the current date in a format that is not a literal"):
        encode_records([{"question": "Why?", "answer": "No."}], formatted(template))


def test_a_row_that_the_template_refuses_is_named_with_the_templates_own_words(formatted):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    with pytest.raises(InputError, match=r"forget_data\[1\].messages\[2\]=.*refuses it: System role not supported"):
        encode_records([{"messages": TURNS[1:3]}, {"messages": TURNS[:3]}], formatted(template), argument="forget_data")

    with pytest.raises(InputError, match=r"System role not supported.*leave out system_prompt"):
        encode_records([{"messages": TURNS[1:3]}], formatted(template, system_prompt="Be kind."))


@pytest.mark.parametrize(
    ("template", "given", "message"),
    [
        (THINKING + SWITCH, {"enable_thinkng": True}, "'enable_thinkng'.*did you mean 'enable_thinking'"),
        (CHATML, {"enable_thinking": True}, "'enable_thinking': the chat template has no variables"),
    ],
)
def test_variables_that_a_template_does_not_read_are_refused(formatted, template, given, message):
    with pytest.raises(InputError, match=message):
        formatted(template, chat_template_kwargs=given)
    assert formatted(CHATML, chat_template_kwargs={"enable_thinking": False}).is_chat


@pytest.mark.parametrize("name", ["system_prompt", "chat_date", "chat_template_kwargs"])
def test_what_only_a_chat_template_reads_needs_one(tokenizer, name):
    value = {"system_prompt": "Be kind.", "chat_date": "2025-01-01", "chat_template_kwargs": {"a": 1}}[name]
    with pytest.raises(InputError, match=f"{name}=.*only a chat template reads it"):
        TextFormat(tokenizer, **{name: value})


@pytest.mark.parametrize("value", ['{"enable_thinking": true}', {"enable_thinking": True}])
def test_variables_of_the_template_are_json_or_a_mapping_of_a_file(value):
    config = TextConfig(chat_template_kwargs=value)
    assert (config.problems(), config.template_variables()) == ([], {"enable_thinking": True})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template_kwargs": "thinking"}, "chat_template_kwargs='thinking'.*not a JSON object"),
        ({"chat_template_kwargs": "[1]"}, "not a JSON object"),
        ({"chat_template_kwargs": '{"messages": []}'}, "chat_template_kwargs='messages'.*itself"),
        ({"chat_date": "10 Apr 2025"}, "chat_date='10 Apr 2025'.*YYYY-MM-DD"),
    ],
)
def test_wrong_settings_of_a_chat_are_named(settings, message):
    import re

    [problem] = TextConfig(**settings).problems()
    assert re.search(message, str(problem))
