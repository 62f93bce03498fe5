"""A tuner that renames parameters and does not say how to save them is stopped before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from lmflow.components import Tuner
from lmflow.errors import TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.run.stages import check_savable, parameter_names


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Naive(Tuner):
    name = "naive"

    def prepare(self, model: nn.Module) -> nn.Module:
        model.model.layers[0].mlp.up_proj = Scaled(model.model.layers[0].mlp.up_proj)  # type: ignore[index,union-attr,assignment]
        return model


class Careful(Naive):
    name = "careful"

    def save(self, model: LanguageModel, directory: Path) -> Path:
        return directory


def test_it_is_named_with_what_to_do(tiny_model: LanguageModel):
    before = parameter_names(tiny_model)
    after = parameter_names(tiny_model.prepare(Naive()))
    with pytest.raises(TrainingError, match=r"tuner naive: prepare\(\) adds or renames 2 parameters.*Override save"):
        check_savable(Naive(), before, after)
    check_savable(Careful(), before, after)
    check_savable(Naive(), before, before)
