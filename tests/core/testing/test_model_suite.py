"""The suite of models fails models that are broken in one respect, and says in which."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.components import LoadRequest, Model
from lmflow.models.language_model import LanguageModel
from lmflow.testing import ModelSuite
from lmflow.testing.tiny import CHATML, tiny_model

COUNT = itertools.count()


class Good(Model):
    """The tiny model."""

    name = "good"

    def load(self, request: LoadRequest) -> LanguageModel:
        with torch.random.fork_rng(devices=[]):
            model = tiny_model(seed=1, **self.options())
        model.module.to(getattr(torch, request.dtype))
        return self.changed(model)

    def options(self) -> dict[str, Any]:
        return {}

    def changed(self, model: LanguageModel) -> LanguageModel:
        return model


class NotALanguageModel(Good):
    def load(self, request):
        return super().load(request).module


class AlwaysFloat32(Good):
    def load(self, request):
        return super().load(LoadRequest(device=request.device))


class InTraining(Good):
    def changed(self, model):
        model.module.model.layers[0].train()
        return model


class NewWeights(Good):
    def changed(self, model):
        with torch.no_grad():
            model.module.lm_head.weight[0, 0] = next(COUNT)
        return model


class MovesRandomness(Good):
    def load(self, request):
        torch.rand(1)
        return super().load(request)


class TooFewEmbeddings(Good):
    def changed(self, model):
        model.tokenizer.add_tokens(["<|extra|>"])
        return model


class LosesCharacters(Good):
    def changed(self, model):
        from tokenizers import normalizers

        model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        return model


class NoEnd(Good):
    def changed(self, model):
        model.tokenizer.eos_token = None
        model.module.generation_config.eos_token_id = None
        model.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        return model


class ShownEnd(Good):
    def changed(self, model):
        end = model.tokenizer("fox").input_ids[0]
        model.module.generation_config.eos_token_id = [1, end]
        return model


class TrainsQuestions(Good):
    def changed(self, model):
        return Everything(model.module, model.tokenizer, model.source)


@dataclass(frozen=True)
class Everything(LanguageModel):
    def encode_all(self, samples, train_on="assistant"):
        return super().encode_all(samples, "all")


@dataclass(frozen=True)
class WithoutEnd(LanguageModel):
    def encode(self, sample, train_on="assistant"):
        return [
            replace(s, loss_mask=[on and i not in self.end_ids for i, on in zip(s.ids, s.loss_mask)])
            for s in super().encode(sample, train_on)
        ]


class TrainsNoEnd(Good):
    def changed(self, model):
        return WithoutEnd(model.module, model.tokenizer, model.source)


class AnotherPrompt(Good):
    def changed(self, model):
        model.tokenizer.chat_template = CHATML + "{% if add_generation_prompt %}Answer:{% endif %}"
        return model


class IgnoresTheMask(Good):
    """Padding on the left of the batch's rows would be read; here the mask is thrown away and rows are turned."""

    def changed(self, model):
        inner = model.module.forward

        def forward(input_ids=None, attention_mask=None, **inputs):
            if attention_mask is not None and not bool(attention_mask.all()):
                inputs["position_ids"] = torch.arange(input_ids.shape[1]).flip(0).expand(input_ids.shape)
            return inner(input_ids=input_ids, **inputs)

        model.module.forward = forward
        return model


@dataclass(frozen=True)
class ForgetsTheHead(LanguageModel):
    def save(self, directory: Path) -> None:
        kept = self.module.lm_head.weight.detach().clone()
        with torch.no_grad():
            self.module.lm_head.weight.zero_()
        super().save(directory)
        with torch.no_grad():
            self.module.lm_head.weight.copy_(kept)


@dataclass(frozen=True)
class ForgetsTheTemplate(LanguageModel):
    def save(self, directory: Path) -> None:
        super().save(directory)
        (directory / "chat_template.jinja").unlink()


@dataclass(frozen=True)
class ScalesToSave(LanguageModel):
    """Leaves a scale behind that no tensor shows."""

    def save(self, directory: Path) -> None:
        super().save(directory)
        for layer in self.module.model.layers:
            layer.self_attn.scaling *= 2


class SwitchesToTrain(Good):
    def changed(self, model):
        return LeavesTraining(model.module, model.tokenizer, model.source)


@dataclass(frozen=True)
class LeavesTraining(LanguageModel):
    def save(self, directory: Path) -> None:
        super().save(directory)
        self.module.train()


class ChangesTheScale(Good):
    def changed(self, model):
        return ScalesToSave(model.module, model.tokenizer, model.source)


class SavesNoHead(Good):
    def changed(self, model):
        return ForgetsTheHead(model.module, model.tokenizer, model.source)


class SavesNoTemplate(Good):
    def changed(self, model):
        return ForgetsTheTemplate(model.module, model.tokenizer, model.source)


class RecognisesDirectories(Good):
    @classmethod
    def recognises(cls, reference):
        return Path(reference or "nothing").is_dir()


def test_a_good_model_passes_everything(examine: Callable[..., dict[str, Any]]):
    reports = examine(ModelSuite, model_component=Good())
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


def test_a_tokenizer_that_normalises_passes_when_it_says_so(examine: Callable[..., dict[str, Any]]):
    reports = examine(ModelSuite, model_component=LosesCharacters(), exact_texts=False, only="test_texts")
    assert reports["test_texts_survive_the_tokenizer"].outcome == "passed"


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (NotALanguageModel, "test_it_loads_a_language_model", "expected a LanguageModel; found LlamaForCausalLM"),
        (AlwaysFloat32, "test_weights_have_the_format_asked_for", "expected parameters in bfloat16"),
        (InTraining, "test_it_is_in_eval_mode", "are in training mode"),
        (NewWeights, "test_loading_again_gives_the_same_model", "lm_head.weight differ"),
        (MovesRandomness, "test_loading_does_not_touch_the_random_numbers", "torch.random.fork_rng()"),
        (TooFewEmbeddings, "test_every_token_has_an_embedding", "<|extra|> lie beyond"),
        (LosesCharacters, "test_texts_survive_the_tokenizer", "after encoding and decoding; found 'two sentences"),
        (NoEnd, "test_an_end_of_text_is_declared", "found none"),
        (ShownEnd, "test_an_end_of_text_is_declared", "they decode to"),
        (TrainsNoEnd, "test_answers_end_with_the_end_of_text", "so that the model learns to stop"),
        (TrainsQuestions, "test_answers_end_with_the_end_of_text", "expected"),
        (AnotherPrompt, "test_a_prompt_begins_what_is_trained", "would be learnt for another prompt"),
        (IgnoresTheMask, "test_padding_changes_nothing", "ignores attention_mask"),
        (SavesNoHead, "test_what_is_saved_is_loaded_again", "expected the same logits from the saved model"),
        (SavesNoTemplate, "test_what_is_saved_is_loaded_again", "expected the same chat template"),
        (ChangesTheScale, "test_saving_leaves_the_model_as_it_was", "a scale or a switch"),
        (SwitchesToTrain, "test_saving_leaves_the_model_as_it_was", "the mode of"),
        (RecognisesDirectories, "test_only_models_are_recognised", "to be False"),
    ],
)
def test_a_broken_model_fails_its_check(
    broken: type[Model], check: str, said: str, examine: Callable[..., dict[str, Any]]
):
    report = examine(ModelSuite, model_component=broken(), only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message
