"""What the suites compare: tensors to the bit, logits, losses, and files byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lmflow.data.sample import TokenSequence
    from lmflow.models.language_model import LanguageModel
    from lmflow.plugins import Plugins
    from lmflow.recipe.recipe import Recipe


def all_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """A copy of every parameter and buffer by name, saved or not, those of heads among them; tied ones appear once."""
    from torch import nn

    from lmflow.models.heads import HEADS

    module = model.module
    named = [*module.named_parameters(), *module.named_buffers()]
    if not hasattr(module, HEADS):  # as loaded, they lie beside it
        beside = nn.ModuleDict(model.heads)
        named += [(f"{HEADS}.{name}", parameter) for name, parameter in beside.named_parameters()]
    return {name: tensor.detach().clone() for name, tensor in named}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a part of a model, by name."""
    return dict(module.state_dict())


NOTED = {"architectures", "dtype", "transformers_version", "_name_or_path"}
"""What Transformers notes in a configuration when it writes one."""


def state_of(model: LanguageModel) -> dict[str, object]:
    """What a model is beside its tensors, by what it is: modes, hooks, `requires_grad`, gradients, configuration."""
    config = config_of(model).to_dict() if hasattr(model.module, "config") else {}
    found: dict[str, object] = {f"{key} of the configuration": config[key] for key in config.keys() - NOTED}
    for name, part in model.module.named_modules():
        found[f"the mode of {name or 'the model'}"] = part.training
        hooks = len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)
        found[f"the hooks of {name or 'the model'}"] = hooks
    for name, parameter in model.module.named_parameters():
        found[f"requires_grad of {name}"] = parameter.requires_grad
        found[f"the gradient of {name}"] = parameter.grad is not None
    return found


def apart(found: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Names whose values are not equal, or which only one of the two has."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def config_of(model: LanguageModel) -> Any:
    """The model's Transformers configuration."""
    return model.module.config


def different(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors are not equal to the bit, or which only one of the two has."""
    both = found.keys() & expected.keys()
    changed = {name for name in both if not same_bits(found[name], expected[name])}
    return sorted(changed | (found.keys() ^ expected.keys()))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape, one dtype, and the same bits, so that a nan equals itself."""
    import torch

    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def read_logits(model: LanguageModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """The logits of every position of `sequences`, (tokens, vocabulary), in eval mode."""
    import torch

    from lmflow.data.collate import collate
    from lmflow.training.loss import forward_inputs

    model.module.eval()
    rows = []
    with torch.no_grad():
        for sequence in sequences:
            batch = collate([sequence], model.pad_id).to(model.device)
            rows.append(model.module(**forward_inputs(batch)).logits[0].float())
    return torch.cat(rows)


def divergence(expected: Tensor, found: Tensor) -> float:
    """KL divergence of softmax(`found`) from softmax(`expected`), both (T, V), in nats, the mean over positions."""
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def mean_loss(model: LanguageModel, sequences: Sequence[TokenSequence]) -> float:
    """Loss over `sequences` in nats per trained token."""
    from lmflow.training.loss import sequence_logprobs

    logprobs = sequence_logprobs(model, sequences)
    return -float(logprobs.sum()) / sum(sequence.num_targets for sequence in sequences)


def heldout_loss(plugins: Plugins, model: LanguageModel, recipe: Recipe) -> float:
    """Loss of `model` on what a run of `recipe` holds out: its `eval_loss`."""
    from lmflow.data.dataset import load_dataset
    from lmflow.data.formats import formats_of
    from lmflow.models.encoding import encode_answered

    data, _ = load_dataset(recipe.data, formats_of(recipe, plugins), recipe.training.seed)
    return mean_loss(model, encode_answered(model, data.heldout, data.options))


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory`, by its path from there."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changed_files(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Paths of files whose hashes are not equal, or which only one of the two has."""
    return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
