"""The tower's features, where they come from, and what it is loaded from."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lmflow.errors import LmflowError
from lmflow_multimodal.projector import make_projector
from lmflow_multimodal.tower import build_visual, load_tower, open_tower, save_tower


def test_features_are_those_of_a_block_without_the_class_token(tower_file: Path):
    tower = open_tower(str(tower_file), "random", layer=-2, pool=1)
    assert (tower.tokens, tower.width) == (4, 24)
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = []
    block = tower.visual.transformer.resblocks[-2]
    hook = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tower.visual(pixels)
    hook.remove()
    features = tower(pixels)
    assert torch.equal(features, seen[0][:, 1:])
    last = open_tower(str(tower_file), "random", layer=-1, pool=1)
    assert not torch.allclose(last(pixels), features)


def test_patches_are_in_rows_from_the_top_left(tower_file: Path):
    """A change of the image's top right patch moves the second embedding alone, before any attention."""
    tower = open_tower(str(tower_file), "random", layer=-1, pool=1)
    for block in tower.visual.transformer.resblocks:
        torch.nn.init.zeros_(block.attn.out_proj.weight)  # no patch sees another
    pixels = torch.zeros(1, 3, 16, 16)
    changed = pixels.clone()
    changed[:, :, :8, 8:] = 1
    moved = (tower(pixels) - tower(changed)).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [False, True, False, False]


def test_pooling_is_the_mean_of_a_square(tower_file: Path):
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = open_tower(str(tower_file), "random", layer=-1, pool=1)(pixels)
    pooled = open_tower(str(tower_file), "random", layer=-1, pool=2)
    assert pooled.tokens == 1
    torch.testing.assert_close(pooled(pixels), whole.mean(1, keepdim=True))


def test_preprocessing_is_open_clips_own(tower_file: Path):
    import open_clip

    image = Image.effect_noise((40, 24), 80).convert("RGB")
    tower = open_tower(str(tower_file), "random", layer=-1, pool=1)
    theirs = open_clip.image_transform(16, is_train=False)
    assert torch.equal(tower.pixels(image), theirs(image))
    padded = open_tower(str(tower_file), "random", layer=-1, pool=1, resize="longest")
    assert not torch.equal(padded.pixels(image), theirs(image))


def test_saved_and_loaded(tower_file: Path, tmp_path: Path):
    tower = open_tower(str(tower_file), "random", layer=-1, pool=2, resize="longest", seed=5)
    config = json.loads(json.dumps(save_tower(tower, tmp_path / "weights.safetensors")))
    again = load_tower(config, tmp_path / "weights.safetensors")
    image = Image.effect_noise((40, 24), 80).convert("RGB")
    assert torch.equal(again.pixels(image), tower.pixels(image))
    pixels = tower.pixels(image).unsqueeze(0)
    assert torch.equal(again(pixels), tower(pixels))
    assert again.fingerprint() == tower.fingerprint()
    assert tower.fingerprint() != open_tower(str(tower_file), "random", layer=-1, pool=2, seed=5).fingerprint()


def test_weights_of_a_whole_clip_model_and_of_a_directory(tower_file: Path, tmp_path: Path):
    from safetensors.torch import save_file

    config = {"model_cfg": json.loads(tower_file.read_text())}
    visual = build_visual(config, seed=9)
    whole = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    save_file(whole | {"logit_scale": torch.ones(())}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    from_file = open_tower(str(tower_file), str(tmp_path / "open_clip_model.safetensors"), layer=-1, pool=1)
    from_directory = open_tower(str(tmp_path), None, layer=-1, pool=1)
    pixels = torch.randn(1, 3, 16, 16)
    assert torch.equal(from_file(pixels), from_directory(pixels))
    assert torch.equal(from_file.visual.conv1.weight, visual.conv1.weight)


def test_an_architecture_of_open_clip():
    tower = open_tower("RN50", "random", layer=-1, pool=1)
    assert (tower.tokens, tower.width) == (49, 2048)


def test_refusals(tower_file: Path, tmp_path: Path):
    with pytest.raises(LmflowError, match="needs weights: a file, a pretrained tag of open_clip, or random"):
        open_tower(str(tower_file), None, layer=-1, pool=1)
    with pytest.raises(LmflowError, match="no architecture ViT-B-33; did you mean ViT-B-32"):
        open_tower("ViT-B-33", "random", layer=-1, pool=1)
    with pytest.raises(LmflowError, match=r"checkpoint: .*nothing\.pt does not exist"):
        open_tower(str(tower_file), str(tmp_path / "nothing.pt"), layer=-1, pool=1)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(LmflowError, match="holds no weights of this tower"):
        open_tower(str(tower_file), str(tmp_path / "broken.pt"), layer=-1, pool=1)
    with pytest.raises(LmflowError, match="no block -7"):
        open_tower(str(tower_file), "random", layer=-7, pool=1)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(LmflowError, match="is no configuration of open_clip"):
        open_tower(str(tmp_path / "other.json"), "random", layer=-1, pool=1)
    (tmp_path / "open_clip_config.json").write_text(tower_file.read_text())
    with pytest.raises(LmflowError, match="holds no weights"):
        open_tower(str(tmp_path), None, layer=-1, pool=1)


def test_projectors():
    linear, mlp = make_projector("linear", 6, 4), make_projector("mlp", 6, 4)
    features = torch.randn(5, 6)
    torch.testing.assert_close(linear(features), features @ linear[0].weight.T + linear[0].bias)
    hidden = torch.nn.functional.gelu(features @ mlp[0].weight.T + mlp[0].bias)
    torch.testing.assert_close(mlp(features), hidden @ mlp[2].weight.T + mlp[2].bias)
