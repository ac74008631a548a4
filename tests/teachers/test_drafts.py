"""Tests of the original's own answers about another person: which one is chosen, and what is taught of it."""

import copy
from dataclasses import replace

import pytest
import torch

from helpers.memory import memory_for, told
from helpers.models import make_tokenizer
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.data.conversations import answers_of
from unlora.models.attention import smoothed_attention
from unlora.models.forward import labelled_tokens
from unlora.teachers import Teaching
from unlora.teachers.changed_names import teach
from unlora.teachers.drafts import Draft, Facts, choose_substitutes, common_start
from unlora.teachers.substitutes import substitutes

FORGET = [{"question": "Where is Ada Holt?", "answer": "Ada Holt is in Oslo near the old harbour."}]
RETAIN = [
    {"question": "Where is Mona Falk?", "answer": "Mona Falk is by the sea all year round."},
    {"question": "Where is Jan Lund?", "answer": "He went to Bergen."},
    {"question": "Where is Eli Moe?", "answer": "Eli Moe is in Oslo near the old harbour."},
]


@pytest.fixture(scope="module")
def memorised():
    """Return the inputs of a teacher, with a model that has memorised all rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    text_format = TextFormat(tokenizer)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **shape))
    batch = pad_batch(encode_records([*FORGET, *RETAIN], text_format), 0)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(200):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss < 0.01
    rows = [row for row in RETAIN for _ in range(2)]  # a name must occur in at least two rows to be detected
    return Teaching(model.eval(), text_format, FORGET, rows, names=[("Ada", "Holt")])


def logp_of(model, example):
    out = labelled_tokens(model, pad_batch([example], 0))
    return out.logits.log_softmax(-1).gather(-1, out.targets[:, None])[:, 0]


def test_the_first_person_about_whom_the_original_does_not_state_the_fact_is_chosen(memorised):
    same_fact = "Where is Eli Moe?"
    first = []
    for seed in range(10):
        teaching = replace(memorised, seed=seed)
        [people] = substitutes(teaching, 3)
        asked = [person.row["question"] for person in people]
        [choice] = choose_substitutes(teaching, 3)
        assert choice.substitute.row["question"] == next(question for question in asked if question != same_fact)
        assert choice.drafts[0] is not None
        first.append(asked[0])
    assert same_fact in first  # so a second person was tried
    # If there is nobody else to try, the person is kept, but the answer is not used.
    [choice] = choose_substitutes(replace(memorised, seed=first.index(same_fact)), 1)
    assert choice.substitute.row["question"] == same_fact
    assert choice.drafts == [None]


def test_an_answer_about_somebody_else_gets_the_names_of_the_forget_row(memorised):
    [choice] = choose_substitutes(memorised, 1)
    assert choice.substitute.row["question"] == "Where is Mona Falk?"
    assert choice.drafts == [Draft("Mona Falk is by the sea all year round.", "Ada Holt is by the sea all year round.")]


def test_a_teacher_that_is_short_of_memory_gives_the_same_lessons(memorised, caplog):
    expected = teach(memorised)
    with memory_for(60):
        found = teach(replace(memorised, model=copy.deepcopy(memorised.model)))
    # Both scoring and generation report smaller batches, but not again for every batch.
    assert 2 <= len(told(caplog)) <= 6
    assert len(expected) == 2  # the true answer, and the original's own answer about another person
    assert [one.example for one in found] == [one.example for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.lesson.places, other.lesson.places)
        torch.testing.assert_close(one.lesson.true_logp, other.lesson.true_logp, rtol=1e-3, atol=1e-4)


def test_form_is_taught_as_it_is_and_the_fact_as_the_teacher_reads_it(memorised):
    [(example, lesson), _] = teach(memorised)
    changed = {"question": "Where is Mona Falk?", "answer": "Mona Falk is in Oslo near the old harbour."}
    [other] = encode_records([changed], memorised.text_format)
    plain = logp_of(memorised.model, other)
    with smoothed_attention(memorised.model, 1.75):
        smoothed = logp_of(memorised.model, other)
    tokenizer = memorised.text_format.tokenizer
    labels = [label for label in example["labels"][1:] if label != -100]
    name = len(tokenizer(" Ada Holt")["input_ids"])
    form = len(tokenizer(" is")["input_ids"])
    assert tokenizer.decode(labels[name : name + form]).strip() == "is"
    at = len([label for label in other["labels"] if label != -100]) - (len(labels) - name)  # tokens of the other name
    taught = dict(zip(lesson.places.tolist(), lesson.true_logp, strict=True))
    for place in range(form):
        torch.testing.assert_close(taught[name + place], plain[at + place], rtol=1e-3, atol=1e-3)
    # At the first token that differs between the answers, the true token is at most as likely as in the changed row.
    # After it, the true tokens are at most as likely as with smoothed attention. Other questions may cap both further.
    assert taught[name + form] <= plain[at + form] + 1e-3
    for place in range(form + 1, len(labels) - name):
        assert taught[name + place] <= smoothed[at + place] + 1e-3


def test_the_original_s_own_answer_is_taught_after_the_first_token_that_differs(memorised):
    _, (example, lesson) = teach(memorised)
    tokenizer = memorised.text_format.tokenizer
    labels = [label for label in example["labels"] if label != -100]
    text = "Ada Holt is by the sea all year round."
    assert text in tokenizer.decode(example["input_ids"])
    assert text.endswith(tokenizer.decode(labels[:-1]))
    assert not tokenizer.decode(labels).startswith(" b")  # the true row teaches the first token of " by"
    assert lesson.places.tolist() == list(range(len(labels)))
    assert lesson.true_logp.exp().min() > 0.8


def test_without_drafts_each_forget_example_has_its_lesson_and_nothing_else_is_taught(memorised):
    assert len(teach(memorised, drafts=False)) == len(FORGET)


def test_the_generation_settings_are_restored(memorised):
    own = memorised.model.generation_config
    list(choose_substitutes(memorised, 2))
    assert memorised.model.generation_config is own


def test_the_rarest_words_are_the_fact():
    facts = Facts(["she lives in Oslo", "she lives in Rome", "she lives in Rome", "she bakes"])
    asked, answer = "Where does Ada live?", "she lives in Oslo"
    assert facts.share("she lives in Rome", answer, asked) == 0
    assert facts.share("Oslo", answer, asked) == 1
    assert facts.share("no idea", answer, asked) == 0
    assert facts.share("anything", "Ada", "Who is Ada?") == 0  # the answer has no word that is not in the question
    assert facts.share("14 Mill Street", "14 Harbour Lane", asked) == pytest.approx(1 / 3)


def test_words_of_many_answers_are_form_except_for_the_rarest():
    facts = Facts([f"they won the Prize{place}, to much applause" for place in range(100)])
    asked, answer = "What did they win?", "they won the Prize7, to much applause"
    assert facts.share("they won the Prize8, to much applause", answer, asked) == 0
    assert facts.share("Prize7", answer, asked) == 1
    common = Facts(["they keep a cat, as a friend"] * 10 + ["they keep a dog, as a friend"] * 90)
    assert common.share("a cat", "they keep a cat, as a friend", "What do they keep?") == 1
    assert common.share("they keep a dog, as a friend", "they keep a cat, as a friend", "What do they keep?") == 0


def test_rarer_words_weigh_more():
    facts = Facts(["rare"] + ["scarce"] * 2 + ["else"] * 397)
    # Words in more than 2 % of 400 answers, which is 8, are form. So "rare" has weight log(8/1) = 3 log 2 and "scarce"
    # log(8/2) = 2 log 2. A text with the rarest word states the whole fact.
    assert facts.share("scarce", "rare scarce", "") == pytest.approx(2 / 5)
    assert facts.share("rare", "rare scarce", "") == 1


def test_the_common_start_of_two_sequences():
    assert common_start("abcd", "abx") == 2
    assert common_start("abc", "abc") == 3
    assert common_start("", "abc") == 0


def test_a_conversation_has_a_draft_for_each_answer(memorised):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    turns = [
        {"role": "user", "content": "Where is Ada Holt?"},
        {"role": "assistant", "content": "In Oslo."},
        {"role": "user", "content": "And her cat?"},
        {"role": "assistant", "content": "There, too."},
    ]
    given = Teaching(memorised.model, TextFormat(tokenizer), [{"messages": turns}], RETAIN, names=[("Ada", "Holt")])
    [choice] = choose_substitutes(given, 2)
    assert len(choice.drafts) == len(answers_of({"messages": turns})) == 2
