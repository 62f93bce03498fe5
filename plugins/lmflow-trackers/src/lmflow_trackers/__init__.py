"""Trackers of lmflow: TensorBoard and MLflow."""
