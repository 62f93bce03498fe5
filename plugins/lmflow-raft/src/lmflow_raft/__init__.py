"""Reward-ranked fine-tuning for lmflow (arXiv 2304.06767)."""
