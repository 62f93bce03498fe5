"""Records to samples to tokens to batches."""
