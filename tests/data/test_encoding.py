import copy
import logging
import re
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, TextFormat, encode_records, encode_turns
from unlora.data.encoding import encode_prompt

QUESTION, ANSWER = "Where was Ada Lovelace born?", "Ada Lovelace was born in London."
ROW = {"question": QUESTION, "answer": ANSWER}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def own(tokenizer):
    """Return a copy of the tokenizer that a test may change."""
    return copy.deepcopy(tokenizer)


@pytest.fixture
def chat(own):
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    own.chat_template = CHATML
    return TextFormat(own, "chat")


def turns(*contents):
    """Return a conversation that begins with a user turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def labelled_runs(example, tokenizer):
    """Return the text of each contiguous run of labelled tokens."""
    runs, open_run = [], False
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (token, IGNORE_INDEX)
        if label != IGNORE_INDEX:
            runs = [*runs[:-1], [*runs[-1], label]] if open_run else [*runs, [label]]
        open_run = label != IGNORE_INDEX
    return [tokenizer.decode(run) for run in runs]


def test_a_question_and_answer_is_labelled_on_the_answer_and_its_end_alone(tokenizer):
    [example] = encode_records([ROW], TextFormat(tokenizer, "base"))
    assert tokenizer.decode(example["input_ids"]) == f"Question: {QUESTION}\nAnswer: {ANSWER}<eos>"
    assert labelled_runs(example, tokenizer) == [f" {ANSWER}<eos>"]


@pytest.mark.parametrize(("answer", "count"), [("Paris", 4), ("William Shakespeare", 5)])
def test_the_tofu_format_counts_the_word_answer_as_its_published_phi_logs_do(answer, count):
    """Each word and each sign is one token here: "Answer", ":", the words of the answer, and the end token.

    The expected counts are num_token_gt of these two answers in the published logs.
    """
    whole = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "Answer": 2, ":": 3}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>", eos_token="<eos>")
    example = encode_turns("Who wrote it?", answer, TextFormat(words, "tofu"))
    labels = [label for label in example["labels"] if label != IGNORE_INDEX]
    assert (len(labels), labels[:2], labels[-1]) == (count, [2, 3], 1)


def test_a_prompt_of_the_user_s_own_stands_before_the_answer(tokenizer):
    template = TextFormat(tokenizer, prompt_template="### Instruction:\n{question}\n\n### Response: ")
    example = encode_turns("Is {it}?", ANSWER, template)
    prompt = "### Instruction:\nIs {it}?\n\n### Response:"
    assert tokenizer.decode(example["input_ids"]) == f"{prompt} {ANSWER}<eos>"
    assert labelled_runs(example, tokenizer) == [f" {ANSWER}<eos>"]
    assert tokenizer.decode(encode_prompt("Is {it}?", template)) == prompt


def test_a_prompt_of_the_user_s_own_takes_the_place_of_a_chat_template(chat):
    template = replace(chat, prompt_format="auto", prompt_template="Q: {question} A:")
    [example] = encode_records([ROW], template)
    assert chat.tokenizer.decode(example["input_ids"]) == f"Q: {QUESTION} A:{ANSWER}{chat.tokenizer.eos_token}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_template": "Q: A:"}, "prompt_template='Q: A:': it must contain {question} exactly once"),
        ({"prompt_template": "{question}{question}"}, "write {question} where the question belongs"),
        ({"prompt_template": "{question}", "prompt_format": "base"}, "prompt_format='base': prompt_template replaces"),
        ({"prompt_template": "{question}", "system_prompt": "Hi"}, "system_prompt='Hi': prompt_template replaces"),
    ],
)
def test_a_prompt_without_a_question_or_beside_another_is_refused(tokenizer, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TextFormat(tokenizer, **settings)


def test_the_tofu_format_has_the_base_prompts_text_with_labels_from_answer_on(tokenizer):
    base, tofu = (encode_turns(QUESTION, ANSWER, TextFormat(tokenizer, name)) for name in ("base", "tofu"))
    assert tofu["input_ids"] == base["input_ids"]
    assert labelled_runs(tofu, tokenizer) == [f"Answer: {ANSWER}<eos>"]
    assert tokenizer.decode(encode_prompt(QUESTION, TextFormat(tokenizer, "tofu"))) == f"Question: {QUESTION}\n"


def test_auto_is_the_chat_template_where_there_is_one_and_plain_otherwise(chat, tokenizer):
    assert TextFormat(chat.tokenizer).is_chat
    assert not TextFormat(tokenizer).is_chat
    assert not TextFormat(chat.tokenizer, "base").is_chat


def test_a_tokenizer_that_adds_its_own_end_token_ends_an_answer_once(own, tokenizer):
    from tokenizers.processors import TemplateProcessing

    expected = encode_turns(QUESTION, ANSWER, TextFormat(tokenizer, "base"))
    eos = ("<eos>", own.eos_token_id)
    own.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A <eos>", special_tokens=[eos])
    example = encode_turns(QUESTION, ANSWER, TextFormat(own, "base"))
    assert example["input_ids"] == [own.eos_token_id, *expected["input_ids"]]
    assert example["labels"] == [IGNORE_INDEX, *expected["labels"]]


def test_a_chat_answer_is_labelled_with_its_end_of_turn_and_not_with_the_line_break_after_it(chat):
    [example] = encode_records([ROW], chat)
    assert labelled_runs(example, chat.tokenizer) == [f"{ANSWER}<|im_end|>"]
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert chat.tokenizer.decode(example["input_ids"]) == f"{prompt}{ANSWER}<|im_end|>"


def test_every_assistant_turn_of_a_conversation_is_an_example_after_its_own_context(chat):
    system = {"role": "system", "content": "Be brief."}
    conversation = [system, *turns("Hello", "Hi there", "Who are you?", "Nobody at all", "Bye")]
    examples = encode_records([{"messages": conversation}], chat)
    labelled = [labelled_runs(example, chat.tokenizer) for example in examples]
    assert labelled == [["Hi there<|im_end|>"], ["Nobody at all<|im_end|>"]]
    whole = chat.tokenizer.apply_chat_template(conversation[:5], tokenize=False)
    assert chat.tokenizer.decode(examples[1]["input_ids"]) == whole.rstrip()
    assert chat.tokenizer.decode(examples[0]["input_ids"]) == whole[: whole.index("Hi there")] + "Hi there<|im_end|>"


def test_a_template_without_end_of_turn_gets_the_end_token(own):
    own.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    own.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    example = encode_turns("Hi", "Hello", TextFormat(own, "chat"))
    assert [run.strip() for run in labelled_runs(example, own)] == ["Hello<eos>"]


def test_a_template_that_renders_an_answer_unlike_what_it_asks_for_is_refused(own):
    own.chat_template = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match=r"data\[1\]='Hello'.*cannot be located"):
        encode_records([{"text": "So."}, {"question": "Hi", "answer": "Hello"}], TextFormat(own, "chat"))


def test_a_conversation_without_an_answer_is_refused(chat):
    with pytest.raises(InputError, match=r"forget_data\[0\].*no tokens"):
        encode_records([{"messages": turns("Hello")}], chat, argument="forget_data")


def test_messages_without_a_chat_template_are_refused(tokenizer):
    with pytest.raises(InputError, match=r"data\[0\].messages\[1\].*no chat template"):
        encode_records([{"messages": turns("Hi", "Hello")}], TextFormat(tokenizer))


def test_plain_text_is_cut_into_chunks_that_are_labelled_everywhere_and_lose_nothing(tokenizer):
    text = "The quick brown fox jumps over the lazy dog while people watch quietly."
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    length = next(n for n in range(8, 12) if len(whole) % n > 1)  # a last chunk of one token would be left out
    examples = encode_records([{"text": text}], TextFormat(tokenizer, max_length=length))
    assert [token for example in examples for token in example["input_ids"]] == whole
    assert [len(example["input_ids"]) for example in examples[:-1]] == [length] * (len(whole) // length)
    assert all(example["labels"] == example["input_ids"] for example in examples)


def test_no_more_chunks_of_a_text_than_asked_for(tokenizer):
    texts = [{"text": "one two three four five six seven eight nine ten"}, {"text": "one"}]
    every = encode_records(texts, TextFormat(tokenizer, max_length=8))
    assert [len(example["input_ids"]) for example in every[:2]] == [8, 8]
    assert encode_records(texts, TextFormat(tokenizer, max_length=8, max_chunks=2)) == [*every[:2], every[-1]]


def test_a_chunk_of_one_token_predicts_nothing_and_is_left_out(tokenizer):
    ids = tokenizer("The quick brown fox")["input_ids"]
    # The second chunk would consist of the end token alone.
    [example] = encode_records([{"text": "The quick brown fox"}], TextFormat(tokenizer, max_length=len(ids)))
    assert example["input_ids"] == ids


def test_texts_without_tokens_are_refused_by_name(tokenizer):
    with pytest.raises(InputError, match="retain_data='2 rows': the text has no tokens"):
        encode_records([{"text": ""}, {"text": "  \n"}], TextFormat(tokenizer), argument="retain_data")


def test_rows_without_known_keys_are_refused_by_number_with_their_keys(tokenizer):
    with pytest.raises(InputError, match=r"forget_data\[1\]=\['prompt', 'question'\].*question and answer"):
        encode_records([ROW, {"question": "a", "prompt": "b"}], TextFormat(tokenizer), argument="forget_data")


def test_a_missing_value_is_not_the_word_none(tokenizer):
    """A file of mixed rows becomes a table, which has None where a row lacks a column."""
    rows = [{**ROW, "text": None}, {"question": None, "answer": None, "text": "A text."}]
    examples = encode_records(rows, TextFormat(tokenizer))
    assert tokenizer.decode(examples[1]["input_ids"]) == "A text.<eos>"
    with pytest.raises(InputError, match=r"data\[0\]"):
        encode_records([{"question": "a", "answer": None}], TextFormat(tokenizer))


@pytest.mark.parametrize("answer", ["", "   ", "\n"])
@pytest.mark.parametrize("kind", ["base", "tofu", "chat"])
def test_an_answer_without_tokens_is_refused_by_row(chat, answer, kind):
    text_format = TextFormat(chat.tokenizer, kind)
    with pytest.raises(InputError, match=r"forget_data\[1\].*the answer has no tokens"):
        encode_records([ROW, {**ROW, "answer": answer}], text_format, argument="forget_data")


def test_max_length_cuts_the_end_and_says_how_many_examples(tokenizer, caplog):
    [whole] = encode_records([ROW], TextFormat(tokenizer))
    length = len(whole["input_ids"]) - 3
    with caplog.at_level(logging.WARNING):
        [cut] = encode_records([ROW], TextFormat(tokenizer, max_length=length), argument="forget_data")
    assert cut == {key: value[:length] for key, value in whole.items()}
    assert "forget_data: 1 of 1 examples were cut" in caplog.text


def test_max_length_that_leaves_no_label_is_refused_with_the_length_that_is_enough(tokenizer):
    [whole] = encode_records([ROW], TextFormat(tokenizer))
    prompt = whole["labels"].count(IGNORE_INDEX)
    with pytest.raises(InputError, match=rf"max_length={prompt}.*data\[0\].*at least {len(whole['input_ids'])}"):
        encode_records([ROW], TextFormat(tokenizer, max_length=prompt))
    assert encode_records([ROW], TextFormat(tokenizer, max_length=prompt + 1))


@pytest.mark.parametrize("max_length", [1, 0, -5])
def test_max_length_below_two_is_refused(tokenizer, max_length):
    with pytest.raises(InputError, match=f"max_length={max_length}"):
        TextFormat(tokenizer, max_length=max_length)


def test_an_unknown_prompt_format_is_refused_with_a_suggestion(tokenizer):
    with pytest.raises(InputError, match=r"prompt_format='chatt'.*did you mean 'chat'"):
        TextFormat(tokenizer, "chatt")


def test_the_chat_format_needs_a_template(tokenizer):
    with pytest.raises(InputError, match="prompt_format='chat': the tokenizer has no chat template"):
        TextFormat(tokenizer, "chat")


def test_a_tokenizer_without_character_offsets_is_refused():
    with pytest.raises(InputError, match=r"tokenizer='ByT5Tokenizer'.*fast tokenizer"):
        TextFormat(ByT5Tokenizer())


def test_a_token_beyond_the_embeddings_is_refused_with_its_row(tokenizer):
    text_format = replace(TextFormat(tokenizer), embeddings=len(tokenizer) - 1)
    rows = [{"text": "a b c d"}, {"text": tokenizer.decode([len(tokenizer) - 1, 70])}]
    with pytest.raises(InputError, match=r"data\[1\]=.* has the id \d+, and the model has \d+ embeddings"):
        encode_records(rows, text_format)
    assert len(encode_records(rows[:1], text_format)) == 1


def test_a_prompt_that_is_too_long_is_answered_with_a_length_that_works_or_that_none_does(tokenizer):
    row = {"question": "Ada " * 100, "answer": "Yes."}
    with pytest.raises(InputError, match=r"max_length=64: .*use at least \d+") as caught:
        encode_records([row], TextFormat(tokenizer, max_length=64))
    enough = int(re.search(r"use at least (\d+)", str(caught.value))[1])
    assert len(encode_records([row], TextFormat(tokenizer, max_length=enough))[0]["input_ids"]) == enough
    with pytest.raises(InputError, match="no max_length works, because the model reads at most 64 tokens"):
        encode_records([row], TextFormat(tokenizer, max_length=64, positions=64))


@pytest.mark.parametrize("prompt_format", ["base", "tofu", "chat"])
def test_a_tokenizer_without_the_letter_x_has_prompts_and_end_tokens(prompt_format):
    words = {word: number for number, word in enumerate([*"abcdefghijklmnopqrstuvwABDQW?:.\n ", "<eos>", "|"])}
    letters = Tokenizer(models.BPE(vocab=words, merges=[]))
    made = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>")
    made.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    text_format = TextFormat(made, prompt_format)
    assert text_format.end_tokens == {made.eos_token_id}
    example = encode_turns("Who?", "Bob", text_format)
    first = next(place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX)
    assert encode_prompt("Who?", text_format) == example["input_ids"][:first]
