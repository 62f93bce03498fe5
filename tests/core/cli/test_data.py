"""`lmflow data`: what it shows, what it finds, and what it writes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.cli.data import coloured
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.sample import Message, Sample
from lmflow.data.tokenize import encode_sample
from lmflow.data.tools.check import Checker, end_faults
from lmflow.data.tools.convert import convert
from lmflow.data.tools.show import packed_layout, pieces_of, plain
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions

Call = Callable[..., Any]
BY_NAME = {each.name: each for each in FORMATS}
ADD = {"type": "function", "function": {"name": "add"}}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Showing


def test_pieces_are_the_text(tiny_model: LanguageModel):
    sample = Sample((Message("user", "naïve 日本 🙂"), Message("assistant", "the fox 数据")), source="s:1")
    [sequence] = encode_sample(tiny_model.tokenizer, sample, end_ids=tiny_model.end_ids)
    pieces = list(pieces_of(tiny_model.tokenizer, sequence))
    assert [i for piece in pieces for i in piece.ids] == list(sequence.ids)
    assert "".join(piece.text for piece in pieces) == tiny_model.tokenizer.decode(sequence.ids)
    assert plain(pieces).count("«the fox 数据") == 1
    assert [piece.position for piece in pieces] == sorted(piece.position for piece in pieces)


def test_what_a_terminal_would_obey_is_shown_instead(tiny_model: LanguageModel):
    sample = Sample((Message("assistant", "a\x1b[31m\rb\tc\n"),), False, source="s:1")
    [sequence] = tiny_model.encode(sample)
    pieces = list(pieces_of(tiny_model.tokenizer, sequence))
    assert "a␛[31m␍b\tc\n" in plain(pieces).replace("«", "")
    assert "\x1b[31m" not in coloured(pieces)


def test_rows_say_where_samples_lie(tiny_model: LanguageModel):
    samples = [Sample((Message("assistant", "the " * n),), False, source=f"s:{n}") for n in (5, 3, 2)]
    sequences = [each for sample in samples for each in tiny_model.encode(sample)]
    layout = packed_layout(sequences, len(sequences[0]) + len(sequences[2]))
    assert [[(place.source, place.start) for place in row] for row in layout] == [
        [("s:5", 0), ("s:2", len(sequences[0]))],
        [("s:3", 0)],
    ]


def test_samples_are_shown_with_what_is_trained(lmflow: Call, model_directory: Path, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "the fox", "completion": "jumps"}, {"prompt": "b", "completion": "c"})
    done = lmflow("data", "show", path, "--model", model_directory, "--count", 1, "--data.packing")
    assert done.code == 0, done.err
    assert "recognised by prompt, completion" in done.out
    assert "«jumps" in done.out
    assert "the fox" in done.out.partition("«")[0]
    assert "row 1:" in done.out
    assert "\x1b" not in done.out
    done = lmflow("data", "show", path, "--model", model_directory, "-n", 2, "--data.packing", "--json")
    shown = json.loads(done.out)
    assert [each["source"] for each in shown["sequences"]] == ["a.jsonl:2", "a.jsonl:1"]
    assert [place["source"] for row in shown["rows"] for place in row] != []
    for each in shown["sequences"]:
        assert sum(len(piece["ids"]) for piece in each["pieces"]) == each["tokens"]
        assert sum(len(piece["ids"]) for piece in each["pieces"] if piece["is_target"]) == each["num_targets"]
    done = lmflow("data", "show", path, "--model", model_directory, "--table", "--data.template", "chatml")
    assert "trained" in done.out
    assert "'<|im_end|>'" in done.out


# Checking


def findings(
    rows: list[Any], tmp_path: Path, model: LanguageModel | None = None, **options: Any
) -> dict[str, list[str]]:
    data = DataOptions(path=str(write(tmp_path / "a.jsonl", *rows)), **options)
    checker = Checker(model, data)
    for sample in read_samples(data, Formats(FORMATS)):
        checker.train(sample)
    found: dict[str, list[str]] = {}
    for finding in checker.finish().findings:
        found.setdefault(finding.kind, []).append(f"{finding.source} {finding.detail}")
    return found


def test_dialogues_that_are_odd(tmp_path: Path):
    system = {"role": "system", "content": "s"}
    rows = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, USER, ANSWER]},
        {"messages": [ANSWER, USER, ANSWER]},
        {"messages": [USER, system, ANSWER]},
        {"messages": [USER, ANSWER, USER]},
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        {"messages": [USER, ANSWER]},
    ]
    found = findings(rows, tmp_path)
    assert found == {
        "role_order": [
            "a.jsonl:2 two turns of user in a row",
            "a.jsonl:3 the dialogue begins with assistant",
            "a.jsonl:4 turn 2 is the system's, which comes first or not at all",
            "a.jsonl:5 the last turn is the user's; nothing answers it",
        ],
        "empty_turn": ["a.jsonl:6 turn 2 (assistant)"],
        "duplicate": ["a.jsonl:7 the same as a.jsonl:1"],
    }


def test_tokens_that_are_wrong(tmp_path: Path, tiny_model: LanguageModel):
    rows = [
        {"prompt": "the fox", "completion": "jumps"},
        {"prompt": "the fox " * 90, "completion": "jumps"},
        {"prompt": "q"},
    ]
    found = findings(rows, tmp_path, tiny_model, max_length=40)
    assert [each.split()[0] for each in found["nothing_to_train"]] == ["a.jsonl:2", "a.jsonl:3"]
    tiny_model.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% generation %}{{ m['content'] | upper }}{% endgeneration %}{% endfor %}"
    found = findings(rows[:1], tmp_path, tiny_model)
    assert found["not_what_was_written"] == ["a.jsonl:1 turn 2 is not in the text the model is given"]


ENDS = {
    "none": "{{ m['content'] }}",
    "last": "{{ m['content'] }}{% if loop.last %}{{ eos_token }}{% endif %}",
    "each": "{{ m['content'] }}{{ eos_token }}",
    "spaced": "{{ m['content'] }}{{ eos_token }}\n",
}


@pytest.mark.parametrize(
    ("ends", "earlier"),
    [("none", ["a.jsonl:1 the last trained token of answer 1 is 'Ġdog'"]), ("last", []), ("each", []), ("spaced", [])],
)
def test_answers_that_would_not_end(ends: str, earlier: list[str], tmp_path: Path, tiny_model: LanguageModel):
    """The end of every answer is looked for; the last one has its end from us where the template gives none."""
    tiny_model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}a: {% generation %}"
        + ENDS[ends]
        + "{% endgeneration %}{% else %}u: {{ m['content'] }}{% endif %} x {% endfor %}"
    )
    turns = [USER, {**ANSWER, "content": "the lazy dog"}] * 2
    found = findings([{"messages": turns}], tmp_path, tiny_model)
    assert found == ({"earlier_end_not_trained": earlier} if earlier else {})


def test_an_end_that_the_model_does_not_know(tmp_path: Path, tiny_model: LanguageModel):
    row = {"prompt": "the fox", "completion": "the lazy dog"}
    assert findings([row], tmp_path, tiny_model, train_on="all") == {}
    [sample] = read_samples(DataOptions(path=str(write(tmp_path / "b.jsonl", row))), Formats(FORMATS))
    [sequence] = tiny_model.encode(sample)
    cut = sequence.cut(0, max(i for i, on in enumerate(sequence.loss_mask) if on))
    assert [kind for kind, _ in end_faults(tiny_model, sample, [cut])] == ["end_not_trained"]
    assert not list(end_faults(tiny_model, sample, [sequence]))


def test_what_is_over_the_length_limit(lmflow: Call, model_directory: Path, tmp_path: Path):
    rows = [{"prompt": f"the fox {count}", "completion": "jumps " * count} for count in (1, 90)]
    call = ("data", "check", write(tmp_path / "a.jsonl", *rows), "--model", model_directory, "--data.max_length", 40)
    for policy, code, kind in [("auto", 0, "cut_off"), ("skip", 0, "cut_off"), ("error", 1, "over_length")]:
        done = lmflow(*call, "--data.too_long", policy, "--json")
        report = json.loads(done.out)
        assert (done.code, list(report["counts"])) == (code, [kind])
        assert report["findings"][0]["source"] == "a.jsonl:2"
        assert "more than 40" in report["findings"][0]["detail"]
    assert json.loads(lmflow(*call, "--data.too_long", "split", "--json").out)["counts"] == {}
    out = lmflow(*call).out
    assert "of 2 with a limit of 40 tokens" in out
    assert "  1  cut at the end" in out


def test_tools_that_the_template_leaves_out(tmp_path: Path, tiny_model: LanguageModel):
    found = findings([{"messages": [USER, ANSWER], "tools": [ADD]}], tmp_path, tiny_model)
    assert "leaves out the tool add" in found["cannot_be_tokenised"][0]


def test_a_good_set_passes_and_a_wasteful_one_does_not(lmflow: Call, model_directory: Path, tmp_path: Path):
    rows = [{"prompt": f"the fox {i}", "completion": "jumps"} for i in range(30)]
    good = lmflow("data", "check", write(tmp_path / "a.jsonl", *rows), "--model", model_directory)
    assert good.code == 0, good.err
    assert "30 samples of format prompt" in good.out
    assert "Nothing here would waste a run." in good.out
    assert "trained (" in good.out
    bad = write(tmp_path / "b.jsonl", *rows, {"prompt": 3}, {"prompt": "x", "completion": 5})
    done = lmflow("data", "check", bad, "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert report["counts"] == {"bad_record": 2}
    assert report["findings"][0] == {
        "kind": "bad_record",
        "source": "b.jsonl:31",
        "file": "b.jsonl",
        "line": 31,
        "record": None,
        "field": "prompt",
        "detail": "prompt: expected text, found a number 3",
    }
    assert report["wasteful"] == ["2 records that cannot be used"]


def test_a_validation_file_that_is_trained_on_is_found(lmflow: Call, tmp_path: Path):
    rows = [{"prompt": f"the fox {i}", "completion": "jumps"} for i in range(10)]
    held = write(tmp_path / "held.jsonl", *rows[:3], {"prompt": "the fox 5", "completion": "sleeps"})
    done = lmflow("data", "check", write(tmp_path / "a.jsonl", *rows), "--data.validation", held, "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert report["counts"] == {"leak": 3, "shared_prompt": 1}
    assert report["wasteful"] == ["3 of 4 validation samples are also trained on"]


def test_a_bad_record_is_placed_whatever_its_container(lmflow: Call, tmp_path: Path):
    rows = [{"prompt": "q"}, {"prompt": 3}, 7]
    for name, text, place in [
        ("a.json", json.dumps(rows), "a.json: record "),
        ("b.json", json.dumps({"type": "prompt", "instances": rows}), "b.json: instance "),
    ]:
        (tmp_path / name).write_text(text)
        report = json.loads(lmflow("data", "check", tmp_path / name, "--json").out)
        assert [
            tuple(each[key] for key in ("source", "file", "line", "record", "field")) for each in report["findings"]
        ] == [(f"{place}2", name, None, 2, "prompt"), (f"{place}3", name, None, 3, None)]


def test_a_file_without_one_good_record_is_reported_whole(lmflow: Call, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": \n\xff\n[1]\n')
    done = lmflow("data", "check", tmp_path / "a.jsonl", "--json")
    report = json.loads(done.out)
    assert (done.code, report["samples"], [each["line"] for each in report["findings"]]) == (1, 0, [1, 2, 3])
    assert report["wasteful"] == ["3 records that cannot be used", "no sample at all"]
    (tmp_path / "b.jsonl").write_bytes(b"\n")
    done = lmflow("data", "check", tmp_path / "b.jsonl", "--json")
    assert (done.code, "b.jsonl holds no record" in done.err) == (2, True)


def test_a_mix_is_checked_with_its_validation_file(lmflow: Call, tmp_path: Path):
    mix = (
        write(tmp_path / "a.jsonl", *[{"prompt": f"a{i}", "completion": "x"} for i in range(5)]),
        write(tmp_path / "b.jsonl", {"instruction": "a1", "output": "x"}, {"instruction": "b", "output": 3}),
    )
    held = write(tmp_path / "held.jsonl", {"prompt": "a2", "completion": "x"}, {"prompt": None}, {"prompt": "new"})
    done = lmflow("data", "check", "--data.mix", f"{mix[0]}=1,{mix[1]}=0.5", "--data.validation", held, "--json")
    assert done.code == 1, done.err
    report = json.loads(done.out)
    assert (report["format"], report["records"], report["samples"], report["validation"]) == ("prompt, alpaca", 7, 8, 2)
    assert [(each["kind"], each["source"]) for each in report["findings"]] == [
        ("bad_record", "b.jsonl:2"),
        ("bad_record", "held.jsonl:2"),
        ("duplicate", "b.jsonl:1"),
        ("leak", "held.jsonl:1"),
    ]


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_files_of_one_name_are_told_apart_in_a_mix(streaming: str, lmflow: Call, tmp_path: Path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.jsonl", {"prompt": "q", "completion": "a"}, {"prompt": 3})
    mix = f"{tmp_path / 'one' / 'train.jsonl'}=1,{tmp_path / 'two'}=1"
    done = lmflow("data", "check", "--data.mix", mix, "--data.streaming", streaming, "--json")
    assert [(each["kind"], each["source"], each["detail"]) for each in json.loads(done.out)["findings"]] == [
        ("bad_record", f"{tmp_path}/one/train.jsonl:2", "prompt: expected text, found a number 3"),
        ("bad_record", f"{tmp_path}/two/train.jsonl:2", "prompt: expected text, found a number 3"),
        ("duplicate", f"{tmp_path}/two/train.jsonl:1", f"the same as {tmp_path}/one/train.jsonl:1"),
    ]


def test_only_what_says_the_same_is_a_duplicate(tmp_path: Path):
    other = {**CALL, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]}
    assert findings([{"messages": [USER, CALL]}, {"messages": [USER, other]}], tmp_path) == {}
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert findings([pair, {**pair, "rejected": "c"}], tmp_path) == {}
    unwanted = {"prompt": "q", "completion": "a", "label": False}
    assert findings([unwanted, {**unwanted, "completion": "b"}], tmp_path) == {}
    assert list(findings([pair, pair], tmp_path)) == ["duplicate"]


def test_preferences_that_show_nothing(tmp_path: Path, tiny_model: LanguageModel):
    found = findings(
        [{"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": "a", "rejected": " "}], tmp_path
    )
    assert found == {
        "same_answers": ["a.jsonl:1 chosen and rejected are the same"],
        "empty_turn": ["a.jsonl:2 rejected turn 2 (assistant)"],
    }
    unwanted = [{"prompt": f"q{i}", "completion": "a", "label": False} for i in range(3)]
    assert findings(unwanted, tmp_path, tiny_model) == {}  # an aligner of preferences trains on them


# Converting


RECORDS: dict[str, dict[str, Any]] = {
    "text_only": {"text": "once"},
    "text2text": {"input": "q", "output": "a"},
    "text_to_textlist": {"input": "q", "output": ["a", "b"]},
    "text_to_scored_textlist": {"input": "q", "output": [{"score": 0.5, "text": "a"}, {"score": 1.0, "text": "b"}]},
    "conversation": {
        "system": "s",
        "tools": [json.dumps(ADD)],
        "messages": [USER, CALL, {"role": "tool", "content": "1"}, ANSWER],
    },
    "messages": {"messages": [USER, CALL, {"role": "tool", "content": "1", "name": "add"}, ANSWER], "tools": [ADD]},
    "sharegpt": {
        "system": "s",
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "alpaca": {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]},
    "prompt": {"prompt": [{"role": "system", "content": "s"}, USER], "completion": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": [USER, ANSWER][1:]},
    "paired_text_to_text": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "paired_conversation": {"chosen": {"messages": [USER, ANSWER]}, "rejected": {"messages": [USER, USER]}},
    "kto": {"prompt": "q", "completion": "a", "label": False},
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_what_a_format_writes_it_reads(name: str):
    kind = BY_NAME[name]()
    sample = kind.sample(RECORDS[name], "a:1")
    [converted] = convert([sample], kind)
    assert converted.lost == ()
    again = kind.sample(converted.record, "a:1")
    assert (again.messages, again.tools, again.rejected) == (sample.messages, sample.tools, sample.rejected)


@pytest.mark.parametrize(
    ("name", "target", "lost"),
    [
        ("alpaca", "messages", ()),
        ("alpaca", "conversation", ()),
        ("alpaca", "sharegpt", ()),
        ("hh", "preference", ()),
        ("hh", "paired_conversation", ()),
        ("sharegpt", "preference", ()),
        ("messages", "prompt", ()),
        ("hh", "messages", ("the rejected answer",)),
        ("messages", "sharegpt", ("which tool and which call an answer belongs to",)),
        ("kto", "prompt", ("the rejected answer", "the label")),
        ("text2text", "messages", ("whether a chat template is put around it",)),
        (
            "text_to_scored_textlist",
            "text_to_textlist",
            ("the dialogue as it is", "the other answers, or their scores"),
        ),
        ("messages", "hh", None),
        ("prompt", "kto", None),
    ],
)
def test_what_another_format_cannot_hold_is_said(name: str, target: str, lost: tuple[str, ...] | None):
    from lmflow.errors import DataError

    sample = BY_NAME[name]().sample(RECORDS[name], "a:1")
    if lost is None:
        with pytest.raises(DataError, match="a:1: "):
            list(convert([sample], BY_NAME[target]()))
        return
    assert next(convert([sample], BY_NAME[target]())).lost == lost


def test_files_are_converted(lmflow: Call, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *[RECORDS["hh"]] * 3)
    out = tmp_path / "o.jsonl.gz"
    done = lmflow("data", "convert", path, "--to", "preference", "--output", out)
    assert (done.code, done.out.strip()) == (0, str(out))
    assert len(gzip.decompress(out.read_bytes()).splitlines()) == 3
    done = lmflow("data", "convert", path, "--to", "messages", "--output", tmp_path / "m.jsonl")
    assert done.code == 2
    assert "a.jsonl:1: format messages cannot hold the rejected answer" in done.err
    assert not (tmp_path / "m.jsonl").exists()
    done = lmflow("data", "convert", path, "--to", "messages", "--output", tmp_path / "m.jsonl", "--allow-loss")
    assert "lost: the rejected answer in 3 (a.jsonl:1, a.jsonl:2, a.jsonl:3)" in done.err
    done = lmflow("data", "convert", path, "--to", "paired_conversation", "--lmflow", "--output", tmp_path / "l.json")
    assert json.loads((tmp_path / "l.json").read_text())["type"] == "paired_conversation"
    assert len(read_samples(DataOptions(path=str(tmp_path / "l.json")), Formats(FORMATS))) == 3
    done = lmflow("data", "convert", path, "--to", "hh", "--output", out)
    assert (done.code, "exists already" in done.err) == (2, True)
    done = lmflow("data", "convert", path, "--to", "mesages", "--output", tmp_path / "x")
    assert (done.code, "did you mean messages?" in done.err) == (2, True)


def test_what_is_left_out_of_a_conversion_is_said(lmflow: Call, tmp_path: Path):
    row = {"instruction": "q", "input": "", "output": "a", "category": "x", "id": None}
    path = write(tmp_path / "a.jsonl", row, {**row, "output": 3}, {**row, "category": "y"})
    done = lmflow("data", "convert", path, "--to", "prompt", "--output", tmp_path / "o.jsonl")
    assert (done.code, "a.jsonl:2: output: expected text" in done.err) == (2, True)
    skip = ("--data.on_bad_record", "skip")
    done = lmflow("data", "convert", path, "--to", "prompt", "--output", tmp_path / "o.jsonl", *skip)
    assert done.code == 0, done.err
    assert done.err.splitlines() == [
        "2 records of prompt written",
        "1 that cannot be used skipped, such as a.jsonl:2: output: expected text, found a number 3",
        "left out: field category in 2 (a.jsonl:1, a.jsonl:3)",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/o.jsonl", "there is no directory"),
        ("o.csv", "JSON lines are written; let the name end with .jsonl, .ndjson, .json"),
        ("o.jsonl.zst", "JSON lines are written"),
        ("o", "JSON lines are written"),
    ],
)
def test_a_file_that_would_not_be_what_its_name_says_is_refused(name: str, message: str, lmflow: Call, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", RECORDS["alpaca"])
    done = lmflow("data", "convert", path, "--to", "messages", "--output", tmp_path / name)
    assert (done.code, message in done.err) == (2, True)


@pytest.mark.parametrize("lmflow_container", [(), ("--lmflow",)])
def test_nothing_stays_of_a_conversion_that_fails(lmflow_container: tuple[str, ...], lmflow: Call, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *[{"prompt": "q", "completion": "a"}] * 3, {"prompt": "q"})
    to = ("--to", "text2text", "--output", tmp_path / "o.json", *lmflow_container)
    assert lmflow("data", "convert", path, *to).code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert lmflow("data", "convert", path, *to, "--allow-loss", "--data.limit", 3).code == 0
    assert len(read_samples(DataOptions(path=str(tmp_path / "o.json")), Formats(FORMATS))) == 3
