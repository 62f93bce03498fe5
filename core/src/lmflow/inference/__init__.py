"""Sampling tokens: distributions, batches, streams."""
