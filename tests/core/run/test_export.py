"""Writing what was trained for another tool: what an exporter is given, and where it may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmflow.components import ExportContext, Exporter
from lmflow.errors import LmflowError, RecipeError
from lmflow.plugins import load_plugins
from lmflow.run.export import export


class Noting(Exporter):
    """Write down what it was given."""

    name = "noting"

    def export(self, context: ExportContext) -> Path:
        """A file with the source's name."""
        context.output.mkdir(exist_ok=True)
        (context.output / "source.txt").write_text(f"{context.source} {context.model.name}")
        context.log.note("done")
        return context.output / "source.txt"


def test_an_exporter_is_given_source_model_and_place(model_directory: Path, tmp_path: Path):
    written = export(Noting(), load_plugins(), str(model_directory), tmp_path / "out")
    assert written.read_text() == f"{model_directory} pretrained"


def test_an_empty_directory_may_be_filled(model_directory: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    assert export(Noting(), load_plugins(), str(model_directory), tmp_path / "out").is_file()


@pytest.mark.parametrize("kind", ["a file", "a directory that holds something"])
def test_nothing_is_written_over(kind: str, model_directory: Path, tmp_path: Path):
    out = tmp_path / "out"
    if kind == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "precious.txt").write_text("precious")
    with pytest.raises(LmflowError, match=r"out exists and is not empty; choose another --output"):
        export(Noting(), load_plugins(), str(model_directory), out)
    assert (out if out.is_file() else out / "precious.txt").read_text() == "precious"


def test_a_source_that_means_nothing_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match="no model is called dmo; did you mean demo"):
        export(Noting(), load_plugins(), "dmo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
