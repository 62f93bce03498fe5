"""The groups of faults that faults.py makes on runs and on what other commands write."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fault_commands import SMALL, Ended, Fault, Place, end, kill, remains, until
from safetensors import safe_open

from lmflow.run_files import read_record

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DAMAGES: Mapping[str, bytes | None] = {
    "gone": None,
    "empty": b"",
    "a list": b"[]",
    "an empty object": b"{}",
    "no text": b"\xff\xfe\x00\x9f",
    "torn": b'{"status": "compl',
}
SIDE_FILES = ("run.json", "metrics.jsonl", "checkpoints/*/manifest.json")


def kills(place: Place) -> Iterator[Fault]:
    """Runs and other commands that write, killed at random moments."""
    started = time.monotonic()
    place.expected()
    seconds = time.monotonic() - started
    output = place.folder / "killed"
    for number in range(place.kills):
        begun = (output / "recipe.yaml").exists()
        process = place.start(*(["run", "--resume"] if begun else SMALL), "--output", output, "--quiet")
        try:
            process.wait(timeout=place.draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            kill(process)
        else:  # it came to its end; the next begins anew
            yield Fault(f"a run that was killed {number} times", list(place.resumed(output)))
            shutil.rmtree(output)
    yield Fault("a run that was killed, to its end", list(place.resumed(output)))
    for words in (
        ["vocabulary", "demo", "--add", "<x>", "--output"],
        ["export", "merge", place.folder / "whole", "--output"],
    ):
        for number in range(place.kills):
            made = place.folder / f"{words[0]}-{number}"
            process = place.start(*words, made)
            until(process, lambda made=made: any(place.folder.glob(f".{made.name}.*")) or made.exists())
            time.sleep(place.draw.uniform(0, 0.05))
            kill(process)
            wrong = [] if not made.exists() or is_whole(made) else ["half of it is there"]
            if not made.exists():
                wrong += place.lmflow(*words, made).wrong(0)
                wrong += remains(place.folder)
            yield Fault(f"lmflow {words[0]}, killed", wrong)


def is_whole(model: Path) -> bool:
    """Whether a model directory can be read."""
    try:
        json.loads((model / "config.json").read_text())
        json.loads((model / "tokenizer_config.json").read_text())
        with safe_open(model / "model.safetensors", "pt") as file:
            return len(list(file.keys())) > 0
    except Exception:
        return False


def signals(place: Place) -> Iterator[Fault]:
    """Every signal that asks to stop, in one process and in two, one of which may be stopped, and under nohup."""
    for number in SIGNALS:
        output = place.folder / f"one-{number}"
        process = place.start(*SMALL, "--output", output)
        until(process, lambda output=output: steps_in(output) >= 2)
        process.send_signal(number)
        wrong = [*end(process).wrong(128 + number)]
        wrong += [] if list(output.glob("checkpoints/step-*")) else ["no checkpoint"]
        wrong += [] if status_of(output) == "interrupted" else [f"status {status_of(output)}"]
        yield Fault(f"{number.name}", [*wrong, *place.resumed(output)])
    output = place.folder / "nohup"
    process = place.start(*SMALL, "--output", output, "--quiet", before=["nohup"])
    until(process, lambda: steps_in(output) >= 2)
    process.send_signal(signal.SIGHUP)
    yield Fault("SIGHUP under nohup", list(end(process).wrong(0)))
    for stopped in (False, True):
        output = place.folder / f"two-{stopped}"
        process = place.start(*SMALL, "--output", output, "--launch.processes", "2")
        until(process, lambda output=output: steps_in(output) >= 2)
        if stopped:
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(workers[-1]), signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        wrong = [*end(process).wrong(143)]
        wrong += [] if list(output.glob("checkpoints/step-*")) else ["no checkpoint"]
        yield Fault(f"SIGTERM, two processes{', one of them stopped' if stopped else ''}", wrong)


def steps_in(output: Path) -> int:
    """Steps that a run has taken so far."""
    file = output / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def status_of(output: Path) -> object:
    """How run.json says that a run ended."""
    return read_record(output).get("status")


def damaged_files(place: Place) -> Iterator[Fault]:
    """The files beside a run's weights, in every damaged state; a damaged checkpoint; a failed resume."""
    place.expected()
    for pattern in SIDE_FILES:
        for damage, content in DAMAGES.items():
            output = copied(place)
            shutil.rmtree(output / "model")
            for file in output.glob(pattern):
                file.unlink()
                if content is not None:
                    file.write_bytes(content)
            yield Fault(f"{pattern}: {damage}", list(differing_weights(place, output)))
    output = copied(place)
    shutil.rmtree(output / "model")
    newest = sorted(output.glob("checkpoints/step-*"))[-1] / "trainable.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x01")
    yield Fault("the newest checkpoint: another byte", list(place.resumed(output)))
    output = copied(place)
    before = (output / "run.json").read_bytes()
    wrong = [*place.lmflow("run", "--resume", "--output", output, "--training.seed", "5").wrong(2)]
    wrong += [] if (output / "run.json").read_bytes() == before else ["run.json is another"]
    yield Fault("a resume that is refused", wrong)


def copied(place: Place) -> Path:
    """Another copy of the finished run."""
    output = place.folder / "copy"
    shutil.rmtree(output, ignore_errors=True)
    return Path(shutil.copytree(place.folder / "whole", output))


