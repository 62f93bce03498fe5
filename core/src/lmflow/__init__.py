"""Fine-tune, align, extend and run large language models, on a core that plugins extend."""

__version__ = "0.1.0"
INTERFACE_VERSION = 1
"""Version of the hooks and component interfaces. Plugins state the one they were written for."""
