"""The description of a run: read, resolved, written."""
