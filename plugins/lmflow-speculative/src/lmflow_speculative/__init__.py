"""Speculative decoding for lmflow: exact samples with fewer passes of the model."""
