"""What `lmflow data check`, `lmflow plan` and `lmflow run` say of the same data: the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that leaves out the thoughts of earlier answers, so that each answer gives a sequence."""


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def thoughtful(number: int) -> dict[str, Any]:
    said = ("user", f"q{number}"), ("assistant", "<think>hm</think>the"), ("user", "and"), ("assistant", "jumps")
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def answered(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"the fox {number}", "completion": "jumps over " * (1 + number % 9), **fields}


DATA: dict[str, list[dict[str, Any]]] = {
    "too long": [answered(number) for number in range(20)],
    "untrained": [answered(number) for number in range(10)] + [{"prompt": f"q{number}"} for number in range(9)],
    "several sequences": [thoughtful(number) for number in range(8)],
    "preferences": [{"prompt": f"q{n}", "chosen": "the fox " * n, "rejected": "a dog"} for n in range(1, 12)],
    "said twice": [answered(number % 7) for number in range(20)],
}


@pytest.fixture
def say(lmflow: Call, model_directory: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], ...]]:
    """What the three commands say of data: the report of check, the plan, and run.json."""

    def ask(*options: object, limit: int = 30) -> tuple[dict[str, Any], ...]:
        model = ("--model", model_directory, "--data.max_length", limit)
        check = lmflow("data", "check", *model, *options, "--json")
        training = ("--training.max_steps", 1, "--training.batch_size", 2, "--tuner", "lora")
        plan = lmflow("plan", *model, *options, *training, "--json")
        run = lmflow("run", *model, *options, *training, "--output", tmp_path / "run", "--overwrite", "--quiet")
        assert (check.code, run.code) == (0, 0), check.out + run.err
        return json.loads(check.out), json.loads(plan.out), json.loads((tmp_path / "run" / "run.json").read_text())

    return ask


def compare(check: dict[str, Any], plan: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    lengths: dict[str, Any] = dict(run["tables"]["lengths"])
    assert plan["lengths"] == lengths
    del lengths["findings"]
    assert check["lengths"] == lengths
    assert (check["tokens"], check["num_targets"]) == (lengths["tokens"], lengths["num_targets"])
    assert lengths["samples"] == run["data"]["train"] == check["samples"] - check["validation"]
    return lengths


@pytest.mark.parametrize("kind", DATA)
def test_what_is_trained_on(kind: str, say: Callable[..., Any], tmp_path: Path):
    template = tmp_path / "t.jinja"
    template.write_text(REWRITES)
    path, limit = write(tmp_path / "a.jsonl", *DATA[kind]), 60 if kind == "several sequences" else 30
    lengths = compare(*say("--data.path", path, "--data.template", template, limit=limit))
    if kind == "too long":
        assert lengths["rules"]["truncated"]["sequences"]
    if kind == "untrained":
        assert lengths["rules"]["untrained"]["sequences"]
    if kind == "several sequences":
        assert lengths["kept"] == 2 * lengths["samples"]


def test_a_mix_is_counted_as_often_as_it_is_trained_on(say: Callable[..., Any], tmp_path: Path):
    first = write(tmp_path / "a.jsonl", *(answered(number) for number in range(10)))
    second = write(tmp_path / "b.jsonl", *(answered(number) for number in range(20, 30)))
    check, plan, run = say("--data.mix", f"{first}=2,{second}=0.5", "--data.validation", 0)
    lengths = dict(run["tables"]["lengths"])
    assert plan["lengths"] == lengths
    del lengths["findings"]
    assert check["lengths"] == lengths
    assert (lengths["samples"], check["samples"]) == (25, 20)
    assert "duplicate" not in check["counts"]
    assert "duplicate" not in run["tables"]["findings"]


def test_a_run_warns_of_what_check_warns_of(say: Callable[..., Any], tmp_path: Path):
    rows = [
        *DATA["said twice"],
        {"prompt": "what is <|im_end|>", "completion": "an end"},
        {"prompt": "q", "answer": " "},
    ]
    check, _, run = say("--data.path", write(tmp_path / "a.jsonl", *rows), "--data.validation", 0)
    found = {**run["tables"]["findings"], **run["tables"]["lengths"]["findings"]}
    assert {kind: each["count"] for kind, each in found.items()} == check["counts"]
    severities = {each["kind"]: each["severity"] for each in check["findings"]}
    assert {kind: each["severity"] for kind, each in found.items()} == severities
    told = "\n".join(run["notes"])
    assert "warning: 13 samples that occur before, such as a.jsonl:8: the same as a.jsonl:1" in told
    assert "warning: 1 turn without text: a.jsonl:22: turn 2 (assistant)" in told
    assert "warning: 1 text that contains a special token of the model: a.jsonl:21: turn 1 (user)" in told


def test_a_run_stops_before_it_trains_at_what_check_calls_an_error(lmflow: Call, model_directory: Path, tmp_path: Path):
    rows = [answered(8 if number % 2 else 0, extra=number) for number in range(20)]
    path = write(tmp_path / "a.jsonl", *rows)
    data = ("--model", model_directory, "--data.max_length", 30, "--data.too_long", "error", "--data.validation", 0)
    check = lmflow("data", "check", path, *data, "--json")
    report = json.loads(check.out)
    assert (check.code, report["counts"]["over_length"]) == (1, 10)
    done = lmflow("run", "--data.path", path, *data, "--tuner", "lora", "--output", tmp_path / "run")
    assert done.code == 2
    assert report["errors"][0] in done.err
    assert "a.jsonl:2: " in done.err
    assert "… and 5 more" in done.err
    assert "lmflow data check, with the same options, lists all findings" in done.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "training" not in record["seconds"]
    assert lmflow("plan", "--data.path", path, *data).code == 2


def test_held_out_samples_are_warned_of_too(say: Callable[..., Any], tmp_path: Path):
    held = write(tmp_path / "h.jsonl", {"prompt": "what is <|im_end|>", "completion": "an end"}, answered(1))
    path = write(tmp_path / "a.jsonl", *(answered(number) for number in range(5)))
    check, _, run = say("--data.path", path, "--data.validation", held)
    assert check["counts"]["control_token"] == check["counts"]["leak"] == 1
    told = "\n".join(run["notes"])
    assert "held out, warning: 1 text that contains a special token of the model: h.jsonl:1" in told
    assert "warning: 1 held-out sample that is also trained on: h.jsonl:2: the same as a.jsonl:2" in told


def test_several_sequences_of_a_record_say_which_answer_each_trains(
    lmflow: Call, model_directory: Path, tmp_path: Path
):
    template = tmp_path / "t.jinja"
    template.write_text(REWRITES)
    path = write(tmp_path / "a.jsonl", thoughtful(1))
    show = ("data", "show", path, "--model", model_directory, "--data.template", template)
    heads = [line for line in lmflow(*show).out.splitlines() if " tokens, " in line]
    assert [line.rpartition(": ")[2] for line in heads] == ["answer 1 of 2", "answer 2 of 2"]
    assert [each["answers"] for each in json.loads(lmflow(*show, "--json").out)["sequences"]] == [
        "answer 1 of 2",
        "answer 2 of 2",
    ]
    one = lmflow("data", "show", path, "--model", model_directory)
    assert "answer 1" not in one.out
