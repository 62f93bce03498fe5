"""Loaded models: weights, tokenizer, and how they are found, changed and written."""
