"""Versions of lmflow, and of the interface between it and its plugins."""

__version__ = "0.1.0"
INTERFACE_VERSION = 2
"""Version of the hooks and component interfaces. Plugins state the one they were written for."""
