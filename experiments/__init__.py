"""Measurements that design decisions of unlora rest on. Each module is a command: python -m experiments.NAME --help."""
