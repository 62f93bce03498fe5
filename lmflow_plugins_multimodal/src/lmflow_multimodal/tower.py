"""The vision tower: an open_clip image encoder, read before its pooling, as a grid of patch features."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmflow.errors import LmflowError
from lmflow_multimodal.saved import load_weights

if TYPE_CHECKING:
    from PIL.Image import Image

CONFIG = "open_clip_config.json"
"""open_clip's own file: {"model_cfg": {...}, "preprocess_cfg": {...}}."""
RANDOM = "random"
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""The text half of a model whose vision half alone is built."""


class Tower(nn.Module):
    """A frozen image encoder: images in, patch features out, the class token dropped.

    `layer` counts blocks from the end: -1 is the last one, -2 the one before it, which LLaVA reads.
    """

    tokens: int
    """Features per image."""
    width: int
    """Size of a feature."""

    def __init__(
        self, visual: nn.Module, model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any], layer: int, pool: int
    ) -> None:
        super().__init__()
        from open_clip.transform import PreprocessCfg, image_transform_v2

        if not hasattr(visual, "forward_intermediates"):
            raise LmflowError(f"model.tower: {type(visual).__name__} gives no features of patches; choose another.")
        self.visual = visual.requires_grad_(False)
        self.config = {
            "model_cfg": dict(model_cfg),
            "preprocess_cfg": dict(preprocess_cfg),
            "layer": layer,
            "pool": pool,
        }
        self._layer, self._pool = layer, pool
        # JSON has lists where open_clip wants tuples.
        preprocess = PreprocessCfg(**{k: tuple(v) if isinstance(v, list) else v for k, v in preprocess_cfg.items()})
        self._transform = image_transform_v2(preprocess, is_train=False)
        self.train(False)
        self.tokens, self.width = self._measure(preprocess.input_size)

    def train(self, mode: bool = True) -> Tower:
        """Stay in eval mode: nothing in the tower is trained."""
        return super().train(False)

    def pixels(self, image: Image) -> Tensor:
        """open_clip's own preprocessing of an RGB image: (3, H, W) float32."""
        pixels: Tensor = self._transform(image)
        return pixels

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features (N, tokens, width) of images (N, 3, H, W), patches in rows from the top left."""
        output = self.visual.forward_intermediates(  # type: ignore[operator]
            pixels, indices=[self._layer], stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        grid: Tensor = output["image_intermediates"][0]
        if self._pool > 1:
            grid = nn.functional.avg_pool2d(grid, self._pool, ceil_mode=True, count_include_pad=False)
        return grid.flatten(2).transpose(1, 2)

    def fingerprint(self) -> str:
        """Hash of everything a feature depends on beside the image: weights, layer, pooling, preprocessing."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        for name, value in sorted(self.visual.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()[:24]

    def _measure(self, shape: tuple[int, ...]) -> tuple[int, int]:
        try:
            features = self(torch.zeros(1, *shape))
        except (AssertionError, IndexError) as error:
            raise LmflowError(f"model.layer: the tower has no block {self._layer}: {error}") from error
        return features.shape[1], features.shape[2]


def open_tower(
    name: str, checkpoint: str | None, *, layer: int, pool: int, resize: str | None = None, seed: int = 0
) -> Tower:
    """The tower of an open_clip architecture, of a JSON file that describes one, or of a directory.

    `checkpoint` is a file of weights, a pretrained tag of open_clip, or "random"; a directory brings its own.
    Raises LmflowError when there is no such architecture or checkpoint.
    """
    place = Path(name.removeprefix("local-dir:")).expanduser()
    if place.is_dir():
        cfg = read_config(place / CONFIG)
        visual, preprocess = build_visual(cfg, seed), dict(cfg.get("preprocess_cfg", {}))
        load_visual(visual, Path(checkpoint) if checkpoint else weights_in(place))
        model_cfg = cfg["model_cfg"]
    elif name.endswith(".json"):
        cfg = read_config(place)
        visual, preprocess = build_visual(cfg, seed), dict(cfg.get("preprocess_cfg", {}))
        if required(checkpoint, name) != RANDOM:
            load_visual(visual, Path(str(checkpoint)))
        model_cfg = cfg["model_cfg"]
    else:
        visual, model_cfg, preprocess = from_open_clip(name, required(checkpoint, name), seed)
    if resize is not None:
        preprocess["resize_mode"] = resize
    return Tower(visual, vision_half(model_cfg, visual), full_preprocess(visual, preprocess), layer, pool)


def load_tower(config: Mapping[str, Any], weights: Path) -> Tower:
    """A tower as `save_tower` wrote it. Raises LmflowError naming a file of weights that is damaged."""
    visual = build_visual(config)
    load_weights(visual, weights)
    return Tower(visual, config["model_cfg"], config["preprocess_cfg"], config["layer"], config["pool"])


