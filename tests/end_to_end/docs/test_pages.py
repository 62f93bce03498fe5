"""Every page of the documentation is followed to the letter.

A page is read from top to bottom as somebody would follow it: in one directory, in one shell, so that a block finds the
files, the directory (`cd`) and the variables that blocks above it left. What the language of a fence means:

- `console`: each line that begins with `$ ` is run by bash and must exit with 0. A line that ends with a backslash goes
  on in the next. Lines that follow a command are its output: they must have been printed in that order, next to each
  other. `…` alone on a line stands for any number of lines, within a line for anything.
- any language with a title, as in ```` ```python title="src/my_tuner/component.py" ````: the block is that file.
- `python`: a script to run; with hooks in it, it must also load as a plugin.
- `yaml`: a recipe that `lmflow recipe show` takes.
- `text`: an excerpt of what the last command printed; `json`: the object it printed.

No other fence is let through. A comment directly above a block, `<!-- exits with 2 -->`, says what its commands exit
with, and `<!-- not run by the tests: why -->` takes it out, for a reason that is read in review.

Runs are cut to two steps (stand_ins.py), and there is nobody to type. Pages in docs/plugins are followed in a clean
environment in which things can be installed; the others in the one the tests run in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .following import Follower
from .pages import INDENTED, blocks, executed, name_of, prose
from .terminal import Terminal


@pytest.mark.slow
@pytest.mark.parametrize("page", executed(), ids=name_of)
def test_a_page_can_be_followed(page: Path, terminal: Terminal):
    follower = Follower(terminal)
    for block in blocks(page):
        follower.follow(block)


@pytest.mark.parametrize("page", executed(), ids=name_of)
def test_no_code_hides_in_indentation(page: Path):
    assert not INDENTED.findall(prose(page))
