"""Whole runs: what docs/vision.md shows, RAFT with a reward that looks, and sight itself."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lmflow.builtin.full import Full
from lmflow.cli import main
from lmflow.components import GenerateRequest, LoadRequest, Reward
from lmflow.data.sample import Dataset, Message, Sample
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.models.encoding import encode
from lmflow.plugins import load_plugins
from lmflow.recipe.resolve import model_from_reference, resolve
from lmflow.recipe.sections.data import DataOptions
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.testing.contexts import align_context, trainer_setup
from lmflow.training.selftest import check_model
from lmflow.training.trainer import Trainer
from lmflow_multimodal.formats import Llava
from lmflow_multimodal.images import open_image
from lmflow_multimodal.tuner import Projector

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"


@pytest.fixture
def place(
    tmp_path: Path, model_directory: Path, tower_file: Path, images: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Everything the documentation's commands name, in the working directory."""
    shutil.copytree(model_directory, tmp_path / "DIR")
    shutil.copy(tower_file, tmp_path / "tower.json")
    records = []
    for number in range(12):
        colour = sorted(images)[number % len(images)]
        shutil.copy(images[colour], tmp_path / f"{colour}.png")
        asked = (
            {"from": "human", "value": "<image>\nwhat color is it?"} if number % 3 else {"from": "human", "value": "hi"}
        )
        record: dict[str, Any] = {"conversations": [asked, {"from": "gpt", "value": colour}]}
        records.append(record | ({"image": f"{colour}.png"} if number % 3 else {}))
    (tmp_path / "images.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, arguments


SHORT = ("--training.max_steps", "2", "--quiet", "--aligner.max_new_tokens", "4", "--data.path", "images.json")


def test_two_stages(place: Path, capsys: pytest.CaptureFixture[str]):
    parts = ("--model.language_model", "DIR", "--model.tower", "tower.json", "--model.checkpoint", "random")
    stage = ("--tuner", "projector", "--training.learning_rate", "2e-3", "--output", "sight")
    call("run", "--model", "vision-language", *parts, *stage, *SHORT)
    stage = ("--tuner", "lora", "--model.projector_learning_rate", "5e-4", "--output", "answers")
    call("run", "--model", "sight", *stage, *SHORT)
    question = ("--image", "red.png", "--prompt", "what color is it?")
    call("generate", "--model", "answers", *question, "--sampling.max_new_tokens", "4")
    first, second = (json.loads((place / run / "run.json").read_text()) for run in ("sight", "answers"))
    assert (first["result"], second["result"]) == ("model", "adapter")
    assert first["metrics"]["generic_loss_after"] == first["metrics"]["generic_loss_before"]  # text is untouched
    assert first["metrics"]["trainable_parameters"] < second["metrics"]["trainable_parameters"]
    # The second stage begins with what the first one learnt.
    assert second["metrics"]["eval_loss_before"] == pytest.approx(first["metrics"]["eval_loss_after"], rel=1e-5)
    before = model_from_reference(load_plugins(), "sight").load(LoadRequest(plugins=load_plugins()))
    assert torch.equal(
        before.network.language_model.lm_head.weight,  # type: ignore[attr-defined]
        model_from_reference(load_plugins(), "DIR").load(LoadRequest(plugins=load_plugins())).module.lm_head.weight,
    )
    call("export", "merge", "answers", "--output", "whole")
    shutil.rmtree("sight")
    merged = model_from_reference(load_plugins(), "whole").load(LoadRequest(plugins=load_plugins()))
    assert (place / "whole" / "language_model" / "model.safetensors").exists()
    assert merged.encode_prompt(Sample((Message("user", "<image>", ("red.png",)),))).model_inputs


def test_real_photographs_are_learnt_from(place: Path, shared_data: Path):
    parts = ("--model.language_model", "DIR", "--model.tower", "tower.json", "--model.checkpoint", "random")
    data = ("--data.path", str(shared_data / "mllm_demo.json"))
    call("run", "--model", "vision-language", *parts, "--tuner", "projector", *SHORT[:-2], *data, "--output", "photos")
    record = json.loads((place / "photos" / "run.json").read_text())
    assert (record["data"]["format"], record["data"]["records"]) == ("image_messages", 6)
    losses = [json.loads(line)["loss"] for line in (place / "photos" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_the_documented_recipes_resolve(place: Path):
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    found = []
    for number, block in enumerate(blocks):
        Path(f"{number}.yaml").write_text(block)
        found.append(resolve(load_plugins(), Path(f"{number}.yaml")).recipe)
    assert [(recipe.model.name, recipe.tuner.name) for recipe in found] == [
        ("vision-language", "projector"),
        ("vision-language", "lora"),
    ]


def test_the_first_stage_needs_a_vision_language_model(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--model", "demo", "--tuner", "projector"])
    assert ended.value.code == 2
    assert "tuner projector needs a model (vision-language)" in capsys.readouterr().err


class SeesRed(Reward):
    """The share of red in the image: it looks at what the model was shown."""

    name = "sees-red"

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
        first = [open_image(sample.images[0]).getpixel((0, 0)) for sample in samples]
        return [pixel[0] / 255 for pixel in first if isinstance(pixel, tuple)]


def trainer_for(model: Any, directory: Path, precision: str = "fp32", packing: bool = False, **options: Any) -> Trainer:
    opened = RunDirectory(directory)
    opened.write_record({"status": "running"})
    log = RunLog(opened, lambda *_, **__: None)
    settings = TrainingOptions(**options)
    setup = trainer_setup(precision=precision, packing=packing, keep_start_weights=True)
    return Trainer(model, settings, log, opened.checkpoints, setup)


def test_raft_draws_from_images_and_its_reward_looks(
    vision: Callable[..., Any], images: dict[str, str], tmp_path: Path
):
    from lmflow_raft.raft import Raft

    model = vision().prepare(Full())
    samples = [
        Sample((Message("user", "<image> which?", (images[colour],)),), source=colour) for colour in ("red", "blue")
    ]
    trainer = trainer_for(model, tmp_path / "run", batch_size=2, learning_rate=1e-3)
    data = Dataset(samples, samples, DataOptions(), Llava())
    raft = Raft(iterations=1, prompts=2, samples=2, max_new_tokens=3)
    raft.align(align_context(trainer, data, reward=SeesRed()))
    rows = [
        json.loads(line) for file in (tmp_path / "run" / "samples").iterdir() for line in file.read_text().splitlines()
    ]
    assert {row["source"]: row["reward"] for row in rows} == {"red": 1.0, "blue": 0.0}
    assert trainer.step == 1


def test_micro_batches_of_any_size_give_one_step(vision: Callable[..., Any], images: dict[str, str], tmp_path: Path):
    """Features stay with their rows when a step is split by length: the result does not depend on the split."""
    samples = [
        Sample((Message("user", "<image> " + "fox " * (number % 4), (path,)), Message("assistant", name)), source=name)
        for number, (name, path) in enumerate(sorted(images.items()))
    ]
    samples.append(Sample((Message("user", "dog"), Message("assistant", "jumps")), source="text"))
    weights = []
    for size in (1, 2, 5):
        model = vision().prepare(Projector())
        trainer = trainer_for(model, tmp_path / str(size), batch_size=5, micro_batch_size=size, learning_rate=0.1)
        sequences = encode(model, samples, DataOptions())[0]
        check_model(trainer_for(model, tmp_path / f"packed-{size}", packing=True), sequences)
        trainer.plan(2)
        trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 2), start=0)
        weights.append(model.network.projector[0].weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(weights[0], weights[2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("tuner", [Projector(), Full()])
def test_bf16_and_recomputed_activations(
    vision: Callable[..., Any], images: dict[str, str], tmp_path: Path, tuner: Any
):
    samples = [Sample((Message("user", "<image> fox", (images["red"],)), Message("assistant", "jumps")), source="a")]
    losses = []
    for options in ({}, {"gradient_checkpointing": True}):
        model = vision().prepare(tuner)
        trainer = trainer_for(model, tmp_path / str(len(options)), precision="bf16", learning_rate=1e-2, **options)
        sequences = encode(model, samples, DataOptions())[0]
        check_model(trainer, sequences)
        trainer.plan(3)
        losses.append(
            trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 3), start=0)
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_sight(vision: Callable[..., Any], tmp_path: Path):
    """Red or blue can be told from the image alone: right with it, and with another's image wrong."""
    samples = []
    for number in range(32):
        red = number % 2 == 0
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (16, 16), (200 + number, 5 * number, 20) if red else (20, 5 * number, 200 + number)).save(path)
        turns = Message("user", "<image>which?", (str(path),)), Message("assistant", "lazy" if red else "quick")
        samples.append(Sample(turns, source=path.name))
    model = vision(layer=-1, projector_learning_rate=1e-2).prepare(Full())
    trainer = trainer_for(model, tmp_path / "run", batch_size=8, learning_rate=2e-3)
    sequences = encode(model, samples[:24], DataOptions())[0]
    trainer.plan(60)
    trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 20), start=0)
    test = samples[24:]
    assert answers(model, test) == [sample.messages[-1].content for sample in test]
    turned = [Sample(other.messages[:1], source=other.source) for other in [*test[1:], test[0]]]  # of the other colour
    assert not any(text == sample.messages[-1].content for text, sample in zip(answers(model, turned), test))


def answers(model: Any, samples: Sequence[Sample]) -> list[str]:
    prompts = [model.encode_prompt(sample) for sample in samples]
    drawn = HuggingFace().generate(GenerateRequest(model, prompts, Sampling(temperature=0, max_new_tokens=8)))
    return [each[0].text for each in drawn]