def save_tower(tower: Tower, weights: Path) -> Mapping[str, Any]:
    """Write the weights and return the configuration `load_tower` needs."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in tower.visual.state_dict().items()}, weights)
    return tower.config


def build_visual(config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The vision half of {"model_cfg": ...} with random weights."""
    from open_clip import CLIP

    settings = config["model_cfg"]
    vision = {**settings["vision_cfg"], "timm_model_pretrained": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            whole = CLIP(settings["embed_dim"], vision, NO_TEXT, quick_gelu=settings.get("quick_gelu", False))
        except (TypeError, KeyError, RuntimeError) as error:
            raise LmflowError(f"model.tower: open_clip cannot build this architecture: {error}") from error
    visual: nn.Module = whole.visual
    return visual


def from_open_clip(name: str, checkpoint: str, seed: int) -> tuple[nn.Module, Mapping[str, Any], dict[str, Any]]:
    """The vision half of an architecture open_clip knows, its configuration and its preprocessing."""
    import open_clip

    known = open_clip.list_models()
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=1)
        raise LmflowError(
            f"model.tower: open_clip has no architecture {name}"
            + (f"; did you mean {near[0]}?" if near else "")
            + " A directory with open_clip_config.json or a .json file can be given too."
        )
    if checkpoint == RANDOM:
        config = {"model_cfg": open_clip.get_model_config(name)}
        return build_visual(config, seed), config["model_cfg"], {}
    try:
        with no_log():
            whole = open_clip.create_model(name, pretrained=checkpoint)
    except Exception as error:  # downloads and unpickling fail in many ways
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise LmflowError(
            f"model.checkpoint: {checkpoint} cannot be loaded into {name}: {error}\n"
            f"It must be a file of its weights, or one of its pretrained tags ({tags})."
        ) from error
    preprocess = whole.visual.preprocess_cfg
    return (
        whole.visual,
        open_clip.get_model_config(name),
        dict(preprocess if isinstance(preprocess, dict) else asdict(preprocess)),
    )


def load_visual(visual: nn.Module, file: Path) -> None:
    """Load weights of a whole CLIP model, or of its vision half alone. Raises LmflowError when they do not fit."""
    from open_clip.factory import load_state_dict

    if not file.is_file():
        raise LmflowError(f"model.checkpoint: {file} does not exist.")
    try:
        with no_log():
            state = load_state_dict(str(file))
        inner = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
        visual.load_state_dict(inner or state)
    except Exception as error:  # the file may be anything
        raise LmflowError(
            f"model.checkpoint: {file} holds no weights of this tower: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def no_log() -> Iterator[None]:
    """Keep open_clip's log, which it writes to the root logger, off the terminal: what matters in it is also raised."""
    root = logging.getLogger()
    handlers, disabled = root.handlers[:], root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers


def weights_in(directory: Path) -> Path:
    """The file of weights beside an open_clip configuration."""
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
    found = [directory / name for name in names if (directory / name).is_file()]
    if not found:
        raise LmflowError(f"model.tower: {directory} holds no weights ({', '.join(names)}).")
    return found[0]


def read_config(file: Path) -> Mapping[str, Any]:
    """open_clip's configuration, with or without its outer object. Raises LmflowError when it is none."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config = config if "model_cfg" in config else {"model_cfg": config}
        config["model_cfg"]["vision_cfg"], config["model_cfg"]["embed_dim"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LmflowError(
            f'model.tower: {file} is no configuration of open_clip ({{"embed_dim", "vision_cfg", …}}): {error}'
        ) from error
    found: Mapping[str, Any] = config
    return found


def required(checkpoint: str | None, name: str) -> str:
    """Raise LmflowError when no weights are named: a tower that has learnt nothing must be asked for."""
    if checkpoint is None:
        raise LmflowError(
            f"model.checkpoint: tower {name} needs weights: a file, a pretrained tag of open_clip, or {RANDOM}."
        )
    return checkpoint


def vision_half(model_cfg: Mapping[str, Any], visual: nn.Module) -> dict[str, Any]:
    """What is needed to build the vision half again; a pretrained tag may have changed its activation."""
    quick = any(type(part).__name__ == "QuickGELU" for part in visual.modules())
    return {"embed_dim": model_cfg["embed_dim"], "vision_cfg": dict(model_cfg["vision_cfg"]), "quick_gelu": quick}


def full_preprocess(visual: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's defaults, the tower's own image size, then what is given."""
    from open_clip.transform import PreprocessCfg

    return {**asdict(PreprocessCfg(size=visual.image_size)), **given}
