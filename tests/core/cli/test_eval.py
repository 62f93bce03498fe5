"""`lmflow eval`: the table, the JSON object, the directory, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    return path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f'{{"prompt": "what is {n}", "answer": "the number {n}"}}\n' for n in range(5)))
    return path


@pytest.fixture
def evaluate(lmflow: Call, model_directory: Path) -> Call:
    """`lmflow eval` with the tiny model."""
    return lambda *arguments: lmflow("eval", "--model", model_directory, *arguments)


def test_table(evaluate: Call, text: Path) -> None:
    done = evaluate("--evaluator", "perplexity", "--data.path", text)
    assert done.code == 0
    table = dict(line.split() for line in done.out.splitlines())
    assert list(table) == ["perplexity", "loss", "tokens", "texts"]
    assert int(table["tokens"]) > 256
    assert "measuring perplexity (0 of" in done.err


def test_sliding_window_is_an_option(evaluate: Call, text: Path) -> None:
    def metrics(*options: object) -> Any:
        return json.loads(evaluate("--evaluator", "perplexity", "--data.path", text, "--json", *options).out)["metrics"]

    apart, sliding = metrics("--evaluator.window", 32), metrics("--evaluator.window", 32, "--evaluator.stride", 8)
    assert apart["tokens"] == sliding["tokens"]
    assert apart["perplexity"] != sliding["perplexity"]
    assert metrics("--evaluator.window", 32, "--evaluator.stride", 32) == apart


def test_what_is_skipped_is_told(evaluate: Call, records: Path) -> None:
    records.write_text(records.read_text() + '{"prompt": 7, "answer": "seven"}\n')
    assert evaluate("--evaluator", "nll", "--data.path", records).code == 2
    skip = ("--evaluator", "nll", "--data.path", records, "--data.on_bad_record", "skip")
    told = "1 that cannot be used skipped, such as records.jsonl:6: prompt"
    assert told in evaluate(*skip).err
    result = json.loads(evaluate(*skip, "--json").out)
    assert result["records"] == 5
    assert result["notes"][0].startswith(told)


def test_json_is_all_there_is(evaluate: Call, records: Path) -> None:
    done = evaluate("--evaluator", "nll", "--data.path", records, "--json")
    result = json.loads(done.out)
    assert "loading model" not in done.err
    assert result["records"] == result["metrics"]["records"] == 5
    assert result["evaluator"] == {"name": "nll", "of": "answers", "batch_tokens": 4096}
    assert result["data"]["path"] == str(records)
    assert "packing" not in result["data"]
    assert result["versions"]["torch"]
    assert result["inferencer_figures"] == {}


def test_output_directory(evaluate: Call, records: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "results"
    arguments = ["--evaluator", "accuracy", "--evaluator.answer_type", "number", "--evaluator.max_new_tokens", 3]
    arguments += ["--data.path", records, "--data.limit", 4, "--output", output]
    done = evaluate(*arguments)
    assert done.code == 0
    assert f"{output / 'results.json'}\n{output / 'rows.jsonl'}\n" in done.out
    assert json.loads((output / "results.json").read_text())["metrics"]["records"] == 4
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert [row["expected_answer"] for row in rows] == ["0", "1", "2", "3"]
    refused = evaluate(*arguments)
    assert (refused.code, "holds results already; replace them with --overwrite" in refused.err) == (2, True)
    assert "loading" not in refused.err
    assert evaluate(*arguments, "--overwrite", "--quiet").out == ""


def test_data_of_the_format_are_its_held_out_part(evaluate: Call) -> None:
    from lmflow_demo.demo import DemoTasks

    result = json.loads(evaluate("--evaluator", "exact_match", "--evaluator.max_new_tokens", 1, "--json").out)
    assert result["records"] == len(DemoTasks().embedded()[1])


def test_an_evaluator_that_reads_no_data_needs_none(evaluate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmflow.components import Evaluation
    from lmflow.evaluators.perplexity import Nll

    monkeypatch.setattr(Nll, "reads_data", False)
    monkeypatch.setattr(Nll, "evaluate", lambda self, context: Evaluation({"given": len(context.samples)}))
    result = json.loads(evaluate("--evaluator", "nll", "--json").out)
    assert (result["metrics"], result["data"]) == ({"given": 0}, None)


def test_plots_and_numbers_that_are_not_finite(
    evaluate: Call, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmflow.components import Evaluation
    from lmflow.evaluators.perplexity import Nll

    def plot(self: Any, evaluation: Evaluation, directory: Path) -> list[Path]:
        (directory / "curve.svg").write_text("<svg/>")
        return [directory / "curve.svg"]

    found = Evaluation({"perplexity": float("inf")}, [{"loss": [float("nan"), 1.0]}])
    monkeypatch.setattr(Nll, "evaluate", lambda *_: found)
    monkeypatch.setattr(Nll, "plot", plot)
    done = evaluate("--evaluator", "nll", "--data.path", records, "--output", tmp_path / "o")
    assert f"{tmp_path / 'o' / 'curve.svg'}\n" in done.out
    assert json.loads((tmp_path / "o" / "results.json").read_text())["metrics"] == {"perplexity": None}
    assert json.loads((tmp_path / "o" / "rows.jsonl").read_text()) == {"loss": [None, 1.0]}


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["--evaluator: name what to measure, one of accuracy, choices, exact_match, nll"]),
        (
            ["--evaluator", "perplexty", "--data.packing", "--jsn", "--device", "x"],
            [
                "no evaluator is called perplexty; did you mean perplexity?",
                "--data.packing: unknown option; data.packing is one of training runs (lmflow run)",
                "--jsn: unknown option; did you mean --json?",
                "--device: must be one of 'auto', 'cpu' or 'cuda'",
            ],
        ),
        (
            ["--evaluator", "accuracy", "--evaluator.answr_type", "x", "--evaluator.prompt_structure", "Q:"],
            ["did you mean evaluator.answer_type?", "--evaluator.prompt_structure: must say where the question goes"],
        ),
        (["--evaluator", "accuracy", "--evaluator.answer_type", "gsm9k"], ["did you mean gsm8k?"]),
        (["--evaluator", "perplexity", "--evaluator.window", "0"], ["--evaluator.window: must be greater than 0"]),
        (["--evaluator.window", "3"], ["set, but no evaluator is chosen"]),
        (["--evaluator", "nll", "--sampling.n", "3"], ["--sampling.n: unknown section; lmflow eval has evaluator"]),
        (["--evaluator", "perplexity", "--data.path", "no.txt"], ["no.txt does not exist"]),
        (["--evaluator", "perplexity"], ["perplexity measures plain text"]),
        (["--evaluator", "nll", "--output", "file"], ["file is a file; --output takes a directory"]),
        (["--evaluator", "nll", "--output", "full"], ["full holds other files; name a new or empty directory"]),
    ],
)
def test_mistakes(
    evaluate: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], messages: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("full").mkdir()
    Path("full/other").touch()
    done = evaluate(*arguments)
    assert (done.code, done.out) == (2, "")
    for message in messages:
        assert message in done.err, done.err
    assert "Traceback" not in done.err
