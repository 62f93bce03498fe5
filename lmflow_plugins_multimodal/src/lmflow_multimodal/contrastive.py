"""A small vision tower trained from captioned images, by contrast of the two (CLIP, arXiv 2103.00020).

For trials without a model hub: real towers come from open_clip. Left out of the paper: everything that large scale
needs (memory banks, mixed precision, large batches).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.atomic import atomic_directory
from lmflow_multimodal.images import open_image
from lmflow_multimodal.tower import CONFIG

TEMPERATURE = 0.07
"""Start of the learnt temperature, as in the paper."""


@dataclass(frozen=True)
class Captioned:
    """An image, by path or data URI, and what it shows."""

    image: str
    caption: str


def contrast(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy in nats between images and captions, both (B, D) of length 1; a scalar.

    `same` (B, B) says which captions read the same: an image belongs to all of those in equal parts, where the
    paper, with captions that never repeat, has one each.
    """
    logits = scale * images @ texts.T
    targets = same / same.sum(-1, keepdim=True)
    loss = nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.T, targets.T)
    return loss / 2


def train_tower(
    vision: Mapping[str, Any],
    images: Sequence[Captioned],
    directory: Path,
    *,
    embed_dim: int = 128,
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    shift: int = 4,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Path:
    """Train open_clip's `vision` configuration on captioned images and write it to `directory`; returns that.

    The text half knows the words of these captions only, and is not kept. `shift` moves each image by up to so many
    pixels. The directory is what `--model.tower` takes.
    """
    from open_clip import CLIP
    from open_clip.transform import PreprocessCfg, image_transform_v2

    torch.manual_seed(seed)
    chooser = random.Random(seed)
    size = vision["image_size"]
    transform = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    ids, text = caption_ids([each.caption for each in images])
    model = CLIP(embed_dim, dict(vision), text)
    pixels = torch.stack([transform(open_image(each.image)) for each in images])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    model.train()
    for step in range(steps):
        rate = learning_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = chooser.sample(range(len(images)), min(batch_size, len(images)))
        seen = shifted(pixels[chosen], shift, chooser)
        features, words = model.encode_image(seen, normalize=True), model.encode_text(ids[chosen], normalize=True)
        same = (ids[chosen].unsqueeze(1) == ids[chosen].unsqueeze(0)).all(-1).float()
        loss = contrast(features, words, same, model.logit_scale.exp().clamp(max=100))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress is not None:
            progress(step + 1, loss.item())
    return _write(model, {"embed_dim": embed_dim, "vision_cfg": dict(vision), "text_cfg": text}, size, directory)


def caption_ids(captions: Sequence[str]) -> tuple[Tensor, dict[str, int]]:
    """Captions as (N, T) ids over the words that occur, and the text half that reads them.

    The end mark has the highest id, for that is where open_clip's text encoder looks.
    """
    split = [caption.lower().split() for caption in captions]
    words = {word: index + 1 for index, word in enumerate(sorted({word for each in split for word in each}))}
    length = max(len(each) for each in split) + 1
    rows = [[words[word] for word in each] + [len(words) + 1] + [0] * (length - len(each) - 1) for each in split]
    text = {"context_length": length, "vocab_size": len(words) + 2, "width": 64, "heads": 4, "layers": 2}
    return torch.tensor(rows), text


def shifted(pixels: Tensor, most: int, chooser: random.Random) -> Tensor:
    """Images (B, 3, H, W), each moved by up to `most` pixels; edges are repeated."""
    if not most:
        return pixels
    height, width = pixels.shape[-2:]
    padded = nn.functional.pad(pixels, (most,) * 4, mode="replicate")
    places = [(chooser.randint(0, 2 * most), chooser.randint(0, 2 * most)) for _ in pixels]
    return torch.stack([each[:, y : y + height, x : x + width] for each, (y, x) in zip(padded, places)])


def _write(model: nn.Module, config: Mapping[str, Any], size: int, directory: Path) -> Path:
    from safetensors.torch import save_file

    visual = {name: value.contiguous() for name, value in model.state_dict().items() if name.startswith("visual.")}
    described = {"model_cfg": dict(config), "preprocess_cfg": {"size": size}}
    with atomic_directory(directory, replace=True) as partial:
        save_file(visual, partial / "open_clip_model.safetensors")
        (partial / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return directory
