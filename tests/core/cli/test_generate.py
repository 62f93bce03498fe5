"""`lmflow generate`: a prompt, standard input, a file; resuming, stopping, and everything that is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import GenerateRequest
from lmflow.inference.hf import HuggingFace

LMFLOW = str(Path(sys.executable).with_name("lmflow"))
Call = Callable[..., Any]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"the fox number {index}\n" for index in range(12)))
    return path


@pytest.fixture
def generate(lmflow: Call, model_directory: Path) -> Call:
    """`lmflow generate` with the tiny model and short completions."""

    def call(*arguments: object, **options: Any) -> Any:
        return lmflow("generate", "--model", model_directory, "--sampling.max_new_tokens", 4, *arguments, **options)

    return call


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_prompt(generate: Call) -> None:
    done = generate("--prompt", "the fox", "--sampling.n", 2)
    [record] = records(done.out)
    assert (done.code, record["prompt"], len(record["completions"])) == (0, "the fox", 2)
    assert all(0 < each["tokens"] <= 4 for each in record["completions"])
    assert "loading model pretrained" in done.err
    assert "loading model" not in generate("--prompt", "the fox", "--quiet").err


def test_standard_input_is_one_prompt(generate: Call) -> None:
    piped = generate(stdin="the fox\njumps\n")
    assert records(piped.out)[0]["prompt"] == "the fox\njumps"
    again = generate("--prompt", "the fox\njumps")
    assert records(again.out)[0]["completions"] == records(piped.out)[0]["completions"]


def test_what_is_skipped_is_told(generate: Call, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "the fox"}\n{"prompt": 7}\n')
    assert generate("--input", file).code == 2
    done = generate("--input", file, "--data.on_bad_record", "skip", "--quiet")
    assert len(records(done.out)) == 1
    assert done.err.startswith("1 that cannot be used skipped, such as asked.jsonl:2: prompt")


def test_seed_and_options_reach_the_inferencer(generate: Call) -> None:
    def text(*options: object) -> Any:
        return records(generate("--prompt", "the fox", "--quiet", *options).out)[0]["completions"]

    assert text("--sampling.seed", 1) == text("--sampling.seed", 1) != text("--sampling.seed", 2)
    greedy = text("--sampling.temperature", 0)
    assert greedy[0]["text"] == text("--sampling.top_k", 1)[0]["text"]
    assert text("--sampling.temperature", 0, "--raw") != greedy


def test_stop_strings_may_hold_newlines_and_be_several(generate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def generate_each(self: Any, request: GenerateRequest) -> Iterator[Any]:
        seen.append(request.sampling)
        return iter(())

    monkeypatch.setattr(HuggingFace, "generate_each", generate_each)
    generate("--prompt", "x", "--sampling.stop", r"\n\n", "--sampling.stop", "a, b")
    assert seen[0].stop == ("\n\n", "a, b")


def test_file_to_standard_output_in_order(generate: Call, prompts: Path) -> None:
    done = generate("--input", prompts)
    assert [record["index"] for record in records(done.out)] == list(range(12))
    assert records(done.out)[3]["source"] == "prompts.txt:4"
    assert "generating (0 of 12)" in done.err


def test_what_the_inferencer_counted_is_said(generate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HuggingFace, "figures", lambda self: {"passes": 12, "acceptance": 0.8333333})
    assert generate("--prompt", "the fox").err.endswith("passes 12  acceptance 0.8333\n")
    assert "passes" not in generate("--prompt", "the fox", "--quiet").err


def test_records_of_any_format(generate: Call, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('[{"instruction": "jump", "input": "", "output": "over"}]')
    [record] = records(generate("--input", path, "--system", "be brief").out)
    assert (record["expected"], record["messages"][0]) == ("over", {"role": "system", "content": "be brief"})
    [limited] = records(generate("--data", "alpaca", "--data.path", path, "--data.limit", 1).out)
    assert limited["prompt"] == "jump"


def test_embedded_data_when_only_a_format_is_named(generate: Call) -> None:
    assert len(records(generate("--data", "demo", "--data.limit", 3, "--quiet").out)) == 3


def test_output_file_is_resumed_to_the_same_records(generate: Call, prompts: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert generate("--input", prompts, "--output", whole, "--sampling.n", 2).code == 0
    lines = whole.read_text().splitlines(keepends=True)
    part.write_text("".join([lines[5], lines[0], lines[9]]) + lines[3][:40])
    done = generate("--input", prompts, "--output", part, "--sampling.n", 2, "--resume")
    assert (done.code, done.out) == (0, "")
    assert "generating (0 of 9)" in done.err
    assert part.read_text() == whole.read_text()
    complete = generate("--input", prompts, "--output", part, "--sampling.n", 2, "--resume")
    assert "is complete: 12 records" in complete.err
    assert "loading" not in complete.err


def test_an_existing_output_needs_a_word(generate: Call, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    generate("--input", prompts, "--output", output)
    refused = generate("--input", prompts, "--output", output)
    assert (refused.code, "with --resume, or replace it with --overwrite" in refused.err) == (2, True)
    other = generate("--input", prompts, "--output", output, "--resume", "--sampling.seed", 1)
    assert (other.code, "made with another model or other options" in other.err) == (2, True)
    assert "loading" not in refused.err + other.err
    before = output.read_text()
    assert generate("--input", prompts, "--output", output, "--overwrite", "--sampling.seed", 1).code == 0
    assert output.read_text() != before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished(
    generate: Call, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    original = HuggingFace.generate_each

    def generate_each(self: Any, *arguments: Any) -> Iterator[Any]:
        for count, each in enumerate(original(self, *arguments)):
            yield each
            if count == 4:
                os.kill(os.getpid(), number)

    output = tmp_path / "o 1.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(HuggingFace, "generate_each", generate_each)
        done = generate("--input", prompts, "--output", output, "--inferencer.batch_tokens", 64)
    kept = len(records(output.read_text()))
    assert done.code == code
    assert 5 <= kept < 12
    assert f"Stopped; {kept} of 12 records are in {output}." in done.err
    assert done.err.rstrip().endswith(f"--output '{output}' --inferencer.batch_tokens 64 --resume")
    resumed = generate("--input", prompts, "--output", output, "--inferencer.batch_tokens", 64, "--resume")
    assert resumed.code == 0
    assert [record["index"] for record in records(output.read_text())] == list(range(12))


@pytest.mark.slow
def test_resume_after_the_process_was_killed(
    lmflow: Call, make_llama: Call, make_tokenizer: Call, tmp_path: Path
) -> None:
    model, source, output = tmp_path / "slow", tmp_path / "p.txt", tmp_path / "o.jsonl"
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer), max_position_embeddings=2048).save_pretrained(model)
    tokenizer.save_pretrained(model)
    source.write_text("".join(f"number {index}\n" for index in range(12)))
    lengths = [
        "--sampling.max_new_tokens",
        "200",
        "--sampling.min_new_tokens",
        "200",
        "--inferencer.batch_tokens",
        "600",
    ]
    arguments = ["generate", "--model", model, "--input", source, "--output", output, *lengths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [LMFLOW, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (output.exists() and output.read_text().count("\n") >= 2):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = records(output.read_text())
    assert 2 <= len(kept) < 12
    assert lmflow(*arguments, "--resume").code == 0
    resumed = records(output.read_text())
    assert [record["index"] for record in resumed] == list(range(12))
    assert all(resumed[record["index"]] == record for record in kept)


# On a terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a terminal."""
    monkeypatch.setattr("lmflow.cli.generate.on_terminal", lambda: True)


