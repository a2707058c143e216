"""How good features are: nearest neighbours, a linear classifier, or fine-tuning of the whole."""
