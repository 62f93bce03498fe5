"""Ways to measure a model that the core brings."""
