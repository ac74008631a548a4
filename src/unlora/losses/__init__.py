"""Forget and retain losses: pure functions of what the model predicts, and the tables that name them."""

from unlora.losses.table import LOSSES, RETAIN_LOSSES, Loss, register_loss

__all__ = ["LOSSES", "RETAIN_LOSSES", "Loss", "register_loss"]
