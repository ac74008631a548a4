"""A local page that asks the original and the unlearned model of a run side by side."""
