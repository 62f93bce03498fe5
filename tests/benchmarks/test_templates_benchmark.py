"""The benchmark of chat templates: what it reads, what it calls trained, refused and wrong, and how it says so."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.errors import DataError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + MARKED
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + MARKED.replace(
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>{% endgeneration %}",
)
SAMPLE = Sample(
    (
        Message("user", "Who sings?"),
        Message("assistant", "A lark."),
        Message("user", "Now?"),
        Message("assistant", "Yes."),
    )
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def tokenizer(make_tokenizer: Any) -> Any:
    return make_tokenizer(chat_template=MARKED)


@pytest.mark.slow
def test_a_folder_of_templates(tmp_path: Path):
    (tmp_path / "with_tools.jinja").write_text(TOOLS)
    (tmp_path / "no_system.jinja").write_text(NO_SYSTEM)
    config = {"chat_template": MARKED, "eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": {}}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "own" / "config.json").write_text("{}")
    done = run(tmp_path)
    assert "3 templates, 16 dialogues: " in done.stdout, done.stderr
    found = json.loads(run(tmp_path, "--json").stdout)
    assert found.keys() == {"with_tools.jinja", "no_system.jinja", "own/tokenizer_config.json"}
    for outcomes in found.values():
        assert outcomes["three turns"]["status"] == "trained"
    assert found["own/tokenizer_config.json"]["system"]["status"] == "trained"
    assert found["no_system.jinja"]["system"] == {
        "status": "refused",
        "reason": found["no_system.jinja"]["system"]["reason"],
        "sound": False,
    }
    assert "no system" in found["no_system.jinja"]["system"]["reason"]
    assert found["with_tools.jinja"]["one call"]["status"] == "trained"
    assert found["own/tokenizer_config.json"]["one call"]["status"] == "refused"
    assert done.returncode == any(each["status"] == "wrong" for row in found.values() for each in row.values())


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "templates.py"), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_cannot_be_read_is_named(benchmark: Any, tmp_path: Path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SystemExit, match=r"bad\.json is not UTF-8 or not JSON"):
        list(benchmark("templates").read(tmp_path))


def test_each_template_is_read_once(benchmark: Any, tmp_path: Path):
    for name in ("a.jinja", "b.jinja"):
        (tmp_path / name).write_text(MARKED)
    named = [{"name": "default", "template": MARKED}, {"name": "tool_use", "template": TOOLS}]
    (tmp_path / "c.json").write_text(json.dumps({"chat_template": named, "bos_token": "<s>"}))
    first, second = benchmark("templates").read(tmp_path)
    assert (first.name, first.text) == ("a.jinja", MARKED)
    assert second.text == {"default": MARKED, "tool_use": TOOLS}
    assert (second.bos, second.eos) == ("<s>", None)


def test_special_tokens_that_a_template_mentions(benchmark: Any, tokenizer: Any):
    templates = benchmark("templates")
    text = "{{ '<|turn|>' }}[INST]<start_of_turn>{{ '<|' + m['role'] + '|>' }}<｜User｜></s>"  # noqa: RUF001
    made = templates.tokenizer_for(tokenizer, templates.Template("t", text))
    expected = {"<|turn|>", "[INST]", "<start_of_turn>", "<|assistant|>", "<｜User｜>", "</s>"}  # noqa: RUF001
    assert expected <= set(made.all_special_tokens)
    assert made.eos_token == "</s>"
    joined = templates.tokenizer_for(tokenizer, templates.Template("t", "<|{{ m.role }}|>"))
    assert {"<|user|>", "<|observation|>"} <= set(joined.all_special_tokens)
    phi = templates.Template("t", "<|end|>{{ eos_token }}")
    assert templates.tokenizer_for(tokenizer, phi).eos_token == "<|endoftext|>"


# What is wrong, by encoders with a fault each


def right(tokenizer: Any, sample: Sample) -> tuple[list[int], list[bool]]:
    """The tokens of a dialogue, and which of them are answers with their ends."""
    ids: list[int] = []
    mask: list[bool] = []
    for count, turn in enumerate(sample.messages, 1):
        prompt, whole = (texts_of(tokenizer, sample, count, prompt=each) for each in (True, False))
        if turn.role == "assistant":
            before = ids_of(tokenizer, texts_of(tokenizer, sample, count - 1, prompt=True))
            ids = [*before, *ids_of(tokenizer, whole[len(tokenizer.decode(before)) :])]
            mask += [False] * (len(before) - len(mask)) + [True] * (len(ids) - len(before) - 1) + [False]
        else:
            ids = ids_of(tokenizer, prompt)
    return ids, mask


def texts_of(tokenizer: Any, sample: Sample, count: int, *, prompt: bool) -> str:
    turns = [{"role": turn.role, "content": turn.content} for turn in sample.messages[:count]]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    return text


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ask(tokenizer: Any, sample: Sample) -> list[int]:
    return ids_of(tokenizer, texts_of(tokenizer, sample, len(sample.messages) - 1, prompt=True))


def outcome(
    benchmark: Any, tokenizer: Any, change: Callable[..., Any], asked: Any = ask, sample: Sample = SAMPLE
) -> Any:
    """What is said of the right sequence after a change."""

    def encode(tokenizer: Any, samples: list[Sample], *, end_ids: Any) -> Any:
        return [change(TokenSequence(*right(tokenizer, sample))) for sample in samples]

    return benchmark("template_checks").assess(tokenizer, sample, encode, asked)


def masked(sequence: TokenSequence, **places: bool) -> list[TokenSequence]:
    """The sequence with some tokens' masks set: `at_3=True`."""
    mask = list(sequence.loss_mask)
    for name, value in places.items():
        mask[int(name.removeprefix("at_"))] = value
    return [replace(sequence, loss_mask=mask)]


