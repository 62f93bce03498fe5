"""What computing in low precision asks of the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def replaced_weights(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Within the context each parameter holds another value; afterwards exactly what it held.

    Autocast keeps its casts of parameters until it ends, so they are dropped: it would compute with the old values.
    """
    saved = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value
        torch.clear_autocast_cache()
        yield
    finally:
        for parameter, value in saved.items():
            parameter.data = value
        torch.clear_autocast_cache()
