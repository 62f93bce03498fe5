"""Evaluators `accuracy` and `exact_match`: how often the model's answer is the record's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from lmflow.components import EvaluateContext, Evaluation, Evaluator, Inferencer
from lmflow.errors import DataError
from lmflow.evaluators.extraction import NAMES, plain, same
from lmflow.inference.types import Sampling

if TYPE_CHECKING:
    from lmflow.components import Log
    from lmflow.data.sample import Sample
    from lmflow.models.language_model import LanguageModel


class Answering(Evaluator):
    """What the evaluators that let the model answer take."""

    prompt_structure: str = Field(
        "{input}", description="What is asked, with the record's question where it says {input}."
    )
    max_new_tokens: int = Field(100, gt=0, description="Longest answer, in tokens.")
    temperature: float = Field(0.0, ge=0, description="Softmax temperature; 0 takes the most probable token.")
    seed: int = Field(0, ge=0, description="Seed of the answers, where the temperature is above 0.")

    @field_validator("prompt_structure")
    @classmethod
    def _has_input(cls, structure: str) -> str:
        if "{input}" not in structure:
            raise ValueError(f"must say where the question goes, with {{input}}, got {structure!r}")
        return structure.replace("\\n", "\n")

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=self.seed)

    def answers(
        self, model: LanguageModel, samples: Sequence[Sample], inferencer: Inferencer, log: Log
    ) -> list[dict[str, Any]]:
        """A row per sample: source, prompt, expected, completion and finish_reason."""
        from lmflow.evaluators.answering import draw_answers, expected_answer, with_prompt_structure

        if not samples:
            raise DataError(f"{self.name}: there is no record to measure")
        expected = [expected_answer(sample, self.name) for sample in samples]
        asked = [with_prompt_structure(sample, self.prompt_structure) for sample in samples]
        completions = draw_answers(model, asked, inferencer, self.sampling, log)
        return [
            {
                "source": sample.source,
                "prompt": sample.prompt_text,
                "expected": answer,
                "completion": completion.text,
                "finish_reason": completion.finish_reason,
            }
            for sample, answer, completion in zip(asked, expected, completions)
        ]


class Accuracy(Answering):
    """Share of answers that are right, after finding the answer in what the model says."""

    name = "accuracy"

    answer_type: str = Field(
        "text",
        pattern=f"^({'|'.join(NAMES)})$",
        description="What an answer is, and so how it is found: text, number, multiple_choice, binary_choice (yes, no "
        "or maybe), last_letters, or the name of a data set that has such answers.",
    )

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """Compare the answer found in the completion with the one found in the record's own.

        Metrics are `accuracy`, `standard_error`, `correct`, `not_found` (completions without an answer of the kind,
        which count as wrong) and `records`. Raises DataError for a record whose own answer holds none.
        """
        model, samples, inferencer, log = context.model, context.samples, context.inferencer, context.log
        extract = NAMES[self.answer_type]
        wanted = [self._wanted(sample) for sample in samples]
        rows = self.answers(model, samples, inferencer, log)
        for row, right in zip(rows, wanted):
            given = extract(row["completion"])
            row |= {"expected_answer": right, "answer": given}
            row["correct"] = given is not None and same(extract, given, right)
        found = sum(row["answer"] is not None for row in rows)
        return Evaluation({**share_right("accuracy", rows), "not_found": len(rows) - found, "records": len(rows)}, rows)

    def _wanted(self, sample: Sample) -> str:
        """The answer in the record's own words."""
        from lmflow.evaluators.answering import expected_answer

        own = expected_answer(sample, self.name)
        found = NAMES[self.answer_type](own)
        if found is None:
            raise DataError(
                f"{sample.source}: its answer {own!r} holds no {self.answer_type}; choose another "
                "--evaluator.answer_type"
            )
        return found


class ExactMatch(Answering):
    """Share of answers that are the record's, but for spaces around them."""

    name = "exact_match"

    normalise: bool = Field(False, description="Also ignore case, repeated spaces, and quotes or a full stop around.")

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """Compare completions with the records' answers; metrics as those of `accuracy`, under `exact_match`."""
        model, samples, inferencer, log = context.model, context.samples, context.inferencer, context.log
        prepare = plain if self.normalise else str.strip
        rows = self.answers(model, samples, inferencer, log)
        for row in rows:
            row["correct"] = prepare(row["completion"]) == prepare(row["expected"])
        return Evaluation({**share_right("exact_match", rows), "records": len(rows)}, rows)


def share_right(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The share of correct rows, its standard error, and their number."""
    right = sum(row["correct"] for row in rows)
    share = right / len(rows)
    return {name: share, "standard_error": math.sqrt(share * (1 - share) / len(rows)), "correct": right}
