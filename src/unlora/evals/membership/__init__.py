"""Measure what a model reveals about its training data: membership inference and memorisation."""
