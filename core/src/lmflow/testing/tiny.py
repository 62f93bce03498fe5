"""Small models and tokenizers made from code: no download, a few thousand seeded weights, milliseconds to build."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from lmflow.models.language_model import LanguageModel

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = ("the quick brown fox jumps over the lazy dog", "a model learns to answer and then to stop", "user")


def tiny_tokenizer(*, pad: str | None = "<|pad|>", chat_template: str | None = CHATML, vocab_size: int = 400) -> Any:
    """A byte-level BPE tokenizer with ChatML's special tokens, trained on a few sentences; `<|im_end|>` ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token=pad)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_module(architecture: str = "llama", vocab_size: int = 420, *, seed: int = 0, **options: Any) -> Any:
    """A causal language model of a few thousand seeded random weights, in eval mode.

    `architecture` is one of ARCHITECTURES, `options` are those of its configuration.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    prefix, sizes = ARCHITECTURES[architecture]
    common = {"vocab_size": vocab_size, "eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
    config = getattr(transformers, f"{prefix}Config")(**(sizes | common | options))
    head = "LMHeadModel" if architecture == "gpt2" else "ForCausalLM"
    return getattr(transformers, f"{prefix}{head}")(config).eval()


_BLOCKS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, int]]] = {
    "llama": ("Llama", _BLOCKS),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "qwen2": ("Qwen2", _BLOCKS),
    "mistral": ("Mistral", _BLOCKS),
}
"""Architectures `tiny_module` makes: the prefix of Transformers' classes, and sizes."""


def tiny_model(
    architecture: str = "llama", *, seed: int = 0, sharpness: float = 1.0, noise_seed: int | None = None, **options: Any
) -> LanguageModel:
    """A tiny module and its tokenizer as one LanguageModel.

    `sharpness` multiplies its matrices: random weights give nearly uniform distributions, and at 6 a few tokens stand
    out, as in a trained model. With `noise_seed` a little noise is added, so that models of one `seed` are alike but
    not the same, as a draft and its target are.
    """
    from lmflow.models.language_model import LanguageModel

    tokenizer = tiny_tokenizer()
    module = tiny_module(architecture, len(tokenizer), seed=seed, **options)
    scale_matrices(module, sharpness, noise_seed)
    source = "-".join(["tiny", architecture, str(seed), *([] if noise_seed is None else [str(noise_seed)])])
    return LanguageModel(module, tokenizer, source)


def tiny_letters(seed: int = 0, count: int = 6, *, sharpness: float = 4.0) -> LanguageModel:
    """A LanguageModel over the first `count` letters, the first of which ends a text: few enough to enumerate."""
    from lmflow.models.language_model import LanguageModel

    module = tiny_module("llama", count, seed=seed, eos_token_id=0, pad_token_id=None)
    scale_matrices(module, sharpness)
    return LanguageModel(module, Letters(count), f"letters-{seed}")


class Letters:
    """A tokenizer with a letter for each token; the first ends a text and is not shown."""

    eos_token_id = 0
    pad_token_id = None

    def __init__(self, count: int) -> None:
        self._letters = "".join(chr(ord("a") + i) for i in range(count))

    def get_vocab(self) -> dict[str, int]:
        """Tokens and their numbers."""
        return {letter: number for number, letter in enumerate(self._letters)}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The letters of `ids`."""
        return "".join(self._letters[i] for i in ids if i or not skip_special_tokens)


def scale_matrices(module: nn.Module, factor: float, noise_seed: int | None = None) -> None:
    """Multiply the matrices of `module` by `factor`, after adding a little noise if there is a seed for it."""
    import torch

    generator = torch.Generator().manual_seed(noise_seed or 0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                if noise_seed is not None:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.001)
                parameter.mul_(factor)


def fill_biases(module: nn.Module) -> None:
    """Give biases values: a new model's are all 0, so that it would not show where one is left out or rescaled."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
