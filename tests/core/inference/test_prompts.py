"""Prompts from anywhere, and the records made of their completions."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import GenerateRequest, Inferencer
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError, LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.prompts import (
    Framing,
    complete,
    encode_prompt,
    frame,
    in_order,
    prompt_sample,
    read_prompts,
    report_refused,
    stream,
)
from lmflow.inference.types import Completion, Sampling
from lmflow.recipe.sections.data import DataOptions

PLAIN = Framing()


def user(text: str, number: int = 0) -> Sample:
    return Sample((Message("user", text),), source=f"p:{number}")


def read(path: Path, framing: Framing = PLAIN, **options: Any) -> list[Sample]:
    return read_prompts(DataOptions(path=str(path), **options), Formats(FORMATS), framing)


# Reading


def test_text_file_has_a_prompt_per_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n  two \nthree")
    found = read(tmp_path / "p.txt")
    assert [sample.prompt_text for sample in found] == ["one", "  two ", "three"]
    assert [sample.source for sample in found] == ["p.txt:1", "p.txt:3", "p.txt:4"]
    assert all(sample.templated for sample in found)
    assert [sample.prompt_text for sample in read(tmp_path / "p.txt", limit=2)] == ["one", "  two "]
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(b"one\ntwo"))
    assert len(read(tmp_path / "p.txt.gz")) == 2


def test_records_keep_whether_they_have_a_template(tmp_path: Path) -> None:
    records = tmp_path / "r.jsonl"
    records.write_text('{"prompt": "q", "answer": "a"}\n')
    [asked] = read(records)
    assert (asked.templated, asked.prompt_text, asked.messages[-1].content) == (True, "q", "a")
    assert not read(records, Framing(raw=True))[0].templated
    records.write_text('{"text": "once upon"}\n')
    assert not read(records)[0].templated


def test_a_records_own_system_text_stays(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(
        '{"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]}\n'
        '{"messages": [{"role": "user", "content": "q"}]}\n'
    )
    found = read(tmp_path / "r.jsonl", Framing(system="given"))
    assert [sample.messages[0].content for sample in found] == ["own", "given"]
    with pytest.raises(DataError, match="p:1: a system text needs the chat template"):
        frame(user("x", 1), Framing(system="s", raw=True))


def test_images_get_marks(tmp_path: Path) -> None:
    one, two = (str(tmp_path / name) for name in ("1.png", "2.png"))
    Path(one).touch()
    Path(two).touch()
    assert prompt_sample("which?", PLAIN, [one, two]).messages[0].content == "<image><image>\nwhich?"
    placed = prompt_sample("a <image> and <image>?", PLAIN, [one, two])
    assert (placed.messages[0].content, placed.images) == ("a <image> and <image>?", (one, two))
    assert prompt_sample("a tag <image>", PLAIN).messages[0].content == "a tag <image>"
    with pytest.raises(DataError, match="it says <image> 1 times, and there are 2 images"):
        prompt_sample("a <image>?", PLAIN, [one, two])
    with pytest.raises(DataError, match=r"the prompt: there is no image nowhere\.png"):
        prompt_sample("?", PLAIN, ["nowhere.png"])
    assert prompt_sample("?", PLAIN, ["data:image/png;base64,AAAA"]).images


# Completing


def test_completions_are_those_of_generate(tiny_model: Any) -> None:
    samples = {index: user(text, index) for index, text in enumerate(["the fox", "a", "learns to answer and"])}
    sampling = Sampling(n=2, max_new_tokens=6, seed=3)
    records = {record["index"]: record for record in complete(tiny_model, samples, HuggingFace(), sampling)}
    prompts = [tiny_model.encode_prompt(each) for each in samples.values()]
    for index, expected in enumerate(HuggingFace().generate(GenerateRequest(tiny_model, prompts, sampling))):
        assert records[index]["prompt"] == samples[index].prompt_text
        assert records[index]["completions"] == [
            {
                "text": each.text,
                "finish_reason": each.finish_reason,
                "tokens": len(each.ids),
                "logprob": pytest.approx(sum(each.logprobs), abs=1e-4),
            }
            for each in expected
        ]


def test_a_prompts_completion_does_not_depend_on_which_others_are_missing(tiny_model: Any) -> None:
    samples = {index: user(text, index) for index, text in enumerate(["the fox", "a", "learns to", "dog", "and then"])}
    sampling = Sampling(max_new_tokens=8, seed=1)
    whole = {each["index"]: each for each in complete(tiny_model, samples, HuggingFace(), sampling)}
    part = {index: samples[index] for index in (1, 4)}
    for record in complete(tiny_model, part, HuggingFace(), sampling):
        assert [each["text"] for each in record["completions"]] == [
            each["text"] for each in whole[record["index"]]["completions"]
        ]


class ByDefault(Inferencer):
    """Only what an inferencer must have; its completions are the prompts' own texts."""

    name = "by-default"

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        decode = request.model.tokenizer.decode
        return [[Completion((1,), decode(prompt.ids), (0.0,), "eos")] for prompt in request.prompts]


