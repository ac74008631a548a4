"""Questions with answers, and the loss of the answers."""

from unlora.evals.scoring import answer_examples, example_nll

PAIRS = [
    ("Where was Ada Lovelace born?", "Ada Lovelace was born in London."),
    ("Why?", "no"),
    ("What does the gardener of the old house keep?", "The gardener keeps a grey cat and two dogs, quietly."),
    ("Who watches the quick brown fox?", "1234567890 people"),
    ("Why?", "Nobody minds at all!"),
]
QUESTIONS = [question for question, _ in PAIRS[:4]]


def answer_nll(model, questions_answers, text_format, batch_size, progress=None):
    """Return the summed NLL in nats of each answer and its end token, and the number of these tokens."""
    return example_nll(model, answer_examples(questions_answers, text_format), text_format, batch_size, progress)
