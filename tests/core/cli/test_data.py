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
from lmflow.data.tools.show import pieces_of, plain
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions

Call = Callable[..., Any]
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Showing


def test_what_a_terminal_would_obey_is_shown_instead(tiny_model: LanguageModel):
    sample = Sample((Message("assistant", "a\x1b[31m\rb\tc\n"),), False, source="s:1")
    [sequence] = tiny_model.encode(sample)
    pieces = list(pieces_of(tiny_model.tokenizer, sequence))
    assert "a␛[31m␍b\tc\n" in plain(pieces).replace("«", "")
    assert "\x1b[31m" not in coloured(pieces)


def test_samples_are_shown_with_what_is_trained(lmflow: Call, model_directory: Path, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "the fox", "completion": "jumps"}, {"prompt": "b", "completion": "c"})
    done = lmflow("data", "show", path, "--model", model_directory, "--count", 1, "--data.packing")
    assert done.code == 0, done.err
    assert done.out.startswith(f"1 of 2 records of {path} read as prompt, recognised by prompt, completion; ")
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


def test_what_is_over_the_length_limit(lmflow: Call, model_directory: Path, tmp_path: Path):
    rows = [{"prompt": f"the fox {count}", "completion": "jumps " * count} for count in (1, 90)]
    path, limit = write(tmp_path / "a.jsonl", *rows), ("--data.max_length", 40, "--data.validation", 0)
    call = ("data", "check", path, "--model", model_directory, *limit)
    for policy, code, kind in [("auto", 0, "cut_off"), ("skip", 0, "cut_off"), ("error", 1, "over_length")]:
        done = lmflow(*call, "--data.too_long", policy, "--json")
        report = json.loads(done.out)
        assert (done.code, list(report["counts"])) == (code, [kind])
        assert report["findings"][0]["source"] == "a.jsonl:2"
        assert "more than 40" in report["findings"][0]["detail"]
    assert json.loads(lmflow(*call, "--data.too_long", "split", "--json").out)["counts"] == {}
    out = lmflow(*call).out
    assert "of 2 with a limit of 40 tokens" in out
    assert "    1  cut at the end" in out


def test_a_good_set_passes_and_one_that_stops_a_run_does_not(lmflow: Call, model_directory: Path, tmp_path: Path):
    rows = [{"prompt": f"the fox {i}", "completion": "jumps"} for i in range(30)]
    good = lmflow("data", "check", write(tmp_path / "a.jsonl", *rows), "--model", model_directory)
    assert good.code == 0, good.err
    assert "30 samples of format prompt" in good.out
    assert "Nothing here would stop a run." in good.out
    assert "28 samples, 28 sequences, " in good.out
    bad = write(tmp_path / "b.jsonl", *rows, {"prompt": 3}, {"prompt": "x", "completion": True})
    done = lmflow("data", "check", bad, "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert report["counts"] == {"bad_record": 2}
    assert report["findings"][0] == {
        "severity": "error",
        "kind": "bad_record",
        "source": "b.jsonl:31",
        "file": "b.jsonl",
        "line": 31,
        "record": None,
        "field": "prompt",
        "detail": "prompt: expected text, found a number 3",
    }
    assert report["errors"] == ["2 records that cannot be used"]
    done = lmflow("data", "check", bad, "--data.on_bad_record", "skip", "--json")
    report = json.loads(done.out)
    assert (done.code, report["errors"], report["warnings"]) == (0, [], ["2 records that cannot be used"])
    assert report["findings"][0]["severity"] == "warning"


def test_a_validation_file_that_is_trained_on_is_found(lmflow: Call, tmp_path: Path):
    rows = [{"prompt": f"the fox {i}", "completion": "jumps"} for i in range(10)]
    held = write(tmp_path / "held.jsonl", *rows[:3], {"prompt": "the fox 5", "completion": "sleeps"})
    done = lmflow("data", "check", write(tmp_path / "a.jsonl", *rows), "--data.validation", held, "--json")
    assert done.code == 0, "the run trains well, and what it measures is not what was asked for"
    report = json.loads(done.out)
    assert report["counts"] == {"leak": 3, "shared_prompt": 1}
    assert report["warnings"] == ["3 held-out samples that are also trained on"]
    assert [each["severity"] for each in report["findings"]] == ["warning"] * 3 + ["note"]


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
    assert report["errors"] == ["3 records that cannot be used", "no sample at all"]
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


# Converting


def test_files_are_converted(lmflow: Call, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *[HH] * 3)
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
    path = write(tmp_path / "a.jsonl", {"instruction": "c", "output": "d"})
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
