"""The conformance suite for models: what every model component promises to those who train and use what it loads."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from lmflow.components import LoadRequest, Model
from lmflow.data.sample import Message, Sample
from lmflow.models.language_model import LanguageModel
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.resolve import model_from_reference
from lmflow.testing.comparing import all_tensors, apart, different, read_logits, some, state_of
from lmflow.testing.runs import plugins_with, supply

TEXTS = ("plain words", "Two sentences. And  two spaces!", "naïve café, 日本語 🙂", "tabs\tand\nlines\n")
DIALOGUE = (
    Message("user", "What is two and two?"),
    Message("assistant", "four"),
    Message("user", "And three?"),
    Message("assistant", "seven"),
)
LOADED: pytest.StashKey[dict[str, LanguageModel]] = pytest.StashKey()


class ModelSuite:
    """An examination of one model component; inherit from it in a class whose name begins with Test.

        from lmflow.testing import ModelSuite

        class TestMyModel(ModelSuite):
            @pytest.fixture
            def model_component(self):
                return MyModel(width=64)

    Each test is one requirement, and its docstring says which. What the component loads is loaded once, on the CPU in
    float32, and shared by the tests.
    """

    exact_texts: ClassVar[bool] = True
    """Whether decoding gives back every text to the letter; some tokenizers normalise what they read."""
    kept_in_float32: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of parameters that are in float32 whatever format is asked for."""
    tolerance: ClassVar[float] = 0.0
    """Largest difference of a logit after saving and loading again; weights that are saved as they are have none."""

    @pytest.fixture
    def model_component(self) -> Model:
        """The model component under examination; every suite supplies its own."""
        supply(self, "model_component")

    @pytest.fixture
    def plugins(self, model_component: Model) -> Plugins:
        """The core and the plugin of the component, which need not be installed."""
        return plugins_with(type(model_component), companions=())

    @pytest.fixture
    def loaded(self, request: pytest.FixtureRequest, model_component: Model) -> LanguageModel:
        """What the component loads; one for all tests of the class."""
        of_class = request.node.getparent(pytest.Class)
        models = of_class.stash.setdefault(LOADED, {})
        if repr(model_component) not in models:
            models[repr(model_component)] = model_component.load(LoadRequest(plugins=load_plugins()))
        found: LanguageModel = models[repr(model_component)]
        return found

    # What is loaded

    def test_it_loads_a_language_model(self, loaded: LanguageModel) -> None:
        """`load` returns a LanguageModel: weights and tokenizer together, and the name of where they came from."""
        assert isinstance(loaded, LanguageModel), f"expected a LanguageModel; found {type(loaded).__name__}"
        assert loaded.source, "expected `source` to name where the weights came from; it is empty"

    def test_weights_have_the_format_asked_for(self, model_component: Model) -> None:
        """Floating-point parameters have the `dtype` given to `load`, float32 and bfloat16 alike."""
        for dtype in ("float32", "bfloat16"):
            parameters = model_component.load(
                LoadRequest(dtype=dtype, plugins=load_plugins())
            ).module.named_parameters()
            others = [
                f"{name} ({parameter.dtype})"
                for name, parameter in parameters
                if parameter.is_floating_point()
                and dtype not in str(parameter.dtype)
                and not name.startswith(self.kept_in_float32)
            ]
            assert not others, (
                f"expected parameters in {dtype}; found {some(others)}. Usual cause: dtype is not passed on."
            )

    def test_it_is_in_eval_mode(self, loaded: LanguageModel) -> None:
        """No part of the model is in training mode: dropout would blur everything that is measured before training."""
        training = [name for name, part in loaded.module.named_modules() if part.training]
        assert not training, f"expected eval mode; {some(training)} are in training mode. Call module.eval()."

    def test_loading_again_gives_the_same_model(self, model_component: Model, loaded: LanguageModel) -> None:
        """Two loads give the same weights, to the bit: a resumed run starts from what the first one started from."""
        changed = different(all_tensors(model_component.load(LoadRequest(plugins=load_plugins()))), all_tensors(loaded))
        assert not changed, (
            f"expected the same weights when loaded again; {some(changed)} differ. Usual cause: a part that is not in "
            "the checkpoint and is initialised with random numbers; seed them."
        )

    def test_loading_does_not_touch_the_random_numbers(self, model_component: Model) -> None:
        """`load` leaves torch's generator as it was, so that what comes after depends on the run's seed alone."""
        import torch

        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        model_component.load(LoadRequest(plugins=load_plugins()))
        assert torch.equal(torch.random.get_rng_state(), before), (
            "expected torch's random numbers to go on as if nothing had been loaded. Usual cause: weights initialised "
            "with them; do it within torch.random.fork_rng()."
        )

    # Tokenizer and weights

    def test_every_token_has_an_embedding(self, loaded: LanguageModel) -> None:
        """No token's id lies beyond the table of embeddings, but for those that stand for other inputs."""
        size = loaded.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        inputs = set(loaded.suppressed_ids)
        beyond = [token for token, i in loaded.tokenizer.get_vocab().items() if i >= size and i not in inputs]
        assert not beyond, (
            f"expected {size} embeddings to be enough for the tokenizer; {some(sorted(beyond))} lie beyond. Usual "
            "cause: tokens were added without resize_token_embeddings."
        )

    def test_texts_survive_the_tokenizer(self, loaded: LanguageModel) -> None:
        """Encoding and decoding a text gives that text, whatever its script (or, if normalised, always the same)."""
        for text in TEXTS:
            once = loaded.decode(self._ids(loaded, text))
            expected = text if self.exact_texts else loaded.decode(self._ids(loaded, once))
            assert once == expected, (
                f"expected {expected!r} after encoding and decoding; found {once!r}. Usual cause: a tokenizer without "
                "a decoder, or one that lacks characters (unknown tokens)."
            )

    def test_an_end_of_text_is_declared(self, loaded: LanguageModel) -> None:
        """There is a token that ends an answer; it is in the vocabulary and decodes to nothing."""
        assert loaded.end_ids, "expected an end-of-text token of the tokenizer or generation configuration; found none"
        known = set(loaded.tokenizer.get_vocab().values())
        assert set(loaded.end_ids) <= known, f"expected the end tokens {loaded.end_ids} to be in the vocabulary"
        shown = loaded.decode(list(loaded.end_ids))
        assert shown == "", f"expected end tokens not to be shown in answers; they decode to {shown!r}"

    def test_answers_end_with_the_end_of_text(self, loaded: LanguageModel) -> None:
        """In a tokenised dialogue each answer is trained, and the last trained token is one that ends it."""
        sequences = loaded.encode(Sample(DIALOGUE, source="dialogue"))
        for sequence in sequences:
            trained = [i for i, is_trained in zip(sequence.ids, sequence.loss_mask, strict=True) if is_trained]
            assert trained, "expected the answers of a dialogue to be trained; no token is"
            assert trained[-1] in loaded.end_ids, (
                f"expected the last trained token to be one of {loaded.end_ids}, so that the model learns to stop; "
                f"found {trained[-1]} ({loaded.tokenizer.convert_ids_to_tokens(trained[-1])!r})"
            )
        texts = [
            loaded.decode([i for i, is_trained in zip(s.ids, s.loss_mask, strict=True) if is_trained])
            for s in sequences
        ]
        assert "four" in "".join(texts), f"expected the answers among what is trained; found {texts}"
        assert "two and two" not in "".join(texts), f"expected questions not to be trained; found {texts}"

    def test_a_prompt_begins_what_is_trained(self, loaded: LanguageModel) -> None:
        """The tokens asked with are the beginning of the tokens trained on: what is trained is what is served."""
        sample = Sample(DIALOGUE, source="dialogue")
        prompt, whole = list(loaded.encode_prompt(sample).ids), list(loaded.encode(sample)[-1].ids)
        assert whole[: len(prompt)] == prompt, (
            "expected the prompt's tokens to begin the dialogue's. Usual cause: a chat template whose generation "
            "prompt is not what it writes before an answer."
        )

    def test_padding_changes_nothing(self, loaded: LanguageModel) -> None:
        """The logits of a text are the same when padding follows it in a batch."""
        import torch

        from lmflow.data.collate import collate
        from lmflow.training.loss import forward_inputs

        short, long = (loaded.encode(Sample(DIALOGUE[:count], source="d"))[0] for count in (2, 4))
        with torch.no_grad():
            together = loaded.module(**forward_inputs(collate([short, long], loaded.pad_id))).logits[0, : len(short)]
        off = (together.float() - read_logits(loaded, [short])).abs().max().item()
        assert off < 1e-3, (
            f"expected padding to change no logit by 0.001; one differs by {off:.3g}. Usual cause: a model that "
            "ignores attention_mask."
        )

    # Saving

    def test_what_is_saved_is_loaded_again(self, loaded: LanguageModel, plugins: Plugins, tmp_path: Path) -> None:
        """`--model DIR` of a saved model gives the same logits and the same tokens."""
        loaded.save(tmp_path / "saved")
        again = model_from_reference(plugins, str(tmp_path / "saved")).load(LoadRequest(plugins=load_plugins()))
        for text in TEXTS:
            ids, found = self._ids(loaded, text), self._ids(again, text)
            assert ids == found, f"expected the saved tokenizer to read {text!r} as {ids}; it reads {found}"
        sample = Sample(DIALOGUE, source="dialogue")
        expected, found_sequences = loaded.encode(sample), again.encode(sample)
        assert [s.ids for s in expected] == [s.ids for s in found_sequences], (
            "expected the same chat template; found another"
        )
        off = (read_logits(loaded, expected) - read_logits(again, expected)).abs().max().item()
        assert off <= self.tolerance, (
            f"expected the same logits from the saved model; one differs by {off:.3g}. Usual cause: a part of the "
            "weights that is not in what `save` writes."
        )

    def test_saving_leaves_the_model_as_it_was(self, model_component: Model, tmp_path: Path) -> None:
        """`save` changes nothing in the model it writes: tensors, answers, modes, hooks and configuration stay."""
        model = model_component.load(LoadRequest(plugins=load_plugins()))
        sequences = model.encode(Sample(DIALOGUE, source="dialogue"))
        logits, before, state = read_logits(model, sequences), all_tensors(model), state_of(model)
        model.save(tmp_path / "saved")
        changed = [*different(all_tensors(model), before), *apart(state_of(model), state)]
        assert not changed, (
            f"expected save() to leave the model as it was; it changed {some(changed)}. Usual cause: parts joined, "
            "merged or moved for writing; do it with a copy."
        )
        off = float((read_logits(model, sequences) - logits).abs().max())
        assert off == 0, (
            f"expected the model to answer after save() as before; a logit is off by {off:.3g}. Usual cause: a scale "
            "or a switch that is set for writing and not set back."
        )

    def test_only_models_are_recognised(self, model_component: Model, tmp_path: Path) -> None:
        """`recognises` is False for an empty directory, a directory of other files, and a name of nothing."""
        junk = tmp_path / "junk"
        junk.mkdir()
        (junk / "notes.txt").write_text("no model")
        (tmp_path / "empty").mkdir()
        for reference in (str(tmp_path / "empty"), str(junk), str(tmp_path / "absent"), "no-such-model", ""):
            assert not model_component.recognises(reference), (
                f"expected `recognises` to be False for {reference!r}. Usual cause: it asks whether a path exists, "
                "instead of looking for a file that only this kind of model has."
            )

    def _ids(self, model: LanguageModel, text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
