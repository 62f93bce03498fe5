"""A component that raises where it should not: one message that names it, its distribution and the option."""

from __future__ import annotations

import pytest

from lmflow.errors import DataError, PluginError, RecipeError
from lmflow.plugins.faults import blaming
from lmflow.recipe.resolve import model_from_reference

SOURCE = """
from typing import Annotated
from pydantic import AfterValidator, Field, field_validator, model_validator
from lmflow.components import Model, Tuner
from lmflow.hookspecs import hookimpl

def known(value): return {"a": 1}[value]

class Fragile(Tuner):
    "Train nothing."
    name = "fragile"
    rank: int = Field(8, description="How much of nothing.")
    kind: Annotated[str, AfterValidator(known)] = Field("a", description="Of which kind.")
    scale: float = Field(1.0, description="How far.")

    @field_validator("rank")
    @classmethod
    def check_rank(cls, value):
        return {8: 8}[value]

    @model_validator(mode="after")
    def check_all(self):
        return 1 / self.scale and self

    def prepare(self, model): return model

class Curious(Model):
    "Recognise nothing."
    name = "curious"
    shorthand = "path"
    path: str = Field("x", description="Where.")

    @classmethod
    def recognises(cls, reference): raise OSError("no such device")

    def load(self, dtype, device, context=None): ...

@hookimpl
def lmflow_tuners(): return [Fragile]

@hookimpl
def lmflow_models(): return MODELS
"""


@pytest.fixture
def fragile(install_distribution):
    install_distribution("acme-fragile", SOURCE.replace("MODELS", "[]"), version="1.2")


@pytest.mark.parametrize(
    ("options", "checked", "said"),
    [
        (["--tuner.rank", "7"], "checking --tuner.rank", "KeyError: 7"),
        (["--tuner.rank", "7", "--tuner.scale", "2"], "checking --tuner.rank", "KeyError: 7"),
        (["--tuner.kind", "b"], "checking --tuner.kind", "KeyError: 'b'"),
        (["--tuner.scale", "0"], "checking --tuner.scale", "ZeroDivisionError: float division by zero"),
    ],
)
def test_what_a_validator_raises_is_one_message(lmflow, fragile, options, checked, said):
    done = lmflow("recipe", "show", "--tuner", "fragile", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: tuner fragile (acme-fragile 1.2): {checked} raised {said}. "
        "This is a fault of the plugin; --debug shows where.\n"
    )


def test_a_value_from_a_file_is_named_with_its_line(lmflow, fragile, tmp_path):
    (tmp_path / "recipe.yaml").write_text("tuner:\n  name: fragile\n  rank: 7\n")
    done = lmflow("recipe", "show", tmp_path / "recipe.yaml")
    assert f"checking {tmp_path}/recipe.yaml:3: tuner.rank raised KeyError: 7" in done.err


def test_debug_shows_where(fragile):
    from lmflow.cli import main

    with pytest.raises(PluginError) as caught:
        main(["recipe", "show", "--tuner", "fragile", "--tuner.rank", "7", "--debug"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_model_that_fails_to_recognise_is_named(lmflow, install_distribution, tmp_path):
    install_distribution("acme-curious", SOURCE.replace("MODELS", "[Curious]"))
    done = lmflow("recipe", "show", "--model", tmp_path)
    assert done.code == 2
    assert f"model curious (acme-curious 1.0): recognises('{tmp_path}') raised OSError: no such device" in done.err


def test_a_model_s_shorthand_is_checked_too(install_distribution):
    from lmflow.plugins import load_plugins

    source = SOURCE.replace("MODELS", "[Curious]").replace('"x", description', '"x", min_length=3, description')
    install_distribution("acme-curious", source)
    with pytest.raises(RecipeError, match="at least 3 characters"):
        model_from_reference(load_plugins(), "curious:ab")


def test_our_own_errors_pass_unchanged():
    with pytest.raises(DataError, match=r"^here$"), blaming("tuner x", "a call"):
        raise DataError("here")
    with pytest.raises(PluginError, match=r"tuner x: a call raised SystemExit: 3"), blaming("tuner x", "a call"):
        raise SystemExit(3)
