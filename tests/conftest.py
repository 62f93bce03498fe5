"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


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
    """See `lmflow.testing.tiny.tiny_tokenizer`."""
    from lmflow.testing.tiny import tiny_tokenizer

    return tiny_tokenizer


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., Any]:
    """See `lmflow.testing.tiny.tiny_module`."""
    from lmflow.testing.tiny import tiny_module

    return partial(tiny_module, "llama")


@pytest.fixture
def tiny_model() -> Any:
    """A fresh LanguageModel around the tiny Llama."""
    from lmflow.testing.tiny import tiny_model

    return tiny_model()


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
