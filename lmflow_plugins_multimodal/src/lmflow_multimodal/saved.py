"""Files of a saved vision-language model, read so that each fault names the file it is in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from lmflow.errors import LmflowError
from lmflow_multimodal.projector import Kind

TOWER = {"model_cfg", "preprocess_cfg", "layer", "pool"}
"""What the configuration must say of the tower."""


def read_config(file: Path) -> Mapping[str, Any]:
    """The configuration in `file`. Raises LmflowError where it cannot be read, or lacks something."""
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        if config["projector"] not in get_args(Kind):
            raise ValueError(f"projector: expected one of {', '.join(get_args(Kind))}")
        if lacking := sorted(TOWER - config["tower"].keys()):
            raise ValueError(f"tower: {', '.join(lacking)} missing")
    except KeyError as error:
        raise damaged(file, f"{error.args[0]} missing") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:  # the last two of JSON of another shape
        raise damaged(file, str(error)) from error
    found: Mapping[str, Any] = config
    return found


def load_weights(module: nn.Module, file: Path) -> None:
    """Fill a module with the weights in `file`. Raises LmflowError where they are not the module's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise damaged(file, str(error)) from error
    except RuntimeError as error:  # names or shapes that do not fit, a line for each
        raise damaged(file, " ".join(line.strip() for line in str(error).splitlines()[:2])) from error


def damaged(file: Path, why: str) -> LmflowError:
    """The error for a file that is not what was saved."""
    return LmflowError(f"model.path: {file} is damaged: {why}. Copy it again from where the model was saved.")
