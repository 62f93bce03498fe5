"""Weights of a finished run for other tools."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lmflow.errors import LmflowError
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import model_from_reference
from lmflow.run_files import read_record


def merge(source: Path, output: Path, plugins: Plugins, dtype: str | None = None) -> Path:
    """Write the model of a run (or an adapter directory) as one directory that plain Transformers loads.

    Adapters are merged in float32. The weights are written in `dtype`: by default float32 for a run that trained in
    fp32, so that nothing is lost, else bfloat16. `output` is complete or absent. Raises LmflowError when `source`
    holds no finished result or `output` exists.
    """
    if output.exists() and any(output.iterdir()):
        raise LmflowError(f"{output} exists and is not empty; choose another --output.")
    import torch

    model = model_from_reference(plugins, str(source)).load("float32", "cpu")
    trained_in = read_record(source).get("precision", "fp32") if source.is_dir() else "fp32"
    wanted = dtype or ("float32" if trained_in == "fp32" else "bfloat16")
    model.module.to(getattr(torch, wanted))
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save(partial)
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return output
