"""Texts that hide a number, and the two ways to see whether a model found it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmflow.components import GenerateRequest
from lmflow.data.sample import Message, Prompt, Sample
from lmflow.errors import DataError
from lmflow.inference.decoder import eval_mode
from lmflow.inference.types import Sampling
from lmflow_longctx.scoring import begin_anew, last_token_losses

if TYPE_CHECKING:
    from lmflow.components import Inferencer, Log
    from lmflow.models.language_model import LanguageModel

INTRODUCTION = "A pass key is hidden in a lot of irrelevant text. Find it and memorize it.\n"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
HIDDEN = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"
SPARE = 2
"""Tokens an answer may take beyond those of the number, for a tokenizer that joins digits otherwise when writing."""


@dataclass(frozen=True)
class HiddenKey:
    """One text: `prompt` ends where the number is asked for, `key` is the number hidden at `depth`."""

    prompt: list[int]
    key: str
    depth: float


def make_tests(
    model: LanguageModel, length: int, depths: Sequence[float], trials: int, digits: int, seed: int
) -> list[HiddenKey]:
    """`trials` texts for each depth, each exactly `length` tokens with room for the answer.

    Raises DataError naming the shortest length that holds introduction, number and question.
    """
    draw = random.Random(f"{seed}/{length}")
    return [hide(model, length, depth, draw_key(draw, digits)) for depth in depths for _ in range(trials)]


def draw_key(draw: random.Random, digits: int) -> str:
    """A number of so many digits; the first is not 0."""
    return str(draw.randrange(10 ** (digits - 1), 10**digits))


def hide(model: LanguageModel, length: int, depth: float, key: str) -> HiddenKey:
    """A text of `length` tokens, the answer included, with `key` after the share `depth` of its filler."""
    begin = list(model.encode_prompt(Sample((Message("user", INTRODUCTION),), templated=False)).ids)
    hidden, question = pieces(model, HIDDEN.format(key=key)), pieces(model, QUESTION)
    room = length - len(begin) - len(hidden) - len(question) - answer_length(model, key)
    if room < 0:
        raise DataError(
            f"passkey: {length} tokens do not hold introduction, number and question, which take {length - room}; "
            "choose longer --evaluator.lengths."
        )
    line = pieces(model, FILLER)
    filler = (line * (room // len(line) + 1))[:room]
    # Between two sentences, never within one.
    lines = room // len(line)
    cut = round(depth * lines) * len(line) if depth < 1 else room
    return HiddenKey([*begin, *filler[:cut], *hidden, *filler[cut:], *question], key, depth)


def pieces(model: LanguageModel, text: str) -> list[int]:
    """Tokens of `text` without those that begin or end a sequence."""
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_length(model: LanguageModel, key: str) -> int:
    """Most tokens an answer may take."""
    return len(pieces(model, f" {key}")) + SPARE


def answer_rows(model: LanguageModel, tests: Sequence[HiddenKey], inferencer: Inferencer, log: Log) -> list[bool]:
    """Whether the greedy answer to each test begins with exactly its number."""
    begin_anew(model)
    longest = max(answer_length(model, test.key) for test in tests)
    sampling = Sampling(temperature=0.0, max_new_tokens=longest)
    prompts = [Prompt(test.prompt) for test in tests]
    drawn = inferencer.generate(GenerateRequest(model, prompts, sampling, lambda _: log.check_stop()))
    log.advance(len(tests))
    return [first_number(completions[0].text) == test.key for test, completions in zip(tests, drawn)]


def first_number(text: str) -> str | None:
    """The number `text` begins with, before any word."""
    found = re.match(r"\W*(\d+)", text)
    return found[1] if found else None


def choose_rows(model: LanguageModel, tests: Sequence[HiddenKey], alternatives: int, seed: int, log: Log) -> list[bool]:
    """Whether each test's number has a lower mean loss per token than every one of `alternatives` others."""
    draw = random.Random(f"{seed}/alternatives")
    found = []
    with eval_mode(model.module):
        begin_anew(model)
        for test in tests:
            losses = [key_loss(model, test.prompt, key) for key in (test.key, *others(draw, test.key, alternatives))]
            found.append(losses[0] < min(losses[1:]))
            log.advance()
            log.check_stop()
    return found


def others(draw: random.Random, key: str, count: int) -> list[str]:
    """`count` different numbers of as many digits as `key`, none of them `key`."""
    found: dict[str, None] = {}
    while len(found) < min(count, 9 * 10 ** (len(key) - 1) - 1):
        number = draw_key(draw, len(key))
        if number != key:
            found[number] = None
    return list(found)


def key_loss(model: LanguageModel, prompt: Sequence[int], key: str) -> float:
    """Mean loss in nats per token of ` key` after the prompt."""
    answer = pieces(model, f" {key}")
    return last_token_losses(model, [[*prompt, *answer]], len(answer)).mean().item()
