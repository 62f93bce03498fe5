"""Small models and tokenizers made from code, shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip, saying so, where there is no GPU."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two cores shared by parallel workers: more threads only get in each other's way."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real records beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real records of ../shared/data are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A byte-level BPE tokenizer with ChatML's special tokens, trained on a few sentences."""

    def make(*, pad: str | None = "<|pad|>", chat_template: str | None = CHATML, vocab_size: int = 400) -> Any:
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
        text = ["the quick brown fox jumps over the lazy dog", "a model learns to answer and then to stop", "user"]
        inner.train_from_iterator(text * 20, trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token=pad)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., Any]:
    """A Llama of a few thousand parameters with seeded random weights."""

    def make(vocab_size: int = 420, *, seed: int = 0, **options: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "eos_token_id": 1,
            "pad_token_id": 2,
            "bos_token_id": None,
        }
        return LlamaForCausalLM(LlamaConfig(**(settings | options))).eval()

    return make


@pytest.fixture
def tiny_model(make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]) -> Any:
    """A fresh LanguageModel around the tiny Llama."""
    from lmflow.models import LanguageModel

    tokenizer = make_tokenizer()
    return LanguageModel(make_llama(len(tokenizer)), tokenizer, "tiny")


@pytest.fixture(scope="session")
def model_directory(
    tmp_path_factory: pytest.TempPathFactory, make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Path:
    """The tiny model saved as Transformers saves models."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
