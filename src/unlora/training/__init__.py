"""Trainers for unlearning and fine-tuning, their settings, callbacks and checkpoints."""
