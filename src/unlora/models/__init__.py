"""Load causal language models and run them."""