def test_an_inferencer_without_generate_each_draws_a_few_at_a_time(tiny_model: Any) -> None:
    samples = {index: user(f"number {index}", index) for index in range(40)}
    records = list(complete(tiny_model, samples, ByDefault(), Sampling()))
    assert [record["index"] for record in records] == list(range(40))
    assert all(record["prompt"] in record["completions"][0]["text"] for record in records)


def test_record_of_a_dialogue(tiny_model: Any) -> None:
    turns = Message("system", "be brief"), Message("user", "who"), Message("assistant", "me")
    [record] = complete(tiny_model, {7: Sample(turns, source="d:8")}, ByDefault(), Sampling())
    assert (record["index"], record["source"], record["expected"]) == (7, "d:8", "me")
    assert record["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who"}]
    assert json.loads(json.dumps(record)) == record


def test_a_prompt_that_cannot_be_answered_costs_no_other(tiny_model: Any) -> None:
    samples = {0: user("the fox", 0), 1: user("fox " * 300, 1), 2: user(" ", 2)}
    records = {each["index"]: each for each in complete(tiny_model, samples, HuggingFace(), Sampling(max_new_tokens=2))}
    assert "error" not in records[0]
    assert records[1]["completions"] == []
    assert records[1]["error"].startswith("p:1: the prompt has ")
    assert "--context" in records[1]["error"]
    assert records[2]["error"] == "p:2: the prompt is empty; there is nothing to answer"
    with pytest.raises(LmflowError, match="2 of 3 prompts could not be answered"):
        report_refused([records[index] for index in range(3)])
    report_refused([records[0]])


def test_if_none_can_be_answered_the_first_error_is_raised(tiny_model: Any) -> None:
    with pytest.raises(DataError, match="p:0: the prompt is empty"):
        list(complete(tiny_model, {0: user("", 0)}, HuggingFace(), Sampling()))
    with pytest.raises(DataError, match="nothing to continue"):
        encode_prompt(tiny_model, frame(user("", 0), Framing(raw=True)))
    with pytest.raises(DataError, match="vision-language"):
        encode_prompt(tiny_model, Sample((Message("user", "<image>", ("x.png",)),)))


def test_stream_is_the_completion(tiny_model: Any) -> None:
    sampling = Sampling(max_new_tokens=8, seed=2)
    [[whole]] = HuggingFace().generate(
        GenerateRequest(tiny_model, [tiny_model.encode_prompt(user("the fox"))], sampling)
    )
    assert "".join(stream(tiny_model, user("the fox"), HuggingFace(), sampling)) == whole.text


def test_raw_prompts_are_continued_as_they_are(tiny_model: Any) -> None:
    raw = prompt_sample("the quick brown", Framing(raw=True))
    assert list(encode_prompt(tiny_model, raw).ids) == tiny_model.tokenizer("the quick brown")["input_ids"]


def test_in_order() -> None:
    def records() -> Iterator[dict[str, Any]]:
        for index in (2, 0, 1, 4, 3):
            yield {"index": index}
            seen.append(index)

    seen: list[int] = []
    ordered = in_order(records())
    assert next(ordered) == {"index": 0}
    assert seen == [2]  # given out as soon as nothing before it is missing
    assert [record["index"] for record in ordered] == [1, 2, 3, 4]


def test_the_documented_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "inference.md").read_text(encoding="utf-8")
    known: dict[str, Any] = {}
    for source in re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S):
        exec(compile(source, "inference.md", "exec"), known)
    assert capsys.readouterr().out == "".join(re.findall(r"^```text\n(.*?)^```", page, flags=re.M | re.S))
