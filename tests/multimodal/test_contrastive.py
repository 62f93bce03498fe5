"""The contrastive loss, the captions' ids, and a tower that learns."""

import math
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from lmflow_multimodal.contrastive import Captioned, caption_ids, contrast, shifted, train_tower
from lmflow_multimodal.tower import open_tower


def unit(rows: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_by_hand():
    """Two orthogonal pairs at scale 2: each row is softmax(2, 0), so the loss is log(1 + e^-2)."""
    images = texts = torch.eye(2)
    loss = contrast(images, texts, torch.eye(2), torch.tensor(2.0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    # The same captions twice: half of each row's weight is on the other pair.
    both = contrast(images, texts, torch.ones(2, 2), torch.tensor(2.0))
    assert both.item() == pytest.approx(math.log(1 + math.exp(-2)) + 1)


def test_equals_open_clips_loss_where_captions_differ():
    from open_clip.loss import ClipLoss

    images, texts, scale = unit(6, 0), unit(6, 1), torch.tensor(5.0)
    torch.testing.assert_close(contrast(images, texts, torch.eye(6), scale), ClipLoss()(images, texts, scale))


def test_the_end_of_a_caption_has_the_highest_id():
    ids, text = caption_ids(["a red one", "Red"])
    assert ids.tolist() == [[1, 3, 2, 4], [3, 4, 0, 0]]
    assert (text["vocab_size"], text["context_length"]) == (5, 4)


def test_shifts_move_without_losing_size():
    pixels = torch.arange(36.0).reshape(1, 1, 6, 6)
    moved = shifted(pixels, 2, random.Random(0))
    assert moved.shape == pixels.shape
    assert not torch.equal(moved, pixels)
    assert torch.equal(shifted(pixels, 0, random.Random(0)), pixels)


def test_a_tower_learns_and_is_loaded(tmp_path: Path):
    """Dark on the left or on the right: after training the two are told apart, and loading changes nothing."""
    images = []
    for number in range(24):
        left = number % 2 == 0
        image = Image.new("RGB", (16, 16), (200 + number, 220, 230))
        image.paste((number, 10, 20), (0, 0, 8, 16) if left else (8, 0, 16, 16))
        image.save(tmp_path / f"{number}.png")
        images.append(Captioned(str(tmp_path / f"{number}.png"), "left" if left else "right"))
    vision = {"image_size": 16, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8}
    losses: list[float] = []
    directory = train_tower(
        vision,
        images,
        tmp_path / "tower",
        steps=60,
        batch_size=8,
        shift=0,
        progress=lambda _, loss: losses.append(loss),
    )
    floor = math.log(4)  # eight images with two captions: each belongs to about four
    assert losses[-1] - floor < 0.2 < losses[0] - floor
    tower = open_tower(str(directory), None, layer=-1, pool=2)
    assert (tower.tokens, tower.width) == (1, 24)
