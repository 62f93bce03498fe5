"""`lmflow.load_model`: a model that answers, from a run, an adapter, a directory or a hub name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from lmflow.api.components import RewardFunction, plugins_for
from lmflow.api.parts import LOADING, load_parts, resolve_sampling, resolve_sections
from lmflow.api.quiet import quiet_libraries, quiet_steps
from lmflow.atomic import atomic_directory
from lmflow.components import Component, GenerateRequest, Inferencer
from lmflow.data.formats.dialogues import Messages
from lmflow.data.sample import Sample
from lmflow.errors import DataError, LmflowError
from lmflow.formatting import number
from lmflow.inference.prompts import Framing, encode_prompt, prompt_sample
from lmflow.inference.types import Completion
from lmflow.models.load import Compute
from lmflow.plugins import Plugins
from lmflow.recipe.settings import Scope
from lmflow.run.log import RunLog
from lmflow.run.record import RunResult

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

SCOPE = Scope("generate", LOADING, {"compute": Compute})
ANSWERING = {"temperature": 0.7, "max_new_tokens": 512}
"""How answers in a dialogue are sampled unless options say otherwise; `lmflow chat` does the same."""


def load_model(
    reference: str | os.PathLike[str] | RunResult | Mapping[str, Any] | Component | type[Component],
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    context: Any = None,
    attention: Any = None,
    inferencer: Any = None,
    display: bool = False,
    components: Iterable[type[Component] | RewardFunction] = (),
) -> LoadedModel:
    """Load what `--model REFERENCE` would name, ready to generate and to chat.

    `reference` is a run (what `lmflow.run` returned, or its directory), an adapter's or a model's directory, a hub
    name, a component's name (`"demo"`), or a section with options (`{"name": "pretrained", "path": …}`). `context`,
    `attention` and `inferencer` are sections too: a name, or a mapping with `name` and options.

    `precision` is the dtype of the weights; auto is bf16 on a GPU that has it, else fp32. Nothing is printed unless
    `display` asks for progress, on standard error. Raises RecipeError with every mistake at once, and LmflowError for
    a model that cannot be loaded.
    """
    model: Any = reference.directory if isinstance(reference, RunResult) else reference
    sections = {"model": model, "context": context, "attention": attention, "inferencer": inferencer}
    named, plugins = plugins_for(sections, components)
    compute = {"device": device, "precision": precision}
    parts = resolve_sections(plugins, SCOPE, {**named, "compute": compute})
    from lmflow.run.terminal import make_progress

    with closing(make_progress(quiet=not display)) as shown, quiet_libraries():
        loaded = load_parts(parts, plugins, RunLog(None, plugins.emit, shown))
    return LoadedModel(loaded, parts["inferencer"], plugins, {name: parts[name] for name in LOADING})


class LoadedModel:
    """A model that answers, with the inferencer it samples by; `with` closes it at the end, as `close` does."""

    def __init__(
        self, model: LanguageModel, inferencer: Inferencer, plugins: Plugins, parts: Mapping[str, Component | None]
    ) -> None:
        self.model = model
        """Weights and tokenizer; `model.module` is the Transformers model."""
        self.inferencer = inferencer
        self.plugins = plugins
        self.parts = parts
        """The components it was loaded with, by slot."""
        self._closed = False

    def __repr__(self) -> str:
        weights = list(self.model.module.parameters())
        count, dtype = number(sum(each.numel() for each in weights)), str(weights[0].dtype).removeprefix("torch.")
        state = ", closed" if self._closed else ""
        return f"<LoadedModel {self.model.source}: {count} parameters, {dtype} on {self.model.device}{state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the inferencer end what it started; the model answers no more. Closing twice is no mistake."""
        if not self._closed:
            self._closed = True
            self.inferencer.close()

    @overload
    def generate(
        self,
        prompts: str,
        *,
        n: None = None,
        system: str | None = None,
        raw: bool = False,
        images: Sequence[str] = (),
        **sampling: Any,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompts: str,
        *,
        n: int,
        system: str | None = None,
        raw: bool = False,
        images: Sequence[str] = (),
        **sampling: Any,
    ) -> list[Completion]: ...

    @overload
    def generate(
        self, prompts: Sequence[str], *, n: None = None, system: str | None = None, raw: bool = False, **sampling: Any
    ) -> list[Completion]: ...

    @overload
    def generate(
        self, prompts: Sequence[str], *, n: int, system: str | None = None, raw: bool = False, **sampling: Any
    ) -> list[list[Completion]]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        n: int | None = None,
        system: str | None = None,
        raw: bool = False,
        images: Sequence[str] = (),
        **sampling: Any,
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Complete a prompt, or several: a completion for each, or a list of `n` for each where `n` is given.

        `sampling` are the options of `lmflow generate` (temperature, max_new_tokens, top_p, stop, seed, …). The chat
        template is applied, with `system` as its system text, unless `raw` asks to continue the text as it is;
        `images` are paths of images for a single prompt. Raises DataError for a prompt that is empty or too long,
        RecipeError for an option that does not exist.
        """
        framing = Framing(system, raw)
        alone = isinstance(prompts, str)
        if images and not alone:
            raise DataError("images: they belong to a single prompt, and several were given")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        source = "the prompt" if alone else "prompts[{}]"
        samples = [prompt_sample(text, framing, images, source.format(i)) for i, text in enumerate(texts)]
        options = {**sampling, **({} if n is None else {"n": n})}
        with quiet_libraries():
            found = self.inferencer.generate(self._request(samples, options))
        completions: list[Any] = [each[0] for each in found] if n is None else found
        return completions[0] if alone else completions

    @overload
    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **sampling: Any
    ) -> str: ...

    @overload
    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], *, stream: Literal[True], **sampling: Any
    ) -> Iterator[str]: ...

    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], *, stream: bool = False, **sampling: Any
    ) -> str | Iterator[str]:
        """The answer to a dialogue, `[{"role": "user", "content": "…"}, …]`, whose last turn is to be answered.

        A text alone is one turn of the user. With `stream` the answer comes piece by piece, each as soon as it is
        final. `sampling` are the options of `lmflow chat`. Raises DataError for messages that are none, or too long
        for the model's context, RecipeError for an option that does not exist.
        """
        turns: list[Any] = [{"role": "user", "content": messages}]
        if not isinstance(messages, str):
            turns = [dict(each) if isinstance(each, Mapping) else each for each in messages]
        if not turns:
            raise DataError("messages: there is none; the last one is what the model answers")
        sample = Messages().sample({"messages": turns}, "messages")
        if sample.messages[-1].role == "assistant":
            raise DataError("messages: the last one is the assistant's; end with what the model is to answer")
        request = self._request([sample], sampling, **ANSWERING)
        if stream:
            return quiet_steps(self.inferencer.stream(request))
        with quiet_libraries():
            [[completion]] = self.inferencer.generate(request)
        return completion.text

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write weights and tokenizer as Transformers does; returns where.

        Raises LmflowError where something stands there already.
        """
        place = Path(directory)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise LmflowError(f"{place} exists and is not empty; choose another directory")
        with quiet_libraries(), atomic_directory(place) as partial:
            self.model.save(partial)
        return place

    def _request(self, samples: Sequence[Sample], options: Mapping[str, Any], **defaults: Any) -> GenerateRequest:
        """What the inferencer is asked for. Raises LmflowError once the model is closed."""
        if self._closed:
            raise LmflowError(f"the model {self.model.source} is closed; load it again")
        sampling = resolve_sampling(options, **defaults)
        return GenerateRequest(self.model, [encode_prompt(self.model, sample) for sample in samples], sampling)
