"""Measure what a model has forgotten and what it still knows. Importing this does not import torch."""

from unlora.evals.log_format import Log
from unlora.evals.logs import read_log, write_log
from unlora.evals.summary import summarise
from unlora.evals.tofu import evaluate

__all__ = ["Log", "evaluate", "read_log", "summarise", "write_log"]
