"""What a run measures before and after: held-out loss, what was forgotten, answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from lmflow.components import Inferencer, Reward
from lmflow.data.sample import Message, Prompt, Sample, TokenSequence
from lmflow.inference.rewards import score_completions
from lmflow.inference.shard import generate_sharded
from lmflow.inference.types import Completion, Sampling
from lmflow.models.language_model import LanguageModel
from lmflow.run.log import RunLog
from lmflow.training.trainer import Trainer

GENERIC_CHUNK = 256
"""Tokens per sequence of the generic text."""


def generic_sequences(model: LanguageModel) -> list[TokenSequence]:
    """Generic English no run trains on, as plain-text sequences: its loss tells what a run made the model forget."""
    text = (files("lmflow") / "data" / "generic_text.txt").read_text(encoding="utf-8")
    [whole] = model.encode(Sample((Message("assistant", text),), templated=False, source="generic text"))
    length = min(GENERIC_CHUNK, model.context_length or GENERIC_CHUNK)
    pieces = [slice(start, start + length) for start in range(0, len(whole), length)]
    chunks = [TokenSequence(whole.ids[at], whole.loss_mask[at], whole.source) for at in pieces]
    return [chunk for chunk in chunks if chunk.num_targets]


@dataclass(frozen=True)
class Answers:
    """Completions of held-out prompts, in the order of `samples`; rewards if there is a reward."""

    samples: Sequence[Sample]
    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    rewards: Sequence[float] | None

    @property
    def mean_reward(self) -> float | None:
        """Mean over the prompts."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    @property
    def accuracy(self) -> float | None:
        """Share with reward 1; meaningful for verifiable rewards only."""
        return sum(score >= 1 for score in self.rewards) / len(self.rewards) if self.rewards else None


def answer(
    model: LanguageModel,
    samples: Sequence[Sample],
    trainer: Trainer,
    inferencer: Inferencer,
    reward: Reward | None,
    sampling: Sampling,
    log: RunLog,
) -> Answers:
    """Complete each sample's prompt once as `sampling` says, and score the completions."""
    prompts = [model.encode_prompt(sample) for sample in samples]
    with trainer.autocast():
        drawn = generate_sharded(model, prompts, inferencer, sampling, log, "answering held-out prompts")
    completions = [each[0] for each in drawn]
    rewards = None
    if reward is not None:
        texts = [completion.text for completion in completions]
        rewards = log.processes.on_rank0(lambda: score_completions(reward, samples, texts))
    return Answers(samples, prompts, completions, rewards)


def compare(before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Rows for comparison.jsonl: the same prompts answered before and after."""
    rows = []
    for index, sample in enumerate(before.samples):
        row: dict[str, Any] = {
            "prompt": sample.prompt_text,
            "before": before.completions[index].text,
            "after": after.completions[index].text,
        }
        if before.rewards is not None and after.rewards is not None:
            row |= {"reward_before": before.rewards[index], "reward_after": after.rewards[index]}
        if len(sample.messages) > 1 and sample.messages[-1].role == "assistant":
            row["expected"] = sample.messages[-1].content
        rows.append(row)
    return rows
