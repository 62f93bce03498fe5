"""The optimizer loop and what it stands on."""
