"""The canonical training record: what every data format turns its records into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmflow.components import DataFormat
    from lmflow.recipe.sections.data import DataOptions


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is system, user, assistant or tool; the loss is on assistant turns.

    `images` are paths or data URIs, in the order of the `<image>` marks in `content`.
    """

    role: str
    content: str
    images: tuple[str, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """What an assistant calls, in OpenAI's form: {"type": "function", "function": {"name", "arguments": object}}."""
    name: str | None = None
    """The tool that answers, where a tool's turn says so."""
    tool_call_id: str | None = None
    """The call that a tool answers."""
    thinking: str | None = None
    """What an assistant thinks before it answers, where that stands beside the content."""
    is_target: bool = True
    """Whether an assistant's turn is trained; False where the record says that it is not to be learnt."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One of several answers to a prompt, and how good it is, where that is known."""

    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One training record, whatever file it came from.

    With `templated` the model's chat template renders the messages; without it their contents are
    concatenated as they are (plain text is a single untemplated assistant message, so all of it is trained).
    `record` is what the sample was read from: rewards see it. `source` says where ("prompts.jsonl:12").
    """

    messages: tuple[Message, ...]
    templated: bool = True
    record: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the assistant may call, as OpenAI's `tools` describe it."""
    rejected: tuple[Message, ...] = ()
    """The whole dialogue that `messages` are preferred to, in a record of preferences."""
    label: bool | None = None
    """Whether the answer is wanted, in a record that says so (KTO); one that is not stands in `rejected` alone."""
    answers: tuple[Answer, ...] = ()
    """All answers of a record that has several; the best of them is the last of `messages`."""

    def prompt(self) -> Sample:
        """The sample without its last assistant turn: what a model is asked to complete.

        A single untemplated message (plain text) is its own prompt.
        """
        last_is_answer = self.messages[-1].role == "assistant" and len(self.messages) > 1
        messages = self.messages[:-1] if last_is_answer else self.messages
        return replace(self, messages=messages)

    @property
    def images(self) -> tuple[str, ...]:
        """The images of all turns, in order."""
        return tuple(image for turn in self.messages for image in turn.images)

    @property
    def prompt_text(self) -> str:
        """The prompt as plain text: a single turn's content, or one `role: content` line per turn."""
        turns = self.prompt().messages
        if len(turns) == 1:
            return turns[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A tokenised sample. `loss_mask[i]` says that token i is a target, predicted from the tokens before it.

    `model_inputs` are further inputs of the model (pixel values); a batch concatenates them in row order.
    `objective_inputs` are for the objective alone (a reference's log-probability, a label).
    """

    ids: Sequence[int]
    loss_mask: Sequence[bool]
    source: str = ""
    model_inputs: Mapping[str, Any] = field(default_factory=dict)
    objective_inputs: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, end: int) -> TokenSequence:
        """Tokens `start` to `end` alone. A sequence whose `model_inputs` belong to places overrides this."""
        return replace(self, ids=self.ids[start:end], loss_mask=self.loss_mask[start:end])

    @property
    def num_targets(self) -> int:
        """Number of targets. The first token has nothing before it and is never one."""
        return sum(self.loss_mask[1:])


Item = TokenSequence | tuple[TokenSequence, ...]
"""What is shuffled and counted as one sample: a sequence, or several that the objective must see together."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt. `model_inputs` are further inputs of the model, as in `TokenSequence`."""

    ids: Sequence[int]
    model_inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The samples of a run: what is trained on, what is held out, and the options they are to be encoded with."""

    train: Sequence[Sample]
    heldout: Sequence[Sample]
    options: DataOptions
    format: DataFormat | None = None
    """What their records mean; of several places, the first one's. None for samples that were read from no records."""
    fingerprint: str | None = None
    """What `train` was read from, where reading it again gives the same samples."""
