"""Tokenising Alpaca 50 times over: lmflow beside the preprocessing of trl's SFTTrainer, in alternating processes.

    python benchmarks/tokenising.py --data alpaca_en_demo.json --peer TRL_PYTHON

`TRL_PYTHON` is the Python of an environment of its own with trl. Both sides get the same dialogues, tokenizer and chat
template with marked answers, train on the answers alone, and write the result to disk; reading the file is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "tokenising.md"
TIMES, ROUNDS = 50, 3
OURS = Path(__file__).with_name("tokenising_ours.py")
THEIRS = Path(__file__).with_name("tokenising_trl.py")


def main() -> None:
    """Measure both sides in turn, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        records = prepare(given.data, place)
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(ROUNDS):
            for workers in (1, 2):
                for name, python, script in (("lmflow", sys.executable, OURS), ("trl", str(given.peer), THEIRS)):
                    found.setdefault((name, workers), []).append(measure(python, script, place, workers))
    RESULT.write_text(report(found, records), encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


def prepare(data: Path, place: Path) -> int:
    """Write the dialogues and a tokenizer trained on them; returns how many dialogues there are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lmflow.data.chat_templates import chat_template
    from lmflow.data.dataset import read_samples
    from lmflow.data.formats import FORMATS, Formats
    from lmflow.data.formats.dialogues import as_message
    from lmflow.recipe.sections.data import Reading

    samples = read_samples(Reading(path=str(data)), Formats(FORMATS))
    with (place / "dialogues.jsonl").open("w", encoding="utf-8") as file:
        for copy in range(TIMES):
            for sample in samples:
                turns = [as_message(turn) for turn in sample.messages]
                turns[0]["content"] += f" ({copy})"  # so that no copy is another's
                file.write(json.dumps({"messages": turns}) + "\n")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((turn.content for sample in samples for turn in sample.messages), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = chat_template("chatml")
    tokenizer.save_pretrained(place / "tokenizer")
    return len(samples) * TIMES


def measure(python: str, script: Path, place: Path, workers: int) -> dict[str, float]:
    """Seconds and tokens of one process."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "LMFLOW_CACHE": cache,
            "HF_DATASETS_CACHE": cache,
            "HF_HUB_OFFLINE": "1",
            "RAYON_NUM_THREADS": str(workers),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [python, script, place, str(workers)], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def report(found: dict[tuple[str, int], list[dict[str, float]]], records: int) -> str:
    """The page of results."""
    best = {key: min(each["seconds"] for each in runs) for key, runs in found.items()}
    tokens = {key: {(each["tokens"], each["trained"]) for each in runs} for key, runs in found.items()}
    [(count, trained)] = set.union(*tokens.values())
    peer = found["trl", 1][0]
    rows = "".join(
        f"| {workers} | {best['lmflow', workers]:.1f} | {best['trl', workers]:.1f} | "
        f"{best['trl', workers] / best['lmflow', workers]:.1f} |\n"
        for workers in (1, 2)
    )
    return (
        "# Tokenising\n\n"
        f"{records:,} Alpaca dialogues ({count:,.0f} tokens, {trained:,.0f} trained, the same on both sides), ChatML "
        f"with marked answers, a byte-level BPE of 16,000. Seconds of the clock, the least of {ROUNDS} alternating "
        f"processes, on {os.cpu_count()} cores of a shared machine ({platform.machine()}); rely on ratios "
        "only. The result "
        "is written to disk on both sides.\n\n"
        "| processes or threads | lmflow, s | trl SFTTrainer, s | trl / lmflow |\n|---|---|---|---|\n"
        f"{rows}\n"
        "As they come, trl tokenises in one process and lmflow on every core: "
        f"{best['trl', 1] / best['lmflow', 2]:.1f} times as fast.\n\n"
        f"lmflow with transformers {version('transformers')} and tokenizers {version('tokenizers')}; trl {peer['trl']} "
        f"with transformers {peer['transformers']} and datasets {peer['datasets']}, `assistant_only_loss=True`.\n\n"
        "Measured by `python benchmarks/tokenising.py --data alpaca_en_demo.json --peer TRL_PYTHON`.\n"
    )


if __name__ == "__main__":
    main()
