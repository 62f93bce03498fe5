"""A vision-language model in `lmflow generate`, `chat` and `eval`: images reach it through the core's own path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.evaluators.perplexity import Nll
from lmflow.inference.chat import Dialogue, run_command
from lmflow.inference.hf import HuggingFace
from lmflow.inference.prompts import Framing, complete, prompt_sample
from lmflow.inference.types import Sampling
from lmflow.run.log import RunLog
from lmflow.testing.contexts import evaluate_context

GREEDY = Sampling(temperature=0, max_new_tokens=6)


def test_images_of_prompts_are_seen(vision: Callable[..., Any], images: dict[str, str]) -> None:
    model = vision()
    samples = {
        index: prompt_sample("which colour", Framing(), [images[colour]] if colour else [])
        for index, colour in enumerate(("red", "blue", None))
    }
    records = {record["index"]: record for record in complete(model, samples, HuggingFace(), GREEDY)}
    assert records[0]["images"] == [images["red"]]
    assert records[0]["prompt"] == "<image>\nwhich colour"
    assert "images" not in records[2]
    sampling = GREEDY.model_copy(update={"temperature": 1.0, "seed": 3})
    logprobs = {
        record["index"]: record["completions"][0]["logprob"]
        for record in complete(model, samples, HuggingFace(), sampling)
    }
    assert len(set(logprobs.values())) == 3
    for index, sample in samples.items():  # alone as together
        [alone] = complete(model, {index: sample}, HuggingFace(), GREEDY)
        assert alone["completions"][0]["text"] == records[index]["completions"][0]["text"]


def test_a_missing_image_costs_one_record(vision: Callable[..., Any], images: dict[str, str], tmp_path: Path) -> None:
    turns = Message("user", "<image> which", (str(tmp_path / "gone.png"),))
    samples = {0: prompt_sample("which", Framing(), [images["red"]]), 1: Sample((turns,), source="r.jsonl:2")}
    records = {record["index"]: record for record in complete(vision(), samples, HuggingFace(), GREEDY)}
    assert records[0]["completions"]
    assert "gone.png" in records[1]["error"]


def test_an_image_in_a_dialogue(vision: Callable[..., Any], images: dict[str, str]) -> None:
    talk = Dialogue(vision(), HuggingFace(), GREEDY)
    run_command(talk, f"/image {images['red']}")
    list(talk.answer("which colour"))
    list(talk.answer("and why"))
    assert [message.images for message in talk.messages] == [(images["red"],), (), (), ()]
    assert talk.messages[0].content == "<image>\nwhich colour"
    run_command(talk, f"/image {images['blue']}")
    with pytest.raises(DataError, match="it says <image> 2 times, and there are 1 images"):
        list(talk.answer("<image> or <image>"))


@pytest.mark.parametrize("of", ["answers", "all"])
def test_nll_of_answers_about_images(vision: Callable[..., Any], images: dict[str, str], of: str) -> None:
    """As the loss of training has it, several images and text alone in one batch."""
    model = vision()
    samples = [
        Sample((Message("user", "<image> which", (images[colour],)), Message("assistant", answer)), source=colour)
        for colour, answer in (("red", "a fox"), ("blue", "the lazy dog jumps"))
    ]
    samples.append(Sample((Message("user", "who"), Message("assistant", "a dog")), source="text"))
    found = Nll(of=of).evaluate(evaluate_context(model, samples, HuggingFace(), RunLog(None, lambda *_, **__: None)))
    for sample, row in zip(samples, found.rows):
        [sequence] = model.encode(sample, "assistant" if of == "answers" else "all")
        with torch.no_grad():
            logits = model.module(torch.tensor([sequence.ids]), **sequence.model_inputs).logits[0, :-1]
        wanted = [i for i in range(1, len(sequence)) if sequence.loss_mask[i]]
        losses = [-float(logits[i - 1].log_softmax(-1)[sequence.ids[i]]) for i in wanted]
        assert row["tokens"] == len(wanted)
        assert row["nll"] == pytest.approx(sum(losses), rel=1e-4)
