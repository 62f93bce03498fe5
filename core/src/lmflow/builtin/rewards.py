"""Rewards of the core: any Python function, any sequence-classification model."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr

from lmflow.components import PathOrName, Reward
from lmflow.data.sample import Sample
from lmflow.data.template_limits import limited_time
from lmflow.errors import RecipeError
from lmflow.plugins.user_code import fenced

if TYPE_CHECKING:
    from lmflow.models.source import ModelSource

PATH = "--reward.path"


class PythonFunction(Reward):
    """Call your own function on (prompts, completions, records)."""

    name = "python"
    shorthand = "function"

    function: str = Field(
        pattern=r"^[\w.]+:[\w.]+$",
        description="module:function, found on the Python path or in the working directory. It is called with three "
        "lists (prompt texts, completion texts, records as read, their images as paths in `images`) and returns one "
        "number per completion.",
    )

    def check(self) -> None:
        """Import the function, and see that it can be called with three lists."""
        check_signature(import_function(self.function), self.function)

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Sequence[float]:
        """Call the function once for the whole batch."""
        return call_function(import_function(self.function), samples, completions)


def call_function(
    function: Callable[..., Any], samples: Sequence[Sample], completions: Sequence[str]
) -> Sequence[float]:
    """What the function returns for prompt texts, completion texts and records."""
    scores: Sequence[float] = function(
        [sample.prompt_text for sample in samples], list(completions), [record_of(sample) for sample in samples]
    )
    return scores


def record_of(sample: Sample) -> dict[str, Any]:
    """The record as read; the sample's images, if it has any, are in `images` as paths from here."""
    return {**sample.record, "images": list(sample.images)} if sample.images else dict(sample.record)


class Classifier(Reward):
    """Score with a sequence-classification model: its only output, or the log-probability of one label."""

    name = "classifier"
    may_change = ("batch_size",)
    shorthand = "path"

    path: PathOrName = Field(description="Directory (or hub name) of a sequence-classification model.")
    label: str | None = Field(None, description="Label whose log-probability is the reward, for several outputs.")
    batch_size: int = Field(16, gt=0, description="Texts per forward pass.")
    max_length: int = Field(1024, gt=1, description="Longest text in tokens; the beginning of longer ones is cut.")

    _loaded: tuple[Any, Any] | None = PrivateAttr(None)
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")

    def check(self) -> None:
        """Read the model's configuration, and look for the label in it."""
        config = self._source().configuration()
        self._check_label(config.num_labels, config.label2id)

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Sequence[float]:
        """One forward pass per batch over prompt and completion as one dialogue."""
        import torch

        model, tokenizer = self._load()
        texts = [dialogue_text(tokenizer, sample, answer) for sample, answer in zip(samples, completions)]
        scores: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            batch = tokenizer(
                texts[start : start + self.batch_size],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_length,
                add_special_tokens=tokenizer.chat_template is None,
            ).to(model.device)
            with torch.no_grad():
                logits = model(**batch).logits.float()
            scores.extend(self._reduce(logits, model.config.label2id).tolist())
        return scores

    def _reduce(self, logits: Any, label2id: dict[str, int]) -> Any:
        """(B, labels) -> (B,): the single output, or log p(label)."""
        self._check_label(logits.shape[1], label2id)
        if self.label is None:
            return logits[:, 0]
        return logits.log_softmax(dim=1)[:, label2id[self.label]]

    def _check_label(self, outputs: int, label2id: Mapping[str, int]) -> None:
        if self.label not in label2id and (self.label is not None or outputs > 1):
            known = ", ".join(sorted(label2id))
            raise RecipeError([f"--reward.label: {self.path} has the labels {known}; name one of them."])

    def _source(self) -> ModelSource:
        from lmflow.models.source import ModelSource

        source = ModelSource(self.path, PATH)
        source.check()
        return source

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForSequenceClassification

            source = self._source()
            config = source.configuration()
            with source.explained():
                model = source.weights(AutoModelForSequenceClassification, config, unread=r"^lm_head\.")
            tokenizer = source.tokenizer(truncation_side="left")
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._loaded = (model.eval().to(device), tokenizer)
        return self._loaded


def dialogue_text(tokenizer: Any, sample: Sample, answer: str) -> str:
    """Prompt and answer as the classifier was trained to read them: its chat template, else plain text."""
    if tokenizer.chat_template is None:
        return f"{sample.prompt_text}\n{answer}"
    messages = [{"role": turn.role, "content": turn.content} for turn in sample.prompt().messages]
    with limited_time():
        text: str = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    return text


def import_function(reference: str) -> Callable[..., Any]:
    """Import `module:function`; the working directory counts as on the path. Raises RecipeError if it cannot be."""
    module_name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        with fenced():
            target: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                target = getattr(target, part)
    except Exception as error:
        problem = f"reward.function: cannot load {reference}: {type(error).__name__}: {error}"
        raise RecipeError([problem]) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(target):
        raise RecipeError([f"reward.function: {reference} is not a function but {type(target).__name__}"])
    return target  # type: ignore[no-any-return]


def check_signature(function: Callable[..., Any], reference: str) -> None:
    """Raise RecipeError where a function cannot be called with prompts, completions and records."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some written in C nobody knows
        return
    try:
        signature.bind([], [], [])
    except TypeError as error:
        raise RecipeError(
            [f"reward.function: {reference}{signature} is called with prompts, completions and records: {error}"]
        ) from None
