"""Forget and retain losses: pure functions of the model's outputs, and the tables that list them by name."""

from unlora.losses.interface import Loss
from unlora.losses.table import LOSSES, RETAIN_LOSSES, register_loss

__all__ = ["LOSSES", "RETAIN_LOSSES", "Loss", "register_loss"]
