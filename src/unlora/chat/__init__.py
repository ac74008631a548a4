"""A local web page on which the original and the unlearned model of a run answer the same questions, side by side."""
