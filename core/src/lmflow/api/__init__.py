"""What Python programs and notebooks call, and what commands are made of: run, load a model, evaluate it."""
