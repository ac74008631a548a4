"""Hand-made and random gradient moments, for tests of the importance computed from them."""

import torch

from unlora.importance import Moments

LAYER = "base_model.model.layers.{}.q_proj.lora_{}.unlearn.weight"
# Variances: V_A = [3 − 1, 0.5 − 0] = [2, 0.5] and V_B = [2 − 1, max(3 − 4, 0)] = [1, 0]. Fisher: F = V_B·V_A.
FORGET = {"0": ([1.0, 0.0], [3.0, 0.5], [1.0, 2.0], [2.0, 3.0])}
F_FORGET = torch.tensor([[2.0, 0.5], [0.0, 0.0]])
# Variances: V_A = [1, 1] and V_B = [2, 6]. The mean of F is 4.
RETAIN = {"0": ([0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [3.0, 6.0])}
F_RETAIN = torch.tensor([[2.0, 2.0], [6.0, 6.0]])


def moments_of(**layers):
    """Return moments of rank-1 layers, given (mean A, second A, mean B, second B) by layer number."""
    mean, second = {}, {}
    for number, values in layers.items():
        tensors = [torch.tensor(value) for value in values]
        mean[LAYER.format(number, "A")], second[LAYER.format(number, "A")] = tensors[0][None], tensors[1][None]
        mean[LAYER.format(number, "B")], second[LAYER.format(number, "B")] = tensors[2][:, None], tensors[3][:, None]
    return Moments(mean, second, tokens=2, examples=2)


def random_moments(seed, rank=3):
    """Return random moments of the factors of two layers of shape [5, 7]."""
    generator = torch.Generator().manual_seed(seed)
    mean, second = {}, {}
    for number in (0, 1):
        for factor, shape in (("A", (rank, 7)), ("B", (5, rank))):
            name = LAYER.format(number, factor)
            mean[name] = torch.randn(shape, generator=generator)
            second[name] = mean[name].square() + torch.rand(shape, generator=generator)
    return Moments(mean, second, tokens=9, examples=4)
