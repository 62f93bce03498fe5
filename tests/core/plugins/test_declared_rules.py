"""What a component has to declare: each rule, broken by a plugin that is then left out with a reason that names it."""

from __future__ import annotations

import pytest

from lmflow.cli.plugins import listing
from lmflow.plugins import load_plugins

SOURCE = '''
from pydantic import Field
from lmflow.components import Conflict, Need, Requirement, Tuner
from lmflow.hookspecs import hookimpl

class Mine(Tuner):
    """Train nothing."""
    name = "mine"
    rank: int = Field(8, description="How much of nothing.")
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Mine]
'''
DECLARED = '    name = "mine"\n'


def test_a_component_that_keeps_the_rules_loads(install_distribution):
    declared = (
        '    shorthand = "rank"\n    needs = (Need("model", "it does", ("demo",)),)\n'
        '    conflicts = (Conflict("tracker", "it does not"),)\n    requires = (Requirement("json.decoder", "json"),)\n'
    )
    install_distribution("acme-mine", SOURCE.replace(DECLARED, DECLARED + declared))
    assert load_plugins().broken == []


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (DECLARED, '    name = "Mine"\n', "tuner Mine: 'Mine' cannot be a name; use small letters, digits and dashes"),
        (DECLARED, '    name = "my tuner"\n', "tuner my tuner: 'my tuner' cannot be a name"),
        (DECLARED, '    name = "a:b"\n', "cannot be a name"),
        (DECLARED, '    name = "none"\n', "'none' cannot be a name"),
        (DECLARED, "", 'tuner Mine: it has no name; write name = "…" in the class'),
        (DECLARED, '    name: str = "mine"\n', "name is declared as an option; write name = "),
        ('    """Train nothing."""\n', "", "tuner mine: it has no docstring, whose first line is its help"),
        (', description="How much of nothing."', "", "option rank has no description; write Field("),
        ("rank: int", "prepare: int", "option prepare hides Tuner.prepare; give it another name"),
        ("rank: int", "save: int", "option save hides Tuner.save"),
        ("rank: int", "needs: int", "option needs hides Tuner.needs"),
        (DECLARED, DECLARED + '    shorthand = "size"\n', "shorthand 'size' is no option of it"),
        (DECLARED, DECLARED + '    needs = (Need("modle", "it does"),)\n', "needs names 'modle', which is no slot"),
        (
            DECLARED,
            DECLARED + '    conflicts = (Conflict("lora", "no"),)\n',
            "conflicts names 'lora', which is no slot",
        ),
        (DECLARED, DECLARED + '    needs = Need("model", "it does")\n', "needs has to be a tuple of Need"),
        (DECLARED, DECLARED + '    needs = (Need("model", "x", "demo"),)\n', 'of one it is ("demo",)'),
        (DECLARED, DECLARED + '    requires = ("torch",)\n', "requires has to be a tuple of Requirement"),
        (DECLARED, DECLARED + '    requires = (Requirement("flash-attn", "x"),)\n', "'flash-attn', which is no module"),
    ],
)
def test_a_rule_that_is_broken_is_named(before, after, reason, install_distribution):
    assert before in SOURCE
    install_distribution("acme-mine", SOURCE.replace(before, after))
    [broken] = load_plugins().broken
    assert broken.distribution == "acme-mine"
    assert reason in broken.reason
    assert broken.reason.startswith("tuner ")


def test_a_docstring_may_be_a_parent_s(install_distribution):
    child = 'class Yours(Mine):\n    name = "yours"\n\n@hookimpl'
    install_distribution("acme-mine", SOURCE.replace("@hookimpl", child).replace("[Mine]", "[Yours]"))
    assert load_plugins().broken == []
    assert "  tuner      yours                 Train nothing." in list(listing(load_plugins()))


def test_a_name_wider_than_its_column_is_apart_from_what_follows(install_distribution):
    name = "a-tuner-of-a-very-long-name"
    install_distribution("acme-mine", SOURCE.replace('"mine"', f'"{name}"'))
    assert f"  tuner      {name} Train nothing." in list(listing(load_plugins()))


def test_every_broken_rule_is_told_at_once(install_distribution):
    install_distribution("acme-mine", SOURCE.replace('    """Train nothing."""\n', "").replace('"mine"', '"Mine"'))
    [broken] = load_plugins().broken
    assert "cannot be a name" in broken.reason
    assert "no docstring" in broken.reason


def test_a_slot_s_own_options_may_have_other_defaults(install_distribution):
    source = SOURCE.replace("Tuner", "Aligner").replace("lmflow_tuners", "lmflow_aligners")
    source = source.replace("def prepare(self, model): return model", "def align(self, *_): ...")
    source = source.replace("rank: int = Field(8", "max_new_tokens: int = Field(8, gt=0")
    install_distribution("acme-mine", source)
    assert load_plugins().broken == []
