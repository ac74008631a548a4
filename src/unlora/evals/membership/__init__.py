"""What a model gives away about its training data: membership inference and memorisation."""
