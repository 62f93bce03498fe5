"""The conformance suite for attention: however it is computed, the numbers are those of plain matrix products."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import pytest

from lmflow.builtin.attention import Eager
from lmflow.components import Attention, GenerateRequest, LoadRequest
from lmflow.data.sample import Prompt, TokenSequence
from lmflow.errors import LmflowError
from lmflow.testing.comparing import config_of, some
from lmflow.testing.runs import supply

if TYPE_CHECKING:
    from torch import Tensor

    from lmflow.models.language_model import LanguageModel

LENGTHS = (17, 5, 1, 30)
"""Tokens of the sequences that are compared, one of them the shortest there is."""
Pair = tuple["LanguageModel", "LanguageModel"]
PAIRS: pytest.StashKey[dict[str, dict[str, Pair]]] = pytest.StashKey()


class AttentionSuite:
    """An examination of one attention; inherit from it in a class whose name begins with Test, and supply it.

        from lmflow.testing import AttentionSuite

        class TestMyAttention(AttentionSuite):
            refused = ("gpt2",)

            @pytest.fixture
            def attention(self):
                return MyAttention()

    Each test is one requirement, and its docstring says which. Tiny models of every architecture of
    lmflow.testing.tiny but those `refused` are loaded with it and with `eager`, on `device` in float32.
    """

    architectures: ClassVar[Sequence[str]] = ("llama", "gpt2", "qwen2")
    """Of lmflow.testing.tiny.ARCHITECTURES, those it is tried on."""
    refused: ClassVar[Sequence[str]] = ()
    """Of ARCHITECTURES, those it cannot compute, and says so."""
    device: ClassVar[str] = "cpu"
    """Where it is tried: "cpu", or "cuda" for those that need it, which skip where there is none."""
    tolerance: ClassVar[float] = 1e-4
    """Largest difference of a logit, and of a gradient as a share of its largest entry, that rounding explains."""
    packs: ClassVar[bool] = True
    """Whether several samples in a row stay apart by their positions alone; if not, packing must be refused."""

    @pytest.fixture
    def attention(self) -> Attention:
        """The attention under examination; every suite supplies its own."""
        supply(self, "attention")

    @pytest.fixture
    def pairs(
        self, request: pytest.FixtureRequest, attention: Attention, tmp_path_factory: pytest.TempPathFactory
    ) -> Mapping[str, Pair]:
        """By architecture, a tiny model loaded with the attention and with `eager`; one of each for all tests."""
        from lmflow.models.pretrained import Pretrained
        from lmflow.testing.tiny import tiny_model

        self._skip_without_device()
        of_class = request.node.getparent(pytest.Class)
        pairs: dict[str, Pair] = of_class.stash.setdefault(PAIRS, {}).setdefault(repr(attention), {})
        for architecture in self._tried():
            if architecture not in pairs:
                directory = tmp_path_factory.mktemp(architecture)
                tiny_model(architecture, sharpness=3.0).save(directory)
                load = Pretrained(path=str(directory)).load
                pairs[architecture] = (
                    load(LoadRequest(device=self.device, attention=attention)),
                    load(LoadRequest(device=self.device, attention=Eager())),
                )
        return pairs

    # What it says

    def test_the_model_is_built_with_it(self, attention: Attention, pairs: Mapping[str, Pair]) -> None:
        """What `implementation` names is what Transformers computes with, in every layer."""
        for architecture, (model, _) in pairs.items():
            wanted = attention.implementation(config_of(model), self.device)
            found = config_of(model)._attn_implementation
            assert found == wanted, (
                f"expected {architecture} to compute with {wanted!r}; found {found!r}. Usual cause: a name that is not "
                "registered with transformers.AttentionInterface before it is returned."
            )

    def test_asking_changes_nothing(self, attention: Attention, pairs: Mapping[str, Pair]) -> None:
        """`implementation` leaves the configuration as it was, and says the same when asked again."""
        for architecture, (_, plain) in pairs.items():
            config = copy.deepcopy(config_of(plain))
            first, second = (attention.implementation(config, self.device) for _ in range(2))
            assert first == second, f"expected one name for {architecture}; found {first!r}, then {second!r}"
            changed = [key for key, value in config.to_dict().items() if config_of(plain).to_dict()[key] != value]
            assert not changed, f"expected the configuration of {architecture} as it was; found other {some(changed)}"

    def test_what_it_cannot_compute_is_refused(self, attention: Attention) -> None:
        """For each architecture of `refused`, `implementation` raises an LmflowError that names the model type."""
        from lmflow.testing.tiny import tiny_module

        for architecture in self.refused:
            config = tiny_module(architecture).config
            error: Exception | None = None
            try:
                attention.implementation(config, self.device)
            except Exception as raised:
                error = raised
            holds = isinstance(error, LmflowError) and config.model_type in str(error)
            assert holds, (
                f"expected an LmflowError that names the model type {config.model_type}; found "
                f"{type(error).__name__}: {error}"
            )

    # What it computes

    def test_logits_are_those_of_eager(self, pairs: Mapping[str, Pair]) -> None:
        """A sequence alone has the logits of `eager`, be it one token long or thirty."""
        from lmflow.testing.comparing import read_logits

        for architecture, (model, plain) in pairs.items():
            for sequence in self._sequences(plain):
                off = self._off(read_logits(model, [sequence]), read_logits(plain, [sequence]))
                self._expect(off, f"{architecture}, {len(sequence)} tokens", "a scale or a causal mask that is missing")

    def test_padding_changes_nothing(self, pairs: Mapping[str, Pair]) -> None:
        """Sequences of several lengths in one padded batch have the logits that `eager` gives to each alone."""
        import torch

        from lmflow.data.collate import collate
        from lmflow.testing.comparing import read_logits
        from lmflow.training.loss import forward_inputs

        for architecture, (model, plain) in pairs.items():
            sequences = self._sequences(plain)
            with torch.no_grad():
                batch = collate(sequences, plain.pad_id).to(model.device)
                rows = model.module(**forward_inputs(batch)).logits.float()
            for row, sequence in zip(rows, sequences):
                off = self._off(row[: len(sequence)], read_logits(plain, [sequence]))
                self._expect(off, f"{architecture}, padded", "attention_mask that is not looked at")

    def test_packed_samples_do_not_see_each_other(self, pairs: Mapping[str, Pair]) -> None:
        """Sequences in one row, positions beginning again at each, have the logits that `eager` gives to each alone.

        With `packs = False` at least one logit must differ: a declaration that is not needed keeps users from packing.
        """
        import torch

        from lmflow.data.collate import collate_packed
        from lmflow.testing.comparing import read_logits
        from lmflow.training.loss import forward_inputs

        for architecture, (model, plain) in pairs.items():
            sequences = self._sequences(plain)
            with torch.no_grad():
                batch = collate_packed([sequences], plain.pad_id).to(model.device)
                [row] = model.module(**forward_inputs(batch)).logits.float()
            off = self._off(row[: sum(map(len, sequences))], read_logits(plain, sequences))
            if self.packs:
                self._expect(off, f"{architecture}, packed", "a causal mask for the whole row instead of each sample")
            else:
                assert off > self.tolerance, f"{architecture} keeps packed samples apart: leave `packs` True"

    def test_a_cache_changes_nothing(self, pairs: Mapping[str, Pair]) -> None:
        """Greedy completions of prompts of several lengths, sampled with a KV cache, are those of `eager`."""
        from lmflow.inference.hf import HuggingFace
        from lmflow.inference.types import Sampling

        for architecture, (model, plain) in pairs.items():
            prompts = [Prompt(each.ids) for each in self._sequences(plain)]
            sampling = Sampling(temperature=0, max_new_tokens=8)
            found, expected = (
                [done.ids for [done] in HuggingFace().generate(GenerateRequest(each, prompts, sampling))]
                for each in (model, plain)
            )
            assert found == expected, (
                f"expected {architecture} to complete as with eager; found {found} instead of {expected}. Usual cause: "
                "a causal mask aligned with the first key where the queries are the last positions."
            )

    def test_gradients_are_those_of_eager(self, pairs: Mapping[str, Pair]) -> None:
        """The gradient of a padded batch's loss has the values that `eager` gives it, for every parameter."""
        from lmflow.data.collate import collate
        from lmflow.training.loss import negative_log_likelihood

        for architecture, both in pairs.items():
            gradients: list[dict[str, Tensor]] = []
            for model in both:
                batch = collate(self._sequences(model), model.pad_id).to(model.device)
                negative_log_likelihood(model.module, model.module, batch).backward()  # type: ignore[no-untyped-call]
                named = model.module.named_parameters()
                gradients.append({name: each.grad.float() for name, each in named if each.grad is not None})
                model.module.zero_grad(set_to_none=True)
            found, expected = gradients
            lost = sorted(expected.keys() - found.keys())
            assert not lost, (
                f"expected a gradient of every parameter of {architecture}; found none of {some(lost)}. Usual cause: a "
                "kernel without a backward pass, called under no_grad()."
            )
            for name, gradient in expected.items():
                off = self._off(found[name], gradient) / max(float(gradient.abs().max()), 1e-6)
                self._expect(off, f"{architecture}, the gradient of {name}", "a backward pass that lacks the scale")

    def _tried(self) -> list[str]:
        return [each for each in self.architectures if each not in self.refused]

    def _sequences(self, model: LanguageModel) -> list[TokenSequence]:
        """Sequences of different lengths and tokens."""
        size = config_of(model).vocab_size
        ids = [[3 + (7 * n + 11 * place) % (size - 3) for place in range(n)] for n in LENGTHS]
        return [TokenSequence(each, [True] * len(each), "here") for each in ids]

    def _off(self, found: Tensor, expected: Tensor) -> float:
        return float((found - expected.to(found.device)).abs().max())

    def _expect(self, off: float, where: str, cause: str) -> None:
        assert off <= self.tolerance, (
            f"expected the numbers of eager up to {self.tolerance:g} ({where}); found a difference of {off:.3g}. Usual "
            f"cause: {cause}."
        )

    def _skip_without_device(self) -> None:
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                pytest.skip("this attention is tried on a GPU, and there is none")
