"""The suite of exporters passes ours, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.builtin.merge import Merge
from lmflow.components import ExportContext, Exporter, LoadRequest
from lmflow.models.language_model import LanguageModel
from lmflow.testing import ExporterSuite


class TestMerge(ExporterSuite):
    @pytest.fixture
    def exporter(self) -> Exporter:
        return Merge()


class TestMergeInBfloat16(ExporterSuite):
    tolerance = 0.1

    @pytest.fixture
    def exporter(self) -> Exporter:
        return Merge(dtype="bfloat16")


class Whole(Exporter):
    """A model directory, written beside the output and moved: a good exporter, from which the broken ones differ."""

    name = "whole"

    def export(self, context: ExportContext) -> Path:
        model = context.model.load(LoadRequest(plugins=context.plugins))
        partial = context.output.with_name(".partial")
        try:
            self.write(model, partial, context)
            if context.output.exists():
                context.output.rmdir()
            os.replace(partial, context.output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return context.output

    def write(self, model: LanguageModel, partial: Path, context: ExportContext) -> None:
        model.save(partial)


class WritesHere(Whole):
    def write(self, model, partial, context):
        super().write(model, partial, context)
        Path("export.log").write_text("done")


class Rounds(Whole):
    def write(self, model, partial, context):
        model.module.to(torch.bfloat16).float()
        super().write(model, partial, context)


class MarksTheSource(Whole):
    def write(self, model, partial, context):
        super().write(model, partial, context)
        (Path(context.source) / "exported").write_text("")


class WritesTheTime(Whole):
    def write(self, model, partial, context):
        super().write(model, partial, context)
        (partial / "when").write_text(str(time.time_ns()))


class Prints(Whole):
    def write(self, model, partial, context):
        super().write(model, partial, context)
        print("written")


class WritesInPlace(Whole):
    def export(self, context):
        context.model.load(LoadRequest()).save(context.output)
        return context.output


class LeavesThePartial(Whole):
    def export(self, context):
        partial = context.output.with_name(".partial")
        context.model.load(LoadRequest()).save(partial)
        if context.output.exists():
            context.output.rmdir()
        os.replace(partial, context.output)
        return context.output


class SaysNothing(Whole):
    def export(self, context):
        with contextlib.suppress(OSError):
            super().export(context)
        return context.output


FAILS = "test_a_failure_half_way_leaves_nothing"


def test_a_good_exporter_passes_everything(examine: Callable[..., Any]):
    reports = examine(ExporterSuite, exporter=Whole())
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (WritesHere, "test_it_writes_at_the_output_alone", "found export.log"),
        (Rounds, "test_the_result_has_the_logits_of_the_source", "expected the logits of the source"),
        (MarksTheSource, "test_the_source_is_untouched", "found exported changed or added"),
        (WritesTheTime, "test_exporting_again_writes_the_same", "found when different"),
        (Prints, "test_nothing_is_printed", "found 'written"),
        (WritesInPlace, FAILS, "files written to the output directly"),
        (LeavesThePartial, FAILS, ".partial"),
        (SaysNothing, FAILS, "an error that is caught and not raised again"),
    ],
)
def test_a_broken_exporter_fails_its_check(broken: type[Exporter], check: str, said: str, examine: Callable[..., Any]):
    report = examine(ExporterSuite, exporter=broken(), only=check)[check]
    assert report.outcome == "failed"
    assert " ".join(said.split()) in " ".join(report.message.split())
