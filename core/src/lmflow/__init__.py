"""Fine-tune, align, extend and run large language models, on a core that plugins extend."""

from lmflow.versions import INTERFACE_VERSION, __version__

__all__ = ["INTERFACE_VERSION", "__version__"]
