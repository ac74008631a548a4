"""The loss of answers, for tests that compare with it."""

from unlora.evals.scoring import answer_examples, example_nll


def answer_nll(model, questions_answers, text_format, batch_size, progress=None):
    """The NLL of each answer and its end token, summed over its tokens in nats, and the number of these tokens."""
    return example_nll(model, answer_examples(questions_answers, text_format), text_format, batch_size, progress)
