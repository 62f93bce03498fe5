"""Low-rank adapters for lmflow, on PEFT."""
