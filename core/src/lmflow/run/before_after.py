"""What a run measures before and after: held-out loss, what was forgotten, answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from lmflow.components import AlignContext, Aligner, GenerateRequest
from lmflow.data.sample import Message, Prompt, Sample, TokenSequence
from lmflow.inference.rewards import score_on_rank0
from lmflow.inference.shard import generate_sharded
from lmflow.inference.types import Completion, Sampling
from lmflow.models.language_model import LanguageModel
from lmflow.training.objective import NextToken

GENERIC_CHUNK = 256
"""Tokens per sequence of the generic text."""
SHOWN_ANSWERS = 20
"""Held-out prompts answered before and after when no reward scores them."""


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


def measure(when: str, context: AlignContext, aligner: Aligner) -> Answers | None:
    """Held-out loss, loss on generic text, and greedy answers to held-out prompts; `when` is "before" or "after".

    A model without next-token logits (a scorer) has the first alone.
    """
    model, trainer, reward, metrics = context.model, context.trainer, context.reward, context.log.metrics
    if trainer.heldout:
        found = trainer.validate(trainer.heldout)
        metrics[f"eval_loss_{when}"] = found.pop("loss")
        metrics |= {f"eval_{name}_{when}": value for name, value in found.items()}
    if model.kind == "scorer":
        return None
    metrics[f"generic_loss_{when}"] = trainer.evaluate(generic_sequences(model), NextToken())
    count = aligner.heldout_prompts if reward else min(aligner.heldout_prompts, SHOWN_ANSWERS)
    samples = answerable(model, context.data.heldout, aligner.max_new_tokens, text=reward is not None)[:count]
    if not samples:
        return None
    answers = answer(context, samples, Sampling(temperature=0.0, max_new_tokens=aligner.max_new_tokens))
    if answers.rewards is not None:
        metrics[f"heldout_greedy_reward_{when}"] = answers.mean_reward
        if reward is not None and reward.verifiable:
            metrics[f"heldout_accuracy_{when}"] = answers.accuracy
    return answers


def answerable(model: LanguageModel, samples: Sequence[Sample], max_new_tokens: int, *, text: bool) -> list[Sample]:
    """Samples whose prompt leaves room for an answer; plain text counts as a prompt only with `text`."""
    asked = [s for s in samples if text or s.templated or len(s.messages) > 1]
    limit = model.context_length
    return [s for s in asked if limit is None or len(model.encode_prompt(s).ids) + max_new_tokens <= limit]


def answer(context: AlignContext, samples: Sequence[Sample], sampling: Sampling) -> Answers:
    """Complete each sample's prompt once as `sampling` says, and score the completions."""
    model, reward, log = context.model, context.reward, context.log
    prompts = [model.encode_prompt(sample) for sample in samples]
    with context.trainer.autocast():
        request = GenerateRequest(model, prompts, sampling)
        found = generate_sharded(context.inferencer, request, log, "answering held-out prompts")
    completions = [each[0] for each in found]
    rewards = None
    if reward is not None:
        texts = [completion.text for completion in completions]
        rewards = score_on_rank0(log, reward, samples, texts)
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
