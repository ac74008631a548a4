"""A local web page that asks the original and the unlearned model of a run the same questions, side by side."""