def test_one_prompt_streams_on_a_terminal(generate: Call, terminal: None) -> None:
    shown = generate("--prompt", "the fox", "--quiet").out
    assert not shown.startswith("{")
    assert shown.endswith("\n")
    several = generate("--prompt", "the fox", "--quiet", "--sampling.n", 2).out
    assert several.startswith("[1] ")
    assert "\n[2] " in several


def test_a_file_gives_records_on_a_terminal_too(generate: Call, terminal: None, prompts: Path) -> None:
    assert len(records(generate("--input", prompts, "--quiet").out)) == 12


# What is refused


def test_all_mistakes_at_once(lmflow: Call) -> None:
    done = lmflow(
        "generate", "--modl", "x", "--sampling.temprature", 1, "--sampling.top_p", 2, "--data.packing", "--resume",
        "--tuner.rank", 8, "--device", "tpu", "--inferencer", "hff", "--prompt", "a", "--input", "b",
    )  # fmt: skip
    assert (done.code, done.out) == (2, "")
    for expected in (
        "--modl: unknown option; did you mean --model?",
        "--sampling.temprature: unknown option; did you mean sampling.temperature?",
        "--sampling.top_p: must be at most 1.0, got '2'",
        "--data.packing: unknown option; data.packing is one of training runs (lmflow run)",
        "--resume: needs --output FILE",
        "--tuner.rank: unknown section; lmflow generate has model, context, attention, inferencer, data, sampling, compute",
        "--device: must be one of 'auto', 'cpu' or 'cuda', got 'tpu'",
        "--inferencer: no inferencer is called hff",
        "--prompt: given beside --input",
    ):
        assert expected in done.err, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt: the prompt is empty"),
        (["--prompt", "fox " * 300], "tokens and the model's context is 256, which leaves no room for an answer"),
        (["--prompt", "x", "--image", "nowhere.png"], "there is no image nowhere.png"),
        (["--prompt", "x", "--raw", "--system", "s"], "--system: given beside --raw"),
        (["--prompt", "x", "--data", "demo"], "--prompt: given beside --data"),
        (["--input", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--input", "p.txt", "--image", "x.png"], "--image: given beside --input"),
        (["--input", "p.txt", "--output", ".", "--overwrite"], "is not a file"),
        (["--input", "p.txt", "--output", "o", "--overwrite", "--resume"], "--resume: given beside --overwrite"),
        (["--input", "p.txt", "--output", "./p.txt", "--overwrite"], "p.txt is the input itself"),
        (["--prompt", "x", "--model", "./nowhere"], "does not exist"),
        (["--prompt", "x", "--context", "nothing"], "no context is called nothing"),
        (["--prompt", "x", "--sampling.n", "0"], "--sampling.n: must be greater than 0, got '0'"),
    ],
)
def test_mistakes(
    lmflow: Call, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("hello")
    model = [] if "--model" in arguments else ["--model", model_directory]
    done = lmflow("generate", *model, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_images_need_a_model_that_sees(generate: Call, tmp_path: Path) -> None:
    (tmp_path / "p.png").touch()
    done = generate("--prompt", "what is this", "--image", tmp_path / "p.png")
    assert done.code == 2
    assert "the prompt: it has 1 image, and this model reads text alone. Choose a vision-language model" in done.err


def test_standard_input_that_is_no_text(generate: Call) -> None:
    done = generate(stdin=b"caf\xe9")
    assert (done.code, "standard input is not UTF-8 (byte 4)" in done.err) == (2, True)


def test_nothing_to_complete(generate: Call) -> None:
    done = generate(stdin=None)
    assert (done.code, "nothing to complete: give --prompt TEXT" in done.err) == (2, True)


def test_prompts_that_cannot_be_answered_are_counted(generate: Call, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("the fox\n" + "fox " * 300)
    output = tmp_path / "o.jsonl"
    done = generate("--input", tmp_path / "p.txt", "--output", output)
    assert done.code == 1
    assert "1 of 2 prompts could not be answered (p.txt:2: the prompt has" in done.err
    good, bad = records(output.read_text())
    assert (len(good["completions"]), bad["completions"]) == (1, [])
    again = generate("--input", tmp_path / "p.txt", "--output", output, "--resume")
    assert (again.code, "generating (0 of 1)" in again.err) == (1, True)
    assert records(output.read_text()) == [good, bad]


@pytest.mark.parametrize("command", ["generate", "chat", "eval"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom lmflow.cli import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "found = [name for name in ('torch', 'transformers', 'datasets', 'peft', 'numpy') if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--model NAME" in done.stdout
    assert "--device auto|cpu|cuda" in done.stdout
    assert ("--sampling.temperature" in done.stdout) == (command != "eval")
    assert ("--data.packing" in done.stdout, "--data.limit" in done.stdout) == (False, command != "chat")
