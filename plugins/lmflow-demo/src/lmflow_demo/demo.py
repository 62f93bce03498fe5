"""The embedded model, its tasks, and the reward that checks their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from lmflow.components import DataFormat, LoadRequest, Model, Reward
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.models.pretrained import Pretrained

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel


class Demo(Model):
    """The embedded model: a Llama of 1.1 million parameters that answers the embedded tasks, often carelessly."""

    name = "demo"
    supports_quantization = True
    supports_device_map = True

    def load(self, request: LoadRequest) -> LanguageModel:
        """Load the packaged weights."""
        with as_file(files("lmflow_demo") / "model") as directory:
            return Pretrained(path=str(directory)).load(self.completed(request))

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """The packaged configuration and tokenizer."""
        with as_file(files("lmflow_demo") / "model") as directory:
            return Pretrained(path=str(directory)).skeleton(self.completed(request))


class DemoTasks(DataFormat):
    """The embedded tasks: {"prompt", "answer"}, with a training and a held-out part."""

    name = "demo"
    reward = "demo"

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The task as the user's turn, its right answer as the assistant's."""
        for field in ("prompt", "answer"):
            if not isinstance(record.get(field), str):
                raise DataError(f"{source}: {field}: expected text, found {record.get(field)!r}")
        turns = Message("user", record["prompt"]), Message("assistant", record["answer"])
        return Sample(turns, True, record, source)

    def embedded(self) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
        """The packaged tasks."""
        lines = (files("lmflow_demo") / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        train, heldout = ([record for record in records if record["split"] == split] for split in ("train", "heldout"))
        return train, heldout


class DemoReward(Reward):
    """1 when a completion is the record's answer (but for case and spaces around words), else 0."""

    name = "demo"
    verifiable = True

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
        """Compare each completion with its record's `answer`."""
        return [
            float(normalise(completion) == normalise(answer_of(sample)))
            for sample, completion in zip(samples, completions)
        ]


def answer_of(sample: Sample) -> str:
    """The record's answer. Raises DataError where it has none."""
    answer = sample.record.get("answer")
    if not isinstance(answer, str):
        raise DataError(f"{sample.source}: reward demo needs a text field `answer` in each record; name another reward")
    return answer


def normalise(text: str) -> str:
    """Lower case, one space between words."""
    return " ".join(text.lower().split())