def test_what_is_right_is_trained(benchmark: Any, tokenizer: Any):
    assert outcome(benchmark, tokenizer, lambda each: [each]).status == "trained"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda each: masked(each, at_0=True), "tokens before the first answer are trained"),
        (lambda each: [replace(each, loss_mask=[False] * len(each))], "nothing of turn 2 is trained"),
        (lambda each: [each, each], "turn 2 is trained 2 times"),
        (
            lambda each: [replace(each, ids=each.ids[1:], loss_mask=each.loss_mask[1:])],
            "no text begins with the prompt",
        ),
        (lambda each: without_last_target(each), "no end of turn 4 is trained"),
        (lambda each: ended_again(each, "<|im_end|>"), "the end of turn 4 is trained twice"),
        (lambda each: ended_again(each, "<|pad|>"), "a second end is added"),
        (lambda each: without_first_target(each), "'A lark.' of turn 2 is not trained"),
        (lambda each: [replace(each, loss_mask=[i > 40 or on for i, on in enumerate(each.loss_mask)])], "what "),
    ],
)
def test_what_is_wrong(benchmark: Any, tokenizer: Any, change: Any, reason: str):
    found = outcome(benchmark, tokenizer, change)
    assert found.status == "wrong"
    assert reason in found.reason


def without_last_target(sequence: TokenSequence) -> list[TokenSequence]:
    last = max(i for i, on in enumerate(sequence.loss_mask) if on)
    return masked(sequence, **{f"at_{last}": False})


def without_first_target(sequence: TokenSequence) -> list[TokenSequence]:
    return masked(sequence, **{f"at_{list(sequence.loss_mask).index(True)}": False})


def ended_again(sequence: TokenSequence, end: str) -> list[TokenSequence]:
    """All behind the last answer trained, and another end after it."""
    more = {"<|im_end|>": 1, "<|pad|>": 2}[end]
    last = max(i for i, on in enumerate(sequence.loss_mask) if on)
    mask = [*sequence.loss_mask[:last], *[True] * (len(sequence) - last), True]
    return [TokenSequence([*sequence.ids, more], mask)]


def test_a_prompt_of_another_spelling_is_wrong(benchmark: Any, tokenizer: Any):
    found = outcome(benchmark, tokenizer, lambda each: [each], lambda *given: ask(*given)[:-1])
    assert (found.status, "the prompt of turn 2 is not the template's" in found.reason) == ("wrong", True)


def test_a_trained_dialogue_whose_prompt_is_refused_is_wrong(benchmark: Any, tokenizer: Any):
    def refuse(*given: Any) -> Any:
        raise DataError("no")

    assert "its prompt refused: no" in outcome(benchmark, tokenizer, lambda each: [each], refuse).reason


def test_refused_and_whether_that_was_needed(benchmark: Any, tokenizer: Any):
    def refuse(*given: Any) -> Any:
        raise DataError("no place")

    found = outcome(benchmark, tokenizer, refuse)
    assert (found.status, found.reason, found.sound) == ("refused", "no place", True)
    thinking = replace(SAMPLE, messages=(SAMPLE.messages[0], Message("assistant", "A lark.", thinking="Larks rise.")))
    assert outcome(benchmark, tokenizer, refuse, sample=thinking).sound  # between marks in the content
    called = replace(thinking, messages=(SAMPLE.messages[0], Message("assistant", "", tool_calls=(CALL,))))
    assert not outcome(benchmark, tokenizer, refuse, sample=called).sound


CALL = {"type": "function", "id": "call00001", "function": {"name": "listen", "arguments": {"bird": "wren"}}}


def test_any_other_error_is_wrong(benchmark: Any, tokenizer: Any):
    assert outcome(benchmark, tokenizer, lambda each: [each][1]).reason == "IndexError: list index out of range"


def test_facts_are_found_as_json_writes_them(benchmark: Any):
    records = benchmark("template_records")
    text = json.dumps({"x": "„Größe“a\tb"}, ensure_ascii=False).replace(" ", "")
    assert records.place_of("„Größe“ a\tb", text) == text.index('"}')
    assert records.place_of("kelvin", "celsius") is None


def test_no_word_of_a_dialogue_is_found_in_another_turn(benchmark: Any):
    """A fact that stood in two turns would be found in the wrong one."""
    records = benchmark("template_records")
    for name, sample in records.samples():
        facts = [fact for turn in sample.messages if turn.role == "assistant" for fact in records.facts_of(turn)]
        others = [turn.content for turn in sample.messages if turn.role != "assistant"]
        assert len(set(facts)) == len(facts), name
        assert not any(fact in other for fact in facts for other in others), name
