"""Formats of records with images: LLaVA's, chat messages with an `images` column or image parts, and image_text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from lmflow.components import DataFormat
from lmflow.data.formats.fields import bad, text_of, tools_of, turns_of, with_system
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow_multimodal.images import MARK, check, check_marks, locate


class ImageFormat(DataFormat):
    """What formats of records with images have in common."""

    image_folder: str | None = Field(
        None, description="Folder that paths of images begin at; that of the data file if unset."
    )

    allow_outside: bool = Field(False, description="Whether paths of images may lead out of that folder.")

    def in_folder(self, folder: Path) -> ImageFormat:
        """Paths begin at `folder` where no option says otherwise."""
        return self if self.image_folder is not None else self.model_copy(update={"image_folder": str(folder)})

    def _images(self, references: Any, source: str, place: str) -> list[str]:
        """The images a field names, each opened once to see that it can be. Raises DataError naming the record."""
        listed = [references] if isinstance(references, str) else references
        if not (isinstance(listed, list) and all(isinstance(each, str) and each for each in listed)):
            raise bad(source, place, "a path or data URI, or a list of them", references)
        found = []
        for reference in listed:
            try:
                located = locate(reference, self._folder(), allow_outside=self.allow_outside)
                check(located)
            except DataError as error:
                raise DataError(f"{source}: {place}: {error}") from None
            found.append(located)
        return found

    def _folder(self) -> Path | None:
        return None if self.image_folder is None else Path(self.image_folder).expanduser()


class Llava(ImageFormat):
    """LLaVA's records: {"image"?: path or paths, "conversations": [{"from", "value"}]}, <image> where one stands."""

    name = "llava"
    includes = ("sharegpt",)

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Conversations with an image beside them."""
        return "conversations" in record and bool({"image", "images"} & record.keys())

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The turns with their images; an image without a mark stands before the first question."""
        turns = with_system(record, turns_of(record, "conversations", source, role="from", content="value"), source)
        placed = _placed(turns, self._of(record, source), source)
        return Sample(placed, True, record, source, tools_of(record, source))

    def _of(self, record: Mapping[str, Any], source: str) -> list[str]:
        field = "image" if "image" in record else "images"
        return self._images(record[field], source, field) if record.get(field) else []


class ImageMessages(ImageFormat):
    """Chat messages with images: {"messages", "images"}, <image> where one stands, or OpenAI's image_url parts."""

    name = "image_messages"
    includes = ("messages", "conversation")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Messages with a column of images, or with parts that are images."""
        turns = record.get("messages")
        if not isinstance(turns, list):
            return False
        contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return "images" in record or any(_is_image(part) for part in parts)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The messages with the images of the column, or those of their own parts."""
        flat, in_parts = _without_parts(record, source)
        turns = with_system(record, turns_of(flat, "messages", source, role="role", content="content"), source)
        column = self._images(record["images"], source, "images") if record.get("images") else []
        if in_parts and column:
            raise DataError(f"{source}: images: images are given here and as parts of messages; give them once")
        images = column or [path for place, url in in_parts for path in self._images(url, source, place)]
        return Sample(_placed(turns, images, source), True, record, source, tools_of(record, source))


class ImageText(ImageFormat):
    """A text about images: {"images": [...], "text", "output"?} (LMFlow image_text); an output is the answer."""

    name = "image_text"
    includes = ("text_only",)

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Images and a text."""
        return "text" in record and bool({"image", "images"} & record.keys())

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The images, then the text: the question where there is an output, else what is learnt to be said."""
        field = "images" if "images" in record else "image"
        images = tuple(self._images(record[field], source, field)) if record.get(field) else ()
        text = text_of(record, "text", source)
        if "output" in record:
            answer = Message("assistant", text_of(record, "output", source))
            return Sample((*_placed((Message("user", text),), list(images), source), answer), True, record, source)
        if MARK in text or not images:
            check_marks(text, images, source)
            return Sample((Message("assistant", text, images),), False, record, source)
        marks = Message("user", MARK * len(images), images)
        return Sample((marks, Message("assistant", text)), False, record, source)


def _placed(turns: tuple[Message, ...], images: list[str], source: str) -> tuple[Message, ...]:
    """Each turn with the images of its marks, in order; without any mark they stand before the first question.

    Raises DataError when there are more or fewer marks than images.
    """
    marks = sum(turn.content.count(MARK) for turn in turns)
    if images and not marks:
        first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            raise DataError(f"{source}: {len(images)} images, no {MARK} and no question they could stand before")
        content = f"{MARK}\n" * len(images) + turns[first].content
        turns = (*turns[:first], replace(turns[first], content=content), *turns[first + 1 :])
    elif marks != len(images):
        raise DataError(
            f"{source}: {marks} {MARK} in the texts and {len(images)} images; there must be one mark for each"
        )
    left = iter(images)
    return tuple(replace(t, images=tuple(next(left) for _ in range(t.content.count(MARK)))) for t in turns)


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image_url", "image", "input_image")


def _without_parts(record: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], list[tuple[str, str]]]:
    """The record with each image part as a mark in the text, and those images with their places."""
    found: list[tuple[str, str]] = []
    turns = []
    messages = record.get("messages")
    for index, turn in enumerate(messages if isinstance(messages, list) else []):
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, list):
            turns.append(turn)
            continue
        parts = []
        for number, part in enumerate(content):
            if _is_image(part):
                place = f"messages[{index}].content[{number}]"
                found.append((place, _url(part, source, place)))
                parts.append({"type": "text", "text": MARK})
            else:
                parts.append(part)
        turns.append({**turn, "content": parts})
    return {**record, "messages": turns} if turns else record, found


def _url(part: Mapping[str, Any], source: str, place: str) -> str:
    """The image of {"type": "image_url", "image_url": {"url"}}, or of {"type": "image", "image"|"path"|"url"}."""
    value = part.get("image_url", part.get("image", part.get("path", part.get("url"))))
    if isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str) or not value:
        raise bad(source, f"{place}.image_url.url", "a path or data URI", value)
    return value
