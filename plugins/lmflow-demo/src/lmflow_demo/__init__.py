"""lmflow's embedded default: a small model, tasks with checkable answers, and a small real model."""
