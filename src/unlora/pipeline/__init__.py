"""One unlearning request from its settings to a reported run, and what is done with a finished run."""
