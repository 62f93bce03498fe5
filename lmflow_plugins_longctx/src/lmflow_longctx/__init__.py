"""Longer contexts for lmflow: position interpolation and its kin, and how to measure them."""
