"""The conformance suite for exporters: what is written for other tools is whole, and answers as what was trained."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lmflow.components import ExportContext, Exporter, LoadRequest
from lmflow.errors import LmflowError
from lmflow.testing.comparing import changed_files, file_hashes, read_logits, some
from lmflow.testing.runs import plugins_with, supply

if TYPE_CHECKING:
    from torch import Tensor

    from lmflow.plugins import Plugins

IDS = (5, 60, 7, 200, 90, 11, 301, 4)
"""The tokens whose logits are compared."""
LoadBack = Callable[[Path, Sequence[int]], "Tensor"]


class ExporterSuite:
    """An examination of one exporter; inherit from it in a class whose name begins with Test, and supply it.

        from lmflow.testing import ExporterSuite

        class TestMyExporter(ExporterSuite):
            @pytest.fixture
            def exporter(self):
                return MyExporter(dtype="float32")

            @pytest.fixture
            def load_back(self):
                return lambda path, ids: my_tool_logits(path, ids)

    Each test is one requirement, and its docstring says which. What is exported is a tiny model on disk, or what the
    fixture `source` names.
    """

    tolerance: ClassVar[float] = 1e-5
    """Largest difference of a logit that the format explains: none for float32, more where weights are rounded."""
    architecture: ClassVar[str] = "llama"
    """The tiny model's architecture, one of lmflow.testing.tiny.ARCHITECTURES."""

    @pytest.fixture
    def exporter(self) -> Exporter:
        """The exporter under examination; every suite supplies its own."""
        supply(self, "exporter")

    @pytest.fixture
    def load_back(self) -> LoadBack:
        """Given what `export` returned and T token ids, the logits (T, vocabulary) of the tool it is written for.

        The default loads the result with plain Transformers.
        """
        return transformers_logits

    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        """What is exported: a directory, as it stands on the command line."""
        from lmflow.testing.tiny import tiny_model

        tiny_model(self.architecture, sharpness=3.0).save(tmp_path / "source")
        return str(tmp_path / "source")

    @pytest.fixture
    def plugins(self, exporter: Exporter) -> Plugins:
        """The installed plugins, with the exporter among them even where it is not installed."""
        return plugins_with(type(exporter))

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An empty directory that is also the working directory: what is written beside the output is seen."""
        place = tmp_path / "place"
        place.mkdir()
        monkeypatch.chdir(place)
        return place

    # What is written

    def test_it_writes_at_the_output_alone(
        self, exporter: Exporter, source: str, plugins: Plugins, place: Path
    ) -> None:
        """Files appear at `output` alone, a directory that does not exist or is empty; the result is one of them."""
        (place / "empty").mkdir()
        for name in ("new", "empty"):
            written = self.export(exporter, source, plugins, place / name)
            holds = written.exists() and written.resolve().is_relative_to((place / name).resolve())
            assert holds, f"expected export() to return what stands at or below {place / name}; it returned {written}"
        others = sorted(path.name for path in place.iterdir() if path.name not in ("new", "empty"))
        assert not others, (
            f"expected nothing beside the output; found {some(others)}. Usual cause: a relative path, or a temporary "
            "directory that is not removed."
        )

    def test_the_result_has_the_logits_of_the_source(
        self, exporter: Exporter, source: str, plugins: Plugins, place: Path, load_back: LoadBack
    ) -> None:
        """The other tool (`load_back`) finds the logits of the source, up to `tolerance`."""
        from lmflow.data.sample import TokenSequence
        from lmflow.recipe.resolve import model_from_reference

        written = self.export(exporter, source, plugins, place / "out")
        model = model_from_reference(plugins, source).load(LoadRequest(plugins=plugins))
        expected = read_logits(model, [TokenSequence(list(IDS), [True] * len(IDS), "here")])
        found = load_back(written, list(IDS))
        assert found.shape == expected.shape, (
            f"expected logits of shape {tuple(expected.shape)} from load_back; found {tuple(found.shape)}"
        )
        off = float((found.float() - expected).abs().max())
        assert off <= self.tolerance, (
            f"expected the logits of the source up to {self.tolerance:g}; found a difference of {off:.3g}. Usual "
            "cause: a transposed or tied matrix, another order of rotary pairs, or weights rounded twice."
        )

    def test_the_source_is_untouched(self, exporter: Exporter, source: str, plugins: Plugins, place: Path) -> None:
        """The directory that was exported holds what it held, byte for byte."""
        before = file_hashes(Path(source))
        self.export(exporter, source, plugins, place / "out")
        changed = changed_files(file_hashes(Path(source)), before)
        assert not changed, f"expected {source} to be left alone; found {some(changed)} changed or added"

    def test_exporting_again_writes_the_same(
        self, exporter: Exporter, source: str, plugins: Plugins, place: Path
    ) -> None:
        """Two exports of one source are the same files byte for byte, so that they can be compared and cached."""
        for name in ("one", "two"):
            self.export(exporter, source, plugins, place / name)
        changed = changed_files(file_hashes(place / "two"), file_hashes(place / "one"))
        assert not changed, f"expected the same files twice; found {some(changed)} different. Usual cause: the time"

    def test_nothing_is_printed(self, exporter: Exporter, source: str, plugins: Plugins, place: Path) -> None:
        """Nothing goes to standard output, where `lmflow export` prints the path alone."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.export(exporter, source, plugins, place / "out")
        assert not printed.getvalue(), f"expected nothing on standard output; found {printed.getvalue()[:200]!r}"

    # What happens when it fails

    def test_a_failure_half_way_leaves_nothing(
        self, exporter: Exporter, source: str, plugins: Plugins, place: Path
    ) -> None:
        """Where a file cannot be written the export fails, and at the output and beside it there is nothing.

        The failures are planted: the first, the middle and the last file opened for writing, and every rename.
        """
        with counted() as opened:
            self.export(exporter, source, plugins, place / "whole")
        shutil.rmtree(place / "whole")
        planted = sorted({1, (opened[0] + 1) // 2, opened[0]} - {0})
        assert planted or opened[1], (
            "expected the exporter to open a file or to rename one through Python, where a failure can be planted; it "
            "does neither. Write to a temporary directory first, and move that with os.replace."
        )
        for number in [*planted, *([None] if opened[1] else [])]:
            error: Exception | None = None
            with failing_at(number):
                try:
                    self.export(exporter, source, plugins, place / "out")
                except Exception as raised:
                    error = raised
            where = "a rename" if number is None else f"writing file {number} of {opened[0]}"
            assert isinstance(error, OSError | LmflowError), (
                f"expected the OSError of {where}, or an LmflowError about it; found {error!r}. Usual cause: an "
                "error that is caught and not raised again."
            )
            left = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
            assert left in ([], ["out"]), (
                f"expected nothing to be left where {where} failed; found {some(left)}. Usual cause: files written to "
                "the output directly; write beside it, and rename when all is there."
            )
        written = self.export(exporter, source, plugins, place / "out")
        assert written.exists(), "expected an export after a failed one to succeed; it wrote nothing"

    def export(self, exporter: Exporter, source: str, plugins: Plugins, output: Path) -> Path:
        """Export as `lmflow export` does."""
        from lmflow.recipe.resolve import model_from_reference
        from lmflow.testing.contexts import quiet_log

        model = model_from_reference(plugins, source)
        written = exporter.export(
            ExportContext(plugins=plugins, log=quiet_log(), source=source, model=model, output=output)
        )
        assert isinstance(written, Path), f"expected export() to return a Path; it returned {written!r}"
        return written


def transformers_logits(path: Path, ids: Sequence[int]) -> Tensor:
    """Logits (T, vocabulary) of `ids` by plain Transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: Tensor = module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


# Planted failures


@contextmanager
def counted() -> Iterator[list[int]]:
    """Within the context files opened for writing, and renames, are counted: [opened, renamed]."""
    numbers = [0, 0]

    def on_open(_: Any) -> None:
        numbers[0] += 1

    def on_rename(_: Any) -> None:
        numbers[1] += 1

    with watched(on_open, on_rename):
        yield numbers


@contextmanager
def failing_at(number: int | None) -> Iterator[None]:
    """Within the context opening the `number`-th file for writing fails for want of space; None: every rename."""
    seen = [0]

    def on_open(path: Any) -> None:
        seen[0] += 1
        if seen[0] == number:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def on_rename(path: Any) -> None:
        if number is None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with watched(on_open, on_rename):
        yield


@contextmanager
def watched(on_open: Callable[[Any], None], on_rename: Callable[[Any], None]) -> Iterator[None]:
    """Within the context `on_open` is called before a file is opened for writing, `on_rename` before a rename."""
    opening, replacing, renaming = io.open, os.replace, os.rename

    def open_file(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and set(mode) & set("wax+"):
            on_open(file)
        return opening(file, mode, *more, **options)

    def replace(source: Any, target: Any, **options: Any) -> None:
        on_rename(target)
        replacing(source, target, **options)

    def rename(source: Any, target: Any, **options: Any) -> None:
        on_rename(target)
        renaming(source, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", open_file)
        patch.setattr(io, "open", open_file)
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "rename", rename)
        yield
