"""The conformance suite for contexts: what every way to longer texts promises to those who load a model with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lmflow.components import Context, LoadRequest
from lmflow.data.sample import TokenSequence
from lmflow.errors import LmflowError
from lmflow.models.pretrained import Pretrained
from lmflow.testing.comparing import all_tensors, config_of, different, read_logits, some
from lmflow.testing.runs import supply

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

LENGTH = 256
"""Tokens that the tiny models reach by themselves."""
SHORT = 24
"""Tokens of a short text."""
MODELS: pytest.StashKey[dict[str, Any]] = pytest.StashKey()


class ContextSuite:
    """An examination of one context; inherit from it in a class whose name begins with Test, and supply it.

        from lmflow.testing import ContextSuite

        class TestMyContext(ContextSuite):
            factor = 4.0

            @pytest.fixture
            def context(self):
                return MyContext(factor=4)

    Each test is one requirement, and its docstring says which. A tiny model of random weights that reaches 256 tokens
    is loaded with the context and without.
    """

    factor: ClassVar[float] = 2.0
    """How many times longer the context makes the model: what the component under examination is set to."""
    architecture: ClassVar[str] = "llama"
    """The tiny model's architecture, one of lmflow.testing.tiny.ARCHITECTURES."""
    refused: ClassVar[Sequence[str]] = ("gpt2",)
    """Of ARCHITECTURES, those whose positions it cannot stretch, and says so."""
    fields: ClassVar[Sequence[str]] = (
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "head_dim",
        "max_position_embeddings",
        "original_max_position_embeddings",
    )
    """What may change in a configuration."""
    short_tolerance: ClassVar[float] = 0.1
    """Largest mean KL divergence of the predictions in a short text from those before, in nats per token."""

    @pytest.fixture
    def context(self) -> Context:
        """The context under examination; every suite supplies its own."""
        supply(self, "context")

    @pytest.fixture
    def directory(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The tiny model on disk; one for all tests."""
        from lmflow.testing.tiny import tiny_model

        held = self._held(request)
        if "directory" not in held:
            held["directory"] = tmp_path_factory.mktemp("model")
            tiny_model(self.architecture, sharpness=6.0).save(held["directory"])
        found: Path = held["directory"]
        return found

    @pytest.fixture
    def stretched(self, request: pytest.FixtureRequest, context: Context, directory: Path) -> LanguageModel:
        """The model loaded with the context; one for all tests of an instance."""
        held = self._held(request)
        if repr(context) not in held:
            held[repr(context)] = Pretrained(path=str(directory)).load(LoadRequest(context=context))
        found: LanguageModel = held[repr(context)]
        return found

    @pytest.fixture
    def plain(self, directory: Path) -> LanguageModel:
        """The model loaded without it."""
        return Pretrained(path=str(directory)).load(LoadRequest())

    # The configuration

    def test_only_positions_change(self, context: Context, plain: LanguageModel) -> None:
        """`configure` changes entries of `fields`, at least one of them, and nothing else."""
        before, config = config_of(plain).to_dict(), copy.deepcopy(config_of(plain))
        context.configure(config)
        changed = self._changed(config.to_dict(), before)
        assert changed, "expected configure() to change the configuration in place; it is as it was"
        others = sorted(changed - set(self.fields))
        assert not others, (
            f"expected only positions to change in the configuration; found other values of {some(others)}. If they "
            "belong to the method, add them to the suite's `fields`."
        )

    def test_configuring_repeats(self, context: Context, plain: LanguageModel) -> None:
        """Two configurations that were alike are alike afterwards: nothing is kept on the component."""
        first, second = (copy.deepcopy(config_of(plain)) for _ in range(2))
        context.configure(first)
        context.configure(second)
        changed = sorted(self._changed(first.to_dict(), second.to_dict()))
        assert not changed, f"expected the same change twice; found other values of {some(changed)} the second time"

    def test_unknown_models_are_refused(self, context: Context) -> None:
        """A model type it does not know is refused with an LmflowError that names it, its configuration untouched."""
        from lmflow.testing.tiny import tiny_module

        for architecture in self.refused:
            config = tiny_module(architecture).config
            before = config.to_dict()
            error: Exception | None = None
            try:
                context.configure(config)
            except Exception as raised:
                error = raised
            holds = isinstance(error, LmflowError) and config.model_type in str(error)
            assert holds, (
                f"expected an LmflowError that names the model type {config.model_type}; found "
                f"{type(error).__name__}: {error}. Usual cause: fields are set without a look at whether the model "
                "reads them, so that it is not stretched and nobody is told."
            )
            changed = sorted(self._changed(config.to_dict(), before))
            assert not changed, (
                f"expected the configuration of a refused model as it was; found other values of {some(changed)}"
            )

    # The model

    def test_the_weights_stay(self, stretched: LanguageModel, plain: LanguageModel) -> None:
        """The model has the parameters that it has without the context, to the bit."""
        names = {name for name, _ in plain.module.named_parameters()}
        found, expected = (all_tensors(model) for model in (stretched, plain))
        parameters = {
            name: tensor for name, tensor in found.items() if name in dict(stretched.module.named_parameters())
        }
        changed = different(parameters, {name: expected[name] for name in names})
        assert not changed, (
            f"expected the weights that were saved; found {some(changed)} different. Usual cause: a size in the "
            "configuration was changed, so that weights were made anew."
        )

    def test_the_context_grows_as_declared(self, stretched: LanguageModel, plain: LanguageModel) -> None:
        """`context_length` is `factor` times what it was, and so it is of a skeleton."""
        wanted = int(self.factor * (plain.context_length or 0))
        assert stretched.context_length == wanted, (
            f"expected a context of {wanted} tokens, {self.factor:g} times that of the model, as the suite's `factor` "
            f"says; found {stretched.context_length}. Usual cause: max_position_embeddings is not raised."
        )

    def test_long_texts_can_be_read(self, stretched: LanguageModel) -> None:
        """A text as long as the new context gives finite logits, which depend on its first token."""
        length = stretched.context_length or LENGTH
        one, other = self._text(length), self._text(length, first=5)
        logits = read_logits(stretched, [one])
        assert bool(logits.isfinite().all()), "expected finite logits over the whole context; some are not"
        assert not bool((logits[-1] == read_logits(stretched, [other])[-1]).all()), (
            f"expected the last of {length} tokens to see the first; it does not. Usual cause: a window or a mask that "
            "ends at the old length."
        )

    def test_a_saved_model_needs_nothing_of_the_plugin(self, context: Context, directory: Path, tmp_path: Path) -> None:
        """The saved model, loaded by plain Transformers, has the logits of the one that was saved."""
        from transformers import AutoModelForCausalLM

        # One that has read nothing yet: dynamic scaling goes by the longest text so far.
        stretched = Pretrained(path=str(directory)).load(LoadRequest(context=context))
        stretched.save(tmp_path / "saved")
        again = stretched.with_module(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval())
        text = [self._text(LENGTH + SHORT)]
        off = float((read_logits(again, text) - read_logits(stretched, text)).abs().max())
        assert off <= 1e-5, (
            f"expected plain Transformers to load the same model; found a logit off by {off:.3g}. Usual cause: the "
            "module was changed instead of the configuration, or a value is not written to config.json."
        )

    def test_short_texts_stay_readable(self, stretched: LanguageModel, plain: LanguageModel) -> None:
        """Predictions in a text that fitted before diverge by `short_tolerance` at most from what they were."""
        from lmflow.testing.comparing import divergence

        text = [self._text(SHORT)]
        found = divergence(read_logits(plain, text), read_logits(stretched, text))
        assert found <= self.short_tolerance, (
            f"expected a short text to be read nearly as before, up to a divergence of {self.short_tolerance:g} nats "
            f"per token; found {found:.3f}. Usual cause: a factor applied twice, or a temperature of attention that "
            "is far from 1."
        )

    def _text(self, length: int, first: int = 4) -> TokenSequence:
        ids = [first, *(3 + 7 * place % 200 for place in range(1, length))]
        return TokenSequence(ids, [True] * length, "here")

    def _changed(self, found: Mapping[str, Any], before: Mapping[str, Any]) -> set[str]:
        return {key for key in found.keys() | before.keys() if found.get(key) != before.get(key)}

    def _held(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        held: dict[str, Any] = request.node.getparent(pytest.Class).stash.setdefault(MODELS, {})
        return held
