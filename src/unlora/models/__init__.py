"""Loading a causal language model and running it."""
