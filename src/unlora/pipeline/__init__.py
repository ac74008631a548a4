"""The work of each command: an unlearning request from its settings to the report, and later work on a finished run."""
