"""A loaded language model: weights, tokenizer, and how samples become its tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lmflow.data.control_tokens import special_tokens_are_kept
from lmflow.data.sample import Prompt, Sample, TokenSequence
from lmflow.data.template_traits import turn_end_ids
from lmflow.data.tokenize import encode_prompt, encode_samples
from lmflow.errors import DataError, LmflowError
from lmflow.models.heads import HEADS, HeadLayers, attach_heads, heads_apart, listed, write_heads

if TYPE_CHECKING:
    from lmflow.components import Attention, Head, Tuner


Kind = Literal["causal", "scorer", "vision-language"]


class WeightCounter:
    """How often the weights of a model have changed."""

    version = 0

    def changed(self) -> None:
        """Say that the weights are other than before."""
        self.version += 1


GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class LanguageModel:
    """Weights and tokenizer, kept together because each is wrong without the other.

    A frozen dataclass: `dataclasses.replace` makes one with another `source` or tokenizer.

    A plugin whose samples hold more than text subclasses this and overrides `encode_all`, `encode_prompt` and
    `token_key`; one whose model has further parts also `prepare`, `save_tuned`, `learning_rate` and `save`.
    """

    module: nn.Module
    """A causal language model as Transformers has them."""
    tokenizer: Any
    """A tokenizer of Transformers, with a chat template."""
    source: str
    """Directory or hub name the weights came from; adapters name it as their base."""
    kind: Kind = field(default="causal", kw_only=True)
    """causal gives logits for the next token; scorer gives numbers for a whole sequence and none for tokens;
    vision-language is a causal model that sees images too."""
    attention: Attention | None = field(default=None, kw_only=True, repr=False, compare=False)
    """What was asked for at loading, for models that are loaded to work beside it; None left it to the model."""
    heads: Mapping[str, HeadLayers] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    """What aligners added to it (`Aligner.heads`), by name: (…, hidden size) to (…, outputs), in float32.

    As loaded they lie beside `module`; in a run that trains them they are a part of it, too."""
    fingerprint: str | None = field(default=None, kw_only=True, repr=False, compare=False)
    """Which weights were loaded (see `lmflow.models.identity`), for what is trained on them; None where nobody says."""
    weights: WeightCounter = field(default_factory=lambda: WeightCounter(), kw_only=True, repr=False, compare=False)
    """Counts changes of the weights; wrapped modules share it."""

    @property
    def version(self) -> int:
        """Another number whenever the weights have changed, for inferencers that hold a copy of them."""
        return self.weights.version

    def with_module(self, module: nn.Module) -> LanguageModel:
        """The same model around another module, as after a tuner has wrapped it."""
        heads: Any = getattr(module, HEADS, None)
        return replace(self, module=module, heads=self.heads if heads is None else dict(heads.items()))

    def with_heads(self, wanted: Mapping[str, Head], seed: int) -> LanguageModel:
        """The model with exactly the heads that are wanted, as a part of `module` that trains: see `Aligner.heads`.

        Raises LmflowError for a model that scores whole sequences, and for a head that was saved in another shape.
        """
        if wanted and self.kind == "scorer":
            raise LmflowError(
                f"{self.source} scores whole sequences by a head of its own; the aligner adds {listed(wanted)} to "
                "models that give logits for the next token. Choose one of those with --model."
            )
        return replace(self, heads=attach_heads(self.module, self.heads, wanted, seed, self.source))

    def prepare(self, tuner: Tuner) -> LanguageModel:
        """The model as `tuner` made it trainable; a model of several parts overrides this to say which one is tuned."""
        return self.with_module(tuner.prepare(self.module))

    def tuner_notes(self, tuner: Tuner) -> Sequence[str]:
        """What `tuner` has to say of the model it made trainable."""
        return tuner.notes(self.module)

    def save_tuned(self, tuner: Tuner, directory: Path) -> Path:
        """Write what `tuner` trained below the run's `directory`; return where. See `Tuner.save`."""
        return tuner.save(self, directory)

    def learning_rate(self, parameter: str) -> float | None:
        """Highest learning rate of a parameter, by its name in `module`; None for that of the training options."""
        return None

    def encode(self, sample: Sample, train_on: str = "assistant") -> list[TokenSequence]:
        """Tokenise a sample for training; see `encode_all`."""
        return self.encode_all([sample], train_on)[0]

    def encode_all(self, samples: Sequence[Sample], train_on: str = "assistant") -> list[list[TokenSequence]]:
        """Tokenise samples for training, which is faster together; see `lmflow.data.tokenize.encode_samples`.

        Raises DataError for a sample with images, as `encode_prompt` does: this model reads text alone.
        """
        for sample in samples:
            refuse_images(sample)
        encoded = encode_samples(self.tokenizer, samples, train_on=train_on, end_ids=self.end_ids)
        for sample, sequences in zip(samples, encoded, strict=True):
            for sequence in sequences:
                self.check_ids(sequence.ids, sample)
        return encoded

    @cached_property
    def vocabulary_size(self) -> int | None:
        """Rows of the table of embeddings: how many tokens the weights know; None for a model without such a table."""
        embeddings = getattr(self.module, "get_input_embeddings", None)
        return None if embeddings is None else int(embeddings().weight.shape[0])

    @cached_property
    def unknown_ids(self) -> tuple[int, ...]:
        """Rows of the embeddings that stand for no token of the tokenizer: many tables are larger, and padded."""
        return tuple(sorted({*range(self.vocabulary_size or 0)}.difference(self.tokenizer.get_vocab().values())))

    def check_ids(self, ids: Sequence[int], sample: Sample, others: Sequence[int] = ()) -> None:
        """Raise DataError for a token that the weights do not know, but for `others`, which are never looked up."""
        rows = self.vocabulary_size
        if rows is None or max(ids, default=-1) < rows:
            return
        beyond = next((int(each) for each in ids if each >= rows and each not in others), None)
        if beyond is not None:
            name = self.tokenizer.convert_ids_to_tokens(beyond)
            raise DataError(
                f"{sample.source or 'the prompt'}: "
                f"token {beyond} ({name!r}) is beyond the model's {rows:,} embeddings: "
                f"{self.source} has a larger tokenizer than weights. Use the tokenizer it was saved with; lmflow "
                "vocabulary adds tokens to both."
            )

    @property
    def token_key(self) -> str | None:
        """What tokens depend on beside the sample and how it is trained; None where they are not all a sequence has."""
        tokenizer = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        special = sorted(tokenizer.special_tokens_map.items()), tokenizer.split_special_tokens
        kept = special_tokens_are_kept(tokenizer)
        return f"{backend.to_str()}{(tokenizer.chat_template, special, kept, self.end_ids, self.vocabulary_size)!r}"

    def encode_prompt(self, sample: Sample) -> Prompt:
        """Tokenise what precedes a sample's last answer, up to where the answer begins."""
        refuse_images(sample)
        ids = encode_prompt(self.tokenizer, sample)
        self.check_ids(ids, sample)
        return Prompt(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's end-of-text, the generation configuration's, the chat template's.

        A base model's end-of-text is not what ends a turn, and its generation configuration knows of no other.
        """
        config = getattr(self.module, "generation_config", None)
        declared = getattr(config, "eos_token_id", None)
        also = declared if isinstance(declared, list) else [declared]
        ids = [i for i in [self.tokenizer.eos_token_id, *also, *turn_end_ids(self.tokenizer)] if i is not None]
        return tuple(dict.fromkeys(ids))

    @cached_property
    def context_length(self) -> int | None:
        """Longest sequence the positions of the model allow, None if the configuration names no limit."""
        config: Any = getattr(self.module, "config", None)
        text_config = config.get_text_config() if config is not None else None
        limit: int | None = getattr(text_config, "max_position_embeddings", None)
        return None if limit is None else int(limit * dynamic_factor(text_config))

    @property
    def pad_id(self) -> int:
        """Token that fills rows up; masks, never comparisons with it, tell padding from text."""
        pad = self.tokenizer.pad_token_id
        rows = self.vocabulary_size
        return self.end_ids[0] if pad is None or (rows is not None and pad >= rows) else pad

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Tokens that no answer has: padding here, and what stands for other inputs in models that have such."""
        pad = self.tokenizer.pad_token_id
        return () if pad is None or pad in self.end_ids else (pad,)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def save(self, directory: Path) -> None:
        """Write weights and tokenizer as Transformers does, and heads in a folder beside them.

        The generation configuration names all of `end_ids`, so that whatever serves the model stops where it learnt to.
        """
        # Of an adapter, PEFT would look for its base on the hub, to find out whether the embeddings changed.
        options = {"save_embedding_layers": False} if hasattr(self.module, "peft_config") else {}
        with heads_apart(self.module):
            self.module.save_pretrained(directory, **options)  # type: ignore[operator]  # every PreTrainedModel has it
        self.tokenizer.save_pretrained(directory)
        write_heads(self.heads, directory)
        if getattr(self.module, "generation_config", None) is not None:
            self._save_ends(directory / GENERATION_CONFIG)

    def _save_ends(self, file: Path) -> None:
        values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        ends = list(self.end_ids)
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def refuse_images(sample: Sample) -> None:
    """Raise DataError for a sample with images, which a model of text alone would not see."""
    if sample.images:
        count = "1 image" if len(sample.images) == 1 else f"{len(sample.images)} images"
        raise DataError(
            f"{sample.source or 'the prompt'}: it has {count}, and this model reads text alone. Choose a "
            "vision-language model with --model (lmflow plugins lists what is installed)."
        )


def dynamic_factor(text_config: Any) -> float:
    """How many times `max_position_embeddings` a model reaches: with dynamic RoPE that is only where scaling begins."""
    rope: Any = getattr(text_config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return max((kind["factor"] for kind in kinds if kind.get("rope_type") == "dynamic"), default=1.0)
