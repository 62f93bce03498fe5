"""A dialogue with a model: what was said, what of it the model is shown, and the commands that change it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow.atomic import write_atomically
from lmflow.components import GenerateRequest
from lmflow.data.sample import Message, Prompt, Sample
from lmflow.errors import DataError, RecipeError
from lmflow.inference.prompts import encode_prompt, marked
from lmflow.inference.types import Sampling
from lmflow.recipe.values import parse_option, validated

if TYPE_CHECKING:
    from lmflow.components import Inferencer
    from lmflow.models.language_model import LanguageModel

ANSWER_SHARE = 4
"""One part in so many of the context is kept free for the answer, if it may be as long as that."""


class Dialogue:
    """Turns of a user and a model. `messages` holds all of them; the model is shown what its context has room for."""

    def __init__(
        self, model: LanguageModel, inferencer: Inferencer, sampling: Sampling, system: str | None = None
    ) -> None:
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []
        self.images: list[str] = []
        """Images that go with what is said next."""
        self.saved: Path | None = None
        self._model = model
        self._inferencer = inferencer
        self._first_shown = 0

    @property
    def context_length(self) -> int | None:
        """Tokens the model can be shown, None if there is no limit."""
        return self._model.context_length

    @property
    def hidden(self) -> int:
        """How many of the oldest messages the model is no longer shown."""
        return self._first_shown

    def reset(self) -> None:
        """Forget what was said; system text and sampling stay."""
        self.messages, self.images, self._first_shown = [], [], 0

    def answer(self, text: str) -> Generator[str, None, None]:
        """Say `text` and yield the model's answer piece by piece.

        However it ends — closed, interrupted, failed — what was yielded stays as the answer; a question that got none
        before that is taken back. Raises DataError for a question longer than the context.
        """
        images, self.images = tuple(self.images), []
        self.messages.append(Message("user", marked(text, images, "the message"), images))
        given = ""
        complete = False
        try:
            for piece in self._inferencer.stream(GenerateRequest(self._model, [self._prompt()], self.sampling)):
                given += piece
                yield piece
            complete = True
        finally:
            if given or complete:
                self.messages.append(Message("assistant", given))
            else:
                self.messages.pop()

    def _prompt(self) -> Prompt:
        """The dialogue's tokens; its oldest turns stay out once they leave too little room for an answer."""
        limit = self._model.context_length
        room = 0 if limit is None else min(self.sampling.max_new_tokens, limit // ANSWER_SHARE)
        first, last = self._first_shown, len(self.messages) - 1
        while True:
            sample = self._shown(first)
            size = None if limit is None else len(self._model.encode_prompt(sample).ids)
            if size is None or limit is None or size + room <= limit or first == last:
                break
            first = next(i for i in range(first + 1, last + 1) if self.messages[i].role == "user")
        prompt = encode_prompt(self._model, sample)
        self._first_shown = first
        return prompt

    def _shown(self, first: int) -> Sample:
        system = [Message("system", self.system)] if self.system else []
        return Sample((*system, *self.messages[first:]), source="the message")

    def save(self, path: Path) -> None:
        """Write the dialogue as one record of data format `messages`; refuses a file that another wrote."""
        if path.exists() and path != self.saved:
            raise DataError(f"{path} exists; choose another name")
        system = [Message("system", self.system)] if self.system else []
        turns = [*system, *self.messages]
        record: dict[str, Any] = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
        images = [image for turn in turns for image in turn.images]
        if images:
            record["images"] = images
        try:
            write_atomically(path, json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from error
        self.saved = path


# Commands


class ExitChat(Exception):
    """The user asked to leave."""


@dataclass(frozen=True)
class Command:
    """A command of the chat: what follows it, what it does, and the function that does it and says so."""

    takes: str
    help: str
    run_command: Callable[[Dialogue, str], str]


def run_command(dialogue: Dialogue, line: str) -> str:
    """Do what a line that begins with "/" says; returns what to tell the user.

    Raises LmflowError for an unknown command or a wrong argument, and Leave for /exit.
    """
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise DataError(f"no command is called {name}; " + (f"did you mean {near[0]}?" if near else "see /help"))
    return command.run_command(dialogue, argument.strip())


def changed_sampling(sampling: Sampling, assignment: str) -> Sampling:
    """The sampling options with one changed: "temperature 0.3", "sampling.temperature 0.3" or "temperature=0.3".

    Raises RecipeError for an unknown name, with the nearest, and for a value that is not allowed.
    """
    name, _, value = assignment.replace("=", " ", 1).strip().partition(" ")
    key = name.removeprefix("sampling.")
    fields = {name: field for name, field in Sampling.model_fields.items() if name != "n"}
    if key not in fields:
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"did you mean sampling.{near[0]}?" if near else f"there are {', '.join(fields)}"
        raise RecipeError([f"{name}: unknown option; {hint}"])
    value = value.strip().replace("\\n", "\n").replace("\\t", "\t")
    if not value:
        raise RecipeError([f"sampling.{key}: needs a value, as in /set sampling.{key} {getattr(sampling, key)}"])
    parsed = (value,) if key == "stop" else parse_option(value, fields[key])
    return validated(Sampling, {**sampling.model_dump(), key: parsed}, "sampling")


def _help(_: Dialogue, __: str) -> str:
    rows = [(f"{name} {command.takes}".strip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(left) for left, _ in rows) + 2
    keys = [("Ctrl-C", "Stop the answer; its beginning stays in the dialogue."), ("Ctrl-D", "Leave.")]
    return "\n".join(f"{left:<{width}}{right}" for left, right in [*rows, *keys])


def _reset(dialogue: Dialogue, _: str) -> str:
    dialogue.reset()
    return "the dialogue begins anew"


def _system(dialogue: Dialogue, text: str) -> str:
    if not text:
        return f"system text: {dialogue.system or 'none'}"
    dialogue.system = None if text == "none" else text
    return "the system text is removed" if text == "none" else "the system text is set"


def _save(dialogue: Dialogue, name: str) -> str:
    if not name:
        raise DataError("/save needs the name of a file")
    dialogue.save(Path(name).expanduser())
    return f"{len(dialogue.messages)} messages saved to {name}"


def _set(dialogue: Dialogue, assignment: str) -> str:
    if assignment:
        dialogue.sampling = changed_sampling(dialogue.sampling, assignment)
        name = assignment.replace("=", " ", 1).split()[0].removeprefix("sampling.")
        return f"sampling.{name} is {getattr(dialogue.sampling, name)!r}"
    shown = ((name, value) for name, value in dialogue.sampling.model_dump().items() if name != "n")
    return "\n".join(f"sampling.{name} {value}" for name, value in shown)


def _image(dialogue: Dialogue, name: str) -> str:
    path = Path(name).expanduser()
    if not name or not path.is_file():
        raise DataError(f"there is no image {name}" if name else "/image needs the path of an image")
    dialogue.images.append(str(path))
    return f"{name} goes with what you say next"


def _exit(_: Dialogue, __: str) -> str:
    raise ExitChat


COMMANDS: dict[str, Command] = {
    "/help": Command("", "Show this.", _help),
    "/reset": Command("", "Forget the dialogue.", _reset),
    "/system": Command("TEXT", "Set the system text (none: remove it); alone, show it.", _system),
    "/save": Command("FILE", "Write the dialogue as a record of format messages.", _save),
    "/set": Command(
        "NAME VALUE", "Change how answers are sampled: /set sampling.temperature 0.3; alone, show all.", _set
    ),
    "/image": Command("PATH", "Show an image with what you say next.", _image),
    "/exit": Command("", "Leave.", _exit),
}


def hidden_note(dialogue: Dialogue, before: int) -> str | None:
    """What to tell the user when more of the dialogue no longer fits; None if no more was left out."""
    if dialogue.hidden == before:
        return None
    return (
        f"the dialogue no longer fits the model's context of {dialogue.context_length:,} tokens: it is not shown the "
        f"oldest {dialogue.hidden} messages"
    )
