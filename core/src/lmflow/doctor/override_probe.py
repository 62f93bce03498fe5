"""Takes the same few training steps under several environments: which of them change a run?

A process of its own, asked by `lmflow.doctor.override_checks`. Standard input holds
`{"trials": {name: {variable: value}}, "file": path or null}`; the file is an accelerate configuration.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lmflow.doctor.override_checks import trials_of_file
from lmflow.doctor.probes import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lmflow.data.batches import Batch

SAME = 1e-5
"""Relative difference up to which two steps are the same; 16-bit numbers differ by a hundred times more."""


def main() -> None:
    """Say of every trial whether it changes a run: {"outcome": "same" | "changed" | "compiled" | "failed", "why"}."""
    warnings.simplefilter("ignore")
    question = json.load(sys.stdin)
    trials = {f"variable {name}": variables for name, variables in question["trials"].items()}
    if question["file"]:
        try:
            settings = read_configuration(question["file"])
        except Exception as error:
            say("file", {"error": str(error).strip().partition("\n")[0]})
        else:
            say("file", {"error": ""})
            trials |= {f"setting {name}": variables for name, variables in trials_of_file(settings).items()}
    usual = take_steps()
    for name, variables in trials.items():
        say(name, compare(variables, usual))


def read_configuration(path: str) -> dict[str, Any]:
    """An accelerate configuration as `accelerate launch` reads it. Raises ValueError for one that it refuses."""
    from accelerate.commands.config import load_config_from_file

    return dict(load_config_from_file(path).to_dict())


def compare(variables: Mapping[str, str], usual: list[float]) -> dict[str, str]:
    """What `variables` do to the steps that give `usual` without them."""
    with surroundings(variables):
        try:
            steps = take_steps()
        except (Exception, SystemExit) as error:
            return {"outcome": "failed", "why": f"{type(error).__name__}: {error}".strip().partition("\n")[0]}
    if not steps:
        return {"outcome": "compiled", "why": ""}
    same = all(math.isclose(one, other, rel_tol=SAME) for one, other in zip(steps, usual, strict=True))
    return {"outcome": "same" if same else "changed", "why": ""}


@contextmanager
def surroundings(variables: Mapping[str, str]) -> Iterator[None]:
    """Within the context these variables are set, and accelerate reads its environment anew; it sets some itself."""
    from accelerate.state import AcceleratorState, GradientState

    before = dict(os.environ)
    os.environ.update(variables)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def take_steps() -> list[float]:
    """Loss and gradient norm of each of two steps of lmflow's own trainer; empty if the model would be compiled.

    Compiling is not waited for: it takes up to minutes.
    """
    import torch
    from accelerate.state import AcceleratorState

    from lmflow.data.sample import TokenSequence
    from lmflow.journal import Journal
    from lmflow.models import LanguageModel
    from lmflow.training.options import TrainingOptions
    from lmflow.training.precision import choose_device
    from lmflow.training.trainer import Trainer

    seen: list[float] = []

    def listen(event: str, *, metrics: Mapping[str, Any], **_: Any) -> None:
        seen.extend((metrics["loss"], metrics["grad_norm"]))

    torch.manual_seed(0)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    model = LanguageModel(small_model().to(choose_device("auto")), tokenizer, "a model of the doctor")
    trainer = Trainer(model, TrainingOptions(batch_size=2), Journal(None, listen), Path())
    if AcceleratorState().dynamo_plugin.backend.value != "NO":
        return []
    sequences = [TokenSequence(range(start, start + 8), [True] * 8) for start in range(1, 5)]
    trainer.fit(sequences, epochs=1, checkpoints=False, objective=loss_of)
    return seen


def small_model() -> nn.Module:
    """Scores for the next token, from the token alone."""
    from torch import nn

    return nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 16))


def loss_of(forward: nn.Module, unwrapped: nn.Module, batch: Batch) -> Tensor:
    """Sum of the negative log-likelihood of every token after the first, in nats."""
    from torch.nn.functional import cross_entropy

    scores: Tensor = forward(batch.input_ids)
    return cross_entropy(scores[:, :-1].flatten(0, 1).float(), batch.input_ids[:, 1:].flatten(), reduction="sum")


if __name__ == "__main__":
    main()
