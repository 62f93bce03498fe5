"""The suite of inferencers passes good ones; its two parts have tests of their own, with broken ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import PrivateAttr

from lmflow.components import Inferencer
from lmflow.errors import LmflowError
from lmflow.testing import InferencerSuite

from .plain_inferencer import Plain


class NeverOpened(Plain):
    """Needs what `open` is given."""

    _context: Any = PrivateAttr(None)

    def open(self, context):
        self._context = context

    def close(self):
        self._context = None

    def generate(self, request):
        if self._context is None:
            raise LmflowError("not open")
        return super().generate(request)


@pytest.mark.parametrize("good", [Plain, NeverOpened])
def test_a_good_inferencer_passes_everything(good: type[Inferencer], examine: Callable[..., dict[str, Any]]):
    reports = examine(InferencerSuite, inferencer=good())
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


def test_a_suite_without_an_inferencer_says_what_to_write(examine: Callable[..., dict[str, Any]]):
    reports = examine(InferencerSuite, only="test_no_completion_is_longer_than_asked")
    [report] = reports.values()
    assert report.outcome == "failed"
    assert "supplies no inferencer: write a fixture `inferencer` that returns it" in report.message
