"""How far it is from the command to the backward pass."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import lmflow
from lmflow.cli import main

SOURCE = str(Path(lmflow.__file__).parent)


def test_from_the_command_to_the_backward_pass_are_seven_calls_each_with_a_name_of_its_own(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found: list[list[str]] = []
    backward = torch.Tensor.backward

    def record(self: torch.Tensor, *arguments: Any, **named: Any) -> None:
        ours = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(SOURCE)]
        found.append(ours)
        backward(self, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "backward", record)
    options = {"model.path": small["model"]["path"], "data.path": small["data"]["path"], "training.max_steps": 1}
    words = [word for path, value in options.items() for word in (f"--{path}", str(value))]
    chosen = ["--tuner", "lora", "--aligner", "sft", "--training.device", "cpu", "--quiet"]
    with pytest.raises(SystemExit) as stop:
        main(["run", *words, *chosen, "--output", str(tmp_path / "out")])
    assert stop.value.code == 0
    of_training = found[-1]
    assert of_training[of_training.index("run_command") :] == [
        "run_command",
        "run",
        "align",
        "fit",
        "_train_step",
        "accumulate",
        "backward",
    ]
