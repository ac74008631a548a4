"""How well a model forgot, and what it still knows. Importing this loads no torch: logs are read without a model."""

from unlora.evals.tofu import Log, evaluate, load_sets, read_log, summarise, write_log

__all__ = ["Log", "evaluate", "load_sets", "read_log", "summarise", "write_log"]
