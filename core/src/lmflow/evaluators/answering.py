"""What evaluators that let the model answer have in common: prompts, answers, and the records' own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lmflow.components import GenerateRequest
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.inference.prompts import WINDOW, encode_prompt
from lmflow.inference.types import Completion, Sampling

if TYPE_CHECKING:
    from lmflow.components import Inferencer, Log
    from lmflow.models.language_model import LanguageModel

SLOT = "{input}"


def expected_answer(sample: Sample, evaluator: str) -> str:
    """The record's own last answer. Raises DataError where it has none."""
    if sample.messages[-1].role != "assistant" or len(sample.messages) < 2:
        raise DataError(
            f"{sample.source}: {evaluator} compares with the record's own answer, and there is none; give records with "
            "a prompt and an answer"
        )
    return sample.messages[-1].content


def with_prompt_structure(sample: Sample, structure: str) -> Sample:
    """The sample with its last question put where `structure` says {input}."""
    *earlier, question, answer = sample.messages
    asked = Message(question.role, structure.replace(SLOT, question.content), question.images)
    return replace(sample, messages=(*earlier, asked, answer))


def draw_answers(
    model: LanguageModel, samples: Sequence[Sample], inferencer: Inferencer, sampling: Sampling, log: Log
) -> list[Completion]:
    """One completion per sample. Raises DataError for a prompt that does not fit the model's context."""
    drawn: dict[int, Completion] = {}
    with log.phase("answering", len(samples)):
        for start in range(0, len(samples), WINDOW):
            prompts = [encode_prompt(model, sample) for sample in samples[start : start + WINDOW]]
            request = GenerateRequest(model, prompts, sampling, lambda _: log.check_stop())
            for index, completions in inferencer.generate_each(request):
                drawn[start + index] = completions[0]
                log.advance()
    return [drawn[index] for index in range(len(samples))]
