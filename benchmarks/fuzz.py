# ruff: noqa: RUF001 - digits of other scripts are values too
"""Commands with values that nobody should give: each ends with a message, none with a traceback.

    python benchmarks/fuzz.py [--count 500] [--seed 0] [--show]

Every command is a fork of this process in a directory of its own with odd files. It is at fault where it shows a
traceback, says that an error is not one of those lmflow expects, dies of a signal, or computes for more than two
minutes. The exit status is 1 where any is at fault; --show prints what each of those was and said.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SECONDS = 120
RECORDS = '{"prompt": "What is 1 + 1?", "completion": "2"}\n{"prompt": "What is 2 + 2?", "completion": "4"}\n'
PATHS = (
    *("", ".", "..", "/", "~", "~nobody/x", "missing", "missing.jsonl", "data.jsonl", "folder", "empty", "empty.jsonl"),
    *(
        "null.jsonl",
        "list.json",
        "broken.json",
        "deep.json",
        "bytes.bin",
        "utf16.csv",
        "unreadable",
        "loop",
        "fifo.txt",
    ),
    *(
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/proc/self/mem",
        "/proc/nowhere/x",
        "a" * 300,
        "a/" * 2000,
        "x\n\x1b[2Jy",
    ),
    *(
        "a[/b].jsonl",
        "weights",
        "half",
        "adapter",
        "demo",
        "http://127.0.0.1:1/x",
        "owner/name",
        "owner/name/",
        "\udcff",
    ),
    *("recipe.yaml", "odd.yaml", "run", "stage:x", "hf:x", "-", "--", "data.jsonl=0", "data.jsonl=1,data.jsonl=nan"),
)
NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "1e400",
        "-inf",
        "nan",
        "1e-320",
        "9" * 30,
        "2.5",
        "",
        " ",
        "x",
        "1,2",
        "[1",
        "[1, [2]]",
        "{}",
    ),
    *("0x10", "010", "1_000", "true", "none", "null", "１", "²", "1e3", "+1", "--"),
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "none",
        "(",
        "[",
        "(a+)+$",
        "{{ x }}",
        "{% for %}",
        "{% raise %}",
        "\x00",
        "\x1b]0;x\x07",
        "\u202e",
    ),
    *(
        "a=b",
        "a=b,a=c",
        "=",
        ",",
        "a.b.c=d",
        "{'a': 1}",
        '{"a": [1, 2',
        "messages",
        "os:system",
        "no_module:f",
        "json:dumps",
    ),
    *("builtins:exec", "adamw", "lora", "sft", "full", "demo", "sdpa", "a" * 5000),
)
SETTINGS = {
    "data": {
        "path": PATHS,
        "mix": PATHS,
        "subset": TEXTS,
        "split": TEXTS,
        "columns": TEXTS,
        "ignore": TEXTS,
        "on_bad_record": TEXTS,
        "streaming": NUMBERS,
        "limit": NUMBERS,
    },
    "sampling": {
        **dict.fromkeys(("n", "temperature", "top_k", "top_p", "seed", "max_new_tokens", "min_new_tokens"), NUMBERS),
        "stop": TEXTS,
    },
    "training": {
        **dict.fromkeys(
            (
                "learning_rate",
                "batch_size",
                "micro_batch_size",
                "epochs",
                "max_steps",
                "max_grad_norm",
                "evaluate_every",
                "checkpoint_every",
                "keep_checkpoints",
                "seed",
            ),
            NUMBERS,
        ),
        **dict.fromkeys(("precision", "device", "result", "compile", "gradient_checkpointing"), TEXTS),
    },
    "more": {
        **dict.fromkeys(("data.max_length", "data.validation", "data.packing", "tuner.rank", "tuner.alpha"), NUMBERS),
        **dict.fromkeys(("schedule.warmup", "schedule.final_ratio", "launch.processes", "launch.timeout"), NUMBERS),
        **dict.fromkeys(("data.template", "model.path", "model.tokenizer"), PATHS),
        **dict.fromkeys(("data.template_arguments", "data.train_on", "tuner.target_modules", "launch.address"), TEXTS),
        **dict.fromkeys(("model.quantization", "model.device_map", "reward.function", "reward.pattern"), TEXTS),
    },
    "slots": dict.fromkeys(
        ("context", "attention", "tuner", "optimizer", "schedule", "aligner", "inferencer", "reward", "trackers"), TEXTS
    ),
    "own": {"model": PATHS, "output": PATHS},
}
READING = ("data", "own")
COMMANDS = {
    "run": ("data", "training", "more", "slots", "own"),
    "plan": ("data", "training", "more", "slots", "own"),
    "generate": ("data", "sampling", "slots", "own"),
    "chat": ("sampling", "slots", "own"),
    "eval --evaluator loss": READING,
    "eval": (*READING, "sampling"),
    "data show": (*READING, "more"),
    "data check": (*READING, "more"),
    "data convert": READING,
    "recipe show": ("training", "more", "slots"),
    "recipe explain": ("training", "more"),
    "export merge": ("own",),
    "vocabulary": ("own",),
    "draft": ("data", "sampling", "training", "own"),
    "plugins show": (),
    "new": ("own",),
    "doctor": ("own",),
}
PLACED = ("run", "plan", "data show", "data check", "data convert", "export merge", "vocabulary", "recipe show")
"""Commands that take a path beside their options."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    said: str

    @property
    def fault(self) -> str | None:
        """What is wrong with that; None for nothing."""
        if self.code == -24:
            return "hangs"
        if self.code < 0:
            return f"signal {-self.code}"
        if "Traceback (most recent call last)" in self.said:
            return "traceback"
        return "unexpected error" if "not one of the errors lmflow expects" in self.said else None


