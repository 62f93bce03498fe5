"""Sight on two cores: a small tower, a projector and the embedded language model on Easy-VQA and on scanned digits.

    python benchmarks/vision.py easy-vqa        (or: digits)

trains an open_clip tower by contrast on captions made from the training records, then the projector alone, then the
projector with LoRA on the language model, and measures the test answers: with each question's own image, with the
images shuffled between questions, and without a model, from the question alone. The images are those of the
packages easy-vqa and scikit-learn (`pip install 'lmflow-multimodal[clip,images]'`). Stopped and started
again, it goes on with the step it was at.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmflow.components import GenerateRequest, LoadRequest

os.environ.setdefault("OMP_NUM_THREADS", "1")
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Question:
    image: str
    text: str
    answer: str

    def record(self) -> dict[str, Any]:
        turns = [{"from": "human", "value": f"<image>\n{self.text}"}, {"from": "gpt", "value": self.answer}]
        return {"image": self.image, "conversations": turns}


@dataclass(frozen=True)
class Trial:
    """One data set: its questions, captions for the tower, and how long each stage is."""

    train: list[Question]
    test: list[Question]
    captions: dict[str, str]
    vision: dict[str, Any]
    tower_steps: int
    shift: int
    pool: int
    stages: tuple[dict[str, Any], dict[str, Any]]


def easy_vqa(work: Path) -> Trial:
    import easy_vqa as package

    def questions(part: str) -> list[Question]:
        texts, answers, images = getattr(package, f"get_{part}_questions")()
        paths = getattr(package, f"get_{part}_image_paths")()
        return [Question(paths[image], text, answer) for text, answer, image in zip(texts, answers, images)]

    train = questions("train")
    seen: dict[str, set[str]] = defaultdict(set)
    for each in train:
        seen[each.image] |= {each.answer} & {*SHAPES, *COLOURS}
        words = set(each.text.rstrip("?").split())
        if each.answer == ("no" if words & {"not", "no"} else "yes"):
            seen[each.image] |= words & {*SHAPES, *COLOURS}
    captions = {
        image: " ".join([*sorted(known & {*COLOURS}), *(sorted(known & {*SHAPES}) or ["shape"])])
        for image, known in seen.items()
    }
    # A small ResNet: convolutions need far fewer images than attention does. Its features are read where they are a
    # grid of 4 x 4.
    vision = {"image_size": 64, "layers": [1, 1, 2, 1], "width": 16, "head_width": 64}
    stages = (
        {"training.max_steps": 150, "training.learning_rate": 2e-3},
        {
            "training.epochs": 0.6,
            "training.learning_rate": 2e-3,
            "model.projector_learning_rate": 5e-4,
            "tuner.rank": 32,
        },
    )
    return Trial(train, questions("test"), captions, vision, 500, 6, 1, stages)


def digits(work: Path) -> Trial:
    import numpy
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    folder = work / "images"
    folder.mkdir(parents=True, exist_ok=True)
    questions, captions = [], {}
    for number, (image, digit) in enumerate(zip(data.images, data.target)):
        path = folder / f"{number}.png"
        Image.fromarray((255 - image * 255 / 16).astype(numpy.uint8)).resize((32, 32), Image.Resampling.BICUBIC).save(
            path
        )
        questions.append(Question(str(path), "what digit is this?", str(digit)))
        captions[str(path)] = f"the digit {DIGITS[digit]}"
    random.Random(0).shuffle(questions)
    cut = len(questions) * 4 // 5
    vision = {"image_size": 32, "patch_size": 4, "layers": 3, "width": 96, "head_width": 32}
    stages = (
        {"training.max_steps": 200, "training.learning_rate": 2e-3},
        {"training.epochs": 8, "training.learning_rate": 1e-3, "model.projector_learning_rate": 5e-4, "tuner.rank": 16},
    )
    train = questions[:cut]
    known = {each.image for each in train}
    return Trial(train, questions[cut:], {k: v for k, v in captions.items() if k in known}, vision, 350, 2, 2, stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trial", choices=("easy-vqa", "digits"))
    parser.add_argument("--work", type=Path, help="where runs are kept; by default runs/vision-TRIAL")
    parser.add_argument("--model", default="demo", help="the language model")
    parser.add_argument("--test", type=int, help="measure on so many test questions only")
    given = parser.parse_args()
    work = (given.work or Path("runs") / f"vision-{given.trial}").resolve()
    work.mkdir(parents=True, exist_ok=True)
    trial = {"easy-vqa": easy_vqa, "digits": digits}[given.trial](work)
    times = work / "times.json"
    spent: dict[str, list[float]] = json.loads(times.read_text()) if times.exists() else {}
    train = work / "train.json"
    train.write_text(json.dumps([each.record() for each in trial.train]))
    with_time(spent, "tower, contrastive", times, lambda: make_tower(trial, work / "tower"))
    model = {"model": "vision-language", "model.language_model": given.model, "model.tower": work / "tower"}
    model |= {"model.pool": trial.pool}
    common = {"data": "llava", "data.path": train, "data.validation": 0.01, "training.batch_size": 32}
    common |= {"training.micro_batch_size": 32, "aligner.heldout_prompts": 8}
    first, second = trial.stages
    stage1 = model | common | {"tuner": "projector"} | first
    with_time(spent, "stage 1, projector", times, lambda: lmflow_run(work / "stage1", stage1))
    stage2 = {"model": work / "stage1"} | common | {"tuner": "lora"} | second
    with_time(spent, "stage 2, projector and LoRA", times, lambda: lmflow_run(work / "stage2", stage2))
    test = trial.test[: given.test]
    spent.pop("measuring", None)
    figures: dict[str, float] = {}
    with_time(spent, "measuring", times, lambda: figures.update(measure(work, trial.train, test)))
    write(work, given.trial, given.model, len(trial.train), len(test), spent, figures)


def make_tower(trial: Trial, directory: Path) -> None:
    from lmflow_multimodal.contrastive import Captioned, train_tower

    def show(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"tower step {step} loss {loss:.3f}", flush=True)

    images = [Captioned(image, caption) for image, caption in sorted(trial.captions.items())]
    train_tower(trial.vision, images, directory, steps=trial.tower_steps, shift=trial.shift, progress=show)


def lmflow_run(output: Path, options: dict[str, Any]) -> None:
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "lmflow", "run", "--overwrite", "--output", str(output), *arguments]
    subprocess.run(command, check=True)


def measure(work: Path, train: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    from lmflow.plugins import load_plugins
    from lmflow.recipe.resolve import model_from_reference

    plugins = load_plugins()
    images = [each.image for each in test]
    others = images[:]
    random.Random(0).shuffle(others)
    figures = {"from the question alone": from_question(train, test)}
    first = model_from_reference(plugins, str(work / "stage1")).load(LoadRequest())
    figures["after stage 1"] = accuracy(first, test, images)
    second = model_from_reference(plugins, str(work / "stage2")).load(LoadRequest())
    figures["after stage 2"] = accuracy(second, test, images)
    figures["after stage 2, images shuffled"] = accuracy(second, test, others)
    return figures


def accuracy(model: Any, test: Sequence[Question], images: Sequence[str]) -> float:
    from lmflow.data.sample import Message, Sample
    from lmflow.inference.hf import HuggingFace
    from lmflow.inference.types import Sampling

    prompts = [
        model.encode_prompt(Sample((Message("user", f"<image>\n{q.text}", (image,)),)))
        for q, image in zip(test, images)
    ]
    drawn = HuggingFace().generate(GenerateRequest(model, prompts, Sampling(temperature=0, max_new_tokens=8)))
    right = sum(each[0].text.strip() == q.answer for q, each in zip(test, drawn))
    return right / len(test)


def from_question(train: Sequence[Question], test: Sequence[Question]) -> float:
    """The share of test questions whose answer is the most frequent one of the same training question."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for each in train:
        answers[each.text][each.answer] += 1
    overall = Counter(each.answer for each in train)
    return sum((answers[q.text] or overall).most_common(1)[0][0] == q.answer for q in test) / len(test)


