"""Small models to be loaded, and what quantised ones need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is the extra `quantization` of lmflow-core")


@pytest.fixture(scope="session")
def wide_model(
    tmp_path_factory: pytest.TempPathFactory, make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Path:
    """A tiny Llama whose layers have whole blocks of 64, but for one that has 96 inputs."""
    directory, tokenizer = tmp_path_factory.mktemp("models") / "wide", make_tokenizer()
    make_llama(len(tokenizer), hidden_size=64, intermediate_size=96).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def logits() -> Callable[[Any], torch.Tensor]:
    """A model's logits of one text, in float32."""

    def compute(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.module(torch.arange(3, 20).unsqueeze(0)).logits.float()
        return found

    return compute