def furnish(place: Path) -> None:
    """The odd files that a command finds."""
    for name, content in {
        "data.jsonl": RECORDS,
        "empty.jsonl": "",
        "null.jsonl": "null\n",
        "list.json": "[1, 2]",
        "broken.json": '{"a": ',
        "deep.json": "[" * 100_000,
        "recipe.yaml": "training: {max_steps: 1}\n",
        "odd.yaml": "a: &a [*a]\n",
        "loop.jinja": "",
        "broken.py": "1 +\n",
    }.items():
        (place / name).write_text(content)
    (place / "bytes.bin").write_bytes(bytes(range(256)))
    (place / "utf16.csv").write_bytes("prompt,completion\na,b\n".encode("utf-16"))
    for name in ("folder", "weights", "half", "adapter", "run"):
        (place / name).mkdir()
    (place / "empty").touch()
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "fifo.txt")
    (place / "unreadable").touch(mode=0)
    (place / "weights" / "config.json").write_text('{"model_type": "llama", "hidden_size": -1}')
    (place / "half" / "config.json").write_text('{"model_type": "llama", "hidden_size": 16, "num_attention_heads": 4}')
    (place / "half" / "model.safetensors").write_bytes(b"\xff" * 64)
    (place / "half" / "tokenizer.json").write_text("{}")
    (place / "adapter" / "adapter_config.json").write_text("[]")
    (place / "run" / "run.json").write_text('{"status": 3}')


def make(chance: random.Random) -> list[str]:
    """A command with some odd values."""
    command = chance.choice(list(COMMANDS))
    arguments = command.split()
    if command in PLACED and chance.random() < 0.4:
        arguments.append(chance.choice(PATHS))
    options = [(group, name) for group in COMMANDS[command] for name in SETTINGS[group]]
    for group, name in chance.sample(options, min(len(options), chance.randint(1, 3))):
        option = f"--{group}.{name}" if group in ("data", "sampling", "training") else f"--{name}"
        arguments += [option, chance.choice(SETTINGS[group][name])]
    if command == "generate":
        arguments += ["--prompt", chance.choice(TEXTS)]
    if command == "run":  # one that starts all the same ends soon
        arguments += ["--aligner", "sft", "--training.max_steps", "1", "--data.path", chance.choice(PATHS)]
    return [argument.replace("\0", "") for argument in arguments]


def carry_out(arguments: list[str], place: Path) -> Ended:
    """Do it in a fork of this process."""
    output = place.parent / "output"
    child = os.fork()
    if child == 0:
        become(arguments, place, output)
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), output.read_text(errors="replace"))


def become(arguments: list[str], place: Path, output: Path) -> None:
    """Be that command, and end."""
    from lmflow.cli import main

    code = 70
    try:
        os.chdir(place)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(file, number)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    import peft  # noqa: F401 - imported here, it is there in every fork
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    import lmflow.run.run
    import lmflow.training.trainer  # noqa: F401

    chance, found = random.Random(given.seed), Counter[str]()
    for _ in range(given.count):
        arguments = make(chance)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            place = Path(folder) / "here"
            place.mkdir()
            furnish(place)
            ended = carry_out(arguments, place)
        found[ended.fault or f"exit {ended.code}"] += 1
        if ended.fault and given.show:
            print(f"{ended.fault}: lmflow {shlex.join(arguments)}\n{ended.said[-600:]}\n", flush=True)
    print(json.dumps(dict(found.most_common())))
    sys.exit(any(not each.startswith("exit") for each in found))


if __name__ == "__main__":
    main()
