"""Forget and retain losses: pure functions of what the model predicts, and the tables that name them."""

from unlora.losses.interface import Loss
from unlora.losses.table import LOSSES, RETAIN_LOSSES, register_loss

__all__ = ["LOSSES", "RETAIN_LOSSES", "Loss", "register_loss"]
