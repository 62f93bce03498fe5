"""Judges the installation: what is broken, what will surprise, and the command that mends it."""
