"""Exporter `merge`: one model directory that plain Transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lmflow.atomic import atomic_directory
from lmflow.components import ExportContext, Exporter, LoadRequest
from lmflow.run_files import read_record


class Merge(Exporter):
    """Write one model directory that plain Transformers loads, adapters merged in."""

    name = "merge"

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the weights; by default the precision of the run."
    )

    def export(self, context: ExportContext) -> Path:
        """Merge in float32, so that rounding happens once; the directory is complete or absent.

        By default the weights are float32 for a run that trained in fp32, so that nothing is lost, else bfloat16.
        """
        import torch

        source, output = Path(context.source), context.output
        model = context.model.load(LoadRequest(plugins=context.plugins))
        trained_in = read_record(source).get("precision", "fp32") if source.is_dir() else "fp32"
        wanted = self.dtype or ("float32" if trained_in == "fp32" else "bfloat16")
        model.module.to(getattr(torch, wanted))
        with atomic_directory(output) as partial:
            model.save(partial)
        return output
