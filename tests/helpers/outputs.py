"""Hand-made and random model outputs, for tests of losses."""

from dataclasses import replace

import torch

from unlora.data.lessons import Lesson, with_others
from unlora.losses.table import LOSSES, RETAIN_LOSSES
from unlora.models.forward import HiddenStates, LabelledTokens, hidden_states

ALL = {
    f"{kind}-{name}": loss
    for kind, table in (("forget", LOSSES), ("retain", RETAIN_LOSSES))
    for name, loss in table.items()
}


def tokens(probabilities, targets, example=None, **reference):
    """Return `LabelledTokens` with given probabilities. Without `example`, each token is a separate example."""
    example = list(range(len(targets))) if example is None else example
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    return LabelledTokens(logits, torch.tensor(targets), torch.tensor(example), max(example) + 1, **reference)


def states(values, **reference):
    """Return `HiddenStates` with one token for each example."""
    return HiddenStates(torch.tensor(values, dtype=torch.float64), torch.arange(len(values)), len(values), **reference)


def random_outputs(loss, seed, dtype=torch.float64):
    """Return random outputs for four examples of 2, 3, 1 and 2 tokens, with all reference values.

    The vocabulary has 11 entries, and hidden states have 5 dimensions. The lesson teaches six of the eight tokens, with
    the probabilities of four vocabulary entries for each.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    example = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    if loss.forward is hidden_states:
        return HiddenStates(2 * normal(8, 5), example, 4, ref_states=normal(8, 5))
    targets = torch.randint(11, (8,), generator=generator)
    taught = torch.tensor([0, 1, 3, 4, 5, 7])
    teacher = (2 * normal(6, 11).float()).log_softmax(-1)
    true = targets[taught][:, None]
    ids = torch.cat([true, (true + torch.tensor([1, 3, 6])) % 11], -1)
    lesson = Lesson(taught, ids, with_others(teacher.gather(-1, ids)), teacher.gather(-1, true)[:, 0])
    reference = {"lesson": lesson, "ref_logp": 3 * normal(4).float() - 6, "ref_logits": 2 * normal(8, 11)}
    return LabelledTokens(2 * normal(8, 11), targets, example, 4, **reference)


def leaf(out):
    """Return the tensor that the model computed: hidden states or logits."""
    return out.states if isinstance(out, HiddenStates) else out.logits


def with_leaf(out, values):
    return replace(out, states=values) if isinstance(out, HiddenStates) else replace(out, logits=values)