def with_time(spent: dict[str, list[float]], name: str, times: Path, work: Callable[[], Any]) -> None:
    """Do the work, unless an earlier call of this script did it, and keep its wall and CPU seconds."""
    if name in spent:
        return
    wall, cpu = time.time(), cpu_seconds()
    work()
    spent[name] = [time.time() - wall, cpu_seconds() - cpu]
    times.write_text(json.dumps(spent))
    print(f"{name}: {spent[name][0]:.0f} s, {spent[name][1]:.0f} CPU s", flush=True)


def cpu_seconds() -> float:
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def write(
    work: Path,
    trial: str,
    model: str,
    train: int,
    test: int,
    spent: dict[str, list[float]],
    figures: dict[str, float],
) -> None:
    lines = [f"## {trial}", "", f"Language model `{model}`, {train:,} training and {test:,} test questions.", ""]
    lines += ["| accuracy on the test questions | |", "|---|---|"]
    lines += [f"| {name} | {value:.1%} |" for name, value in figures.items()]
    lines += ["", "| step | wall s | CPU s |", "|---|---|---|"]
    lines += [f"| {name} | {wall:.0f} | {cpu:.0f} |" for name, (wall, cpu) in spent.items()]
    total = [sum(column) for column in zip(*spent.values())]
    lines += [f"| all | {total[0]:.0f} | {total[1]:.0f} |", ""]
    text = "\n".join(lines)
    (work / "figures.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
