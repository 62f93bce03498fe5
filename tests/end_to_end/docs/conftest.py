"""Where pages are followed: a directory with the files they name, and a terminal whose Python starts at once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from .pages import ROOT
from .terminal import Terminal

QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
REWARD = "def polite(prompts, completions, records):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture
def place(tmp_path: Path, model_directory: Path, tower_file: Path) -> Path:
    """A directory with what a reader is taken to have: models, records, a reward, a vision tower, images."""
    place = tmp_path / "place"
    for name in ("DIR", "base"):
        shutil.copytree(model_directory, place / name)
    write_records(place)
    write_images(place)
    shutil.copy(tower_file, place / "tower.json")
    (place / "my_rewards.py").write_text(REWARD)
    return place


def write_records(place: Path) -> None:
    """Forty instructions, forty prompts, and plain text that is longer than the model's context."""
    prompts = [f"say {number}" for number in range(40)]
    records = [{"instruction": prompt, "input": "", "output": f"{prompt[4:]} it is"} for prompt in prompts]
    sentence = "the quick brown fox jumps over the lazy dog\n"
    (place / "alpaca.json").write_text(json.dumps(records))
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (place / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    (place / "text.jsonl").write_text(f"{json.dumps({'text': sentence * 4})}\n" * 40)
    (place / "text.txt").write_text(sentence * 40)
    (place / "book.txt").write_text(sentence * 400)


def write_images(place: Path) -> None:
    """A red image that forty records ask about."""
    from PIL import Image

    Image.new("RGB", (16, 16), "red").save(place / "red.png")
    turns = [{"from": "human", "value": "<image>\nwhat color is it?"}, {"from": "gpt", "value": "red"}]
    (place / "images.json").write_text(json.dumps([{"image": "red.png", "conversations": turns}] * 40))


@pytest.fixture
def terminal(page: Path, place: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Terminal:
    """A terminal in `place`: pages about plugins get an environment of their own, in which pip works."""
    if page.parent == ROOT / "docs" / "plugins":
        environment = request.getfixturevalue("make_environment")().variables
        return Terminal(place, tmp_path / "state", {**environment, **QUIET}, stand_ins=("lmflow",))
    commands = request.getfixturevalue("shared_environment").path / "bin"
    variables = {**os.environ, **QUIET, "PATH": f"{commands}:{os.environ['PATH']}"}
    return Terminal(place, tmp_path / "state", variables, stand_ins=("lmflow", "pip"))