def differing_weights(place: Place, output: Path) -> Iterator[str]:
    """What is wrong with a run once it is resumed; its record may have lost what it knew."""
    yield from place.lmflow("run", "--resume", "--output", output, "--quiet").wrong(0)
    weights = "model/model.safetensors"
    if not (output / weights).exists():
        yield "it has no result"
    elif (output / weights).read_bytes() != (place.folder / "whole" / weights).read_bytes():
        yield "its weights are others"


FILL = 'mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99; shift 2; "$@"; code=$?; find . -mindepth 1 >&2; exit $code'
"""Carries out a command in a directory that is a small disk of its own, and lists what is there afterwards."""


def full_disks(place: Place) -> Iterator[Fault]:
    """Commands that write to a disk of a few megabytes, and a cache that lies on one."""
    place.expected()
    disk = place.folder / "disk"
    disk.mkdir()
    cases = {
        "vocabulary": ["vocabulary", "demo", "--add", "<x>", "--output", "out"],
        "export merge": ["export", "merge", place.folder / "whole", "--output", "out"],
        "run": [*SMALL, "--output", "out"],
    }
    for size in ("16k", "200k", "1m", "2m"):
        for name, words in cases.items():
            done = on_small_disk(place, disk, size, *words)
            if done.code == 99:
                sys.stderr.write("full disks: no file system can be mounted here; left out\n")
                return
            left = [line for line in done.err.splitlines() if line.startswith("./")]
            wrong = [*done.wrong(1, 2)]
            wrong += ["something is left"] if name != "run" and left else []
            wrong += ["something hidden is left"] if any(line.endswith(".partial") for line in left) else []
            yield Fault(f"lmflow {name}, a disk of {size}", wrong)
    long = place.folder / "long.jsonl"
    rows = ({"prompt": f"Say {n} " + "and go on " * 40, "answer": "yes " * 40} for n in range(5000))
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["run", "--data.path", long, "--data.max_length", "64", "--training.max_steps", "1", "--quiet"]
    output = place.folder / "cacheless"
    done = on_small_disk(place, disk, "64k", *words, "--output", output, LMFLOW_CACHE=str(disk))
    yield Fault("a run, the cache's disk is full", list(done.wrong(0)))


def on_small_disk(place: Place, disk: Path, size: str, *words: str | Path, **variables: str) -> Ended:
    """A command whose working directory is a new disk of that size."""
    shell = f"cd / && {FILL}".replace('; shift 2; "$@"', '; cd "$2" || exit 99; shift 2; "$@"')
    return place.lmflow(*words, before=["unshare", "-rm", "sh", "-c", shell, "sh", size, str(disk)], **variables)


HEAD = """import os, sys, torch, multiprocessing
def square(x): return float(x * x)
def score(prompts, completions, records):
"""
REWARDS = {
    "sys.exit(0)": ("sys.exit(0)", 1),
    "raise ValueError": ("raise ValueError('boom')", 1),
    "a dict": ("return {c: 1.0 for c in completions}", 1),
    "10**400": ("return [10**400 for _ in completions]", 1),
    "NaN": ("return [float('nan') for _ in completions]", 1),
    "a 2-D tensor": ("return torch.ones(len(completions), 2)", 1),
    "too few": ("return [1.0]", 1),
    "prints": ("print('loud'); os.system('echo loud'); return [float(len(c)) for c in completions]", 0),
    "a pool": (
        "with multiprocessing.get_context('fork').Pool(2) as p: return p.map(square, map(len, completions))",
        0,
    ),
    "torch's modes": (
        "torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64); return [1.0 for _ in completions]",
        0,
    ),
}
OPTIONS = (
    "run --aligner raft --tuner lora --aligner.iterations 1 --aligner.prompts 4 --aligner.samples 2 "
    "--aligner.heldout_prompts 2 --aligner.max_new_tokens 4 --training.batch_size 4 --json"
)
SAMPLED = OPTIONS.split()


def rewards(place: Place) -> Iterator[Fault]:
    """Reward functions that end, hang, print, change torch's modes, or return something else than numbers."""
    for index, (name, (body, code)) in enumerate(REWARDS.items()):
        (place.folder / f"mine{index}.py").write_text(f"{HEAD}    {body}\n")
        done = place.lmflow(*SAMPLED, "--reward", f"python:mine{index}:score", "--output", f"out{index}")
        yield Fault(name, [*done.wrong(code), *wrong_output(done)])
    for name, text in {"not there": "", "sys.exit at import": "import sys; sys.exit(0)"}.items():
        (place.folder / "early.py").write_text(text)
        started = place.lmflow(*SAMPLED, "--reward", "python:early:score", "--output", "early", "--overwrite")
        wrong = [
            *started.wrong(2),
            *([] if "loading model" not in started.err else ["told after the model was loaded"]),
        ]
        yield Fault(f"a reward that is {name}", wrong)


def wrong_output(done: Ended) -> Iterator[str]:
    """What is wrong with standard output: one JSON object where all went well, else nothing."""
    lines = done.out.splitlines()
    if done.code == 0 and (len(lines) != 1 or not lines[0].startswith("{")):
        yield f"standard output holds {done.out[:80]!r}"
    if done.code and lines:
        yield f"standard output holds {done.out[:80]!r}"
