"""Measurements that choices in unlora rest on. Each module is a command: python -m experiments.<name> --help."""
