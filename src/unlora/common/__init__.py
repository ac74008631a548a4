"""Shared utilities that every other package may use: errors, files, progress bars, distributed processes."""
