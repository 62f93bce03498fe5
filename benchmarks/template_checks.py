"""Whether what lmflow trains of a dialogue is right, judged by the chat template and the dialogue alone.

None of lmflow's own checks is used: texts come from transformers' rendering of every form in which turns can be handed
over, and the facts of a turn are looked for in the decoded tokens that are trained.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, product
from typing import Any

from template_records import facts_of, place_of, squeezed

from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.errors import LmflowError

Encode = Callable[..., list[list[TokenSequence]]]
Ask = Callable[[Any, Sample], list[int]]
CLOSED_THOUGHT = re.compile(r"^\s*</think>\s*")
BESIDE = (("reasoning_content",), ("thinking",), ("reasoning_content", "thinking", "reasoning"))


@dataclass(frozen=True)
class Outcome:
    """What became of a dialogue: "trained", "refused" or "wrong", and why."""

    status: str
    reason: str = ""
    sound: bool = False
    """Of a refused one, whether the template writes all of it, each answer after its prompt."""


class Fault(Exception):
    """Something is trained that should not be, or not trained that should."""


def assess(tokenizer: Any, sample: Sample, encode: Encode, ask: Ask) -> Outcome:
    """What lmflow makes of the sample, and whether that is right."""
    try:
        [sequences] = encode(tokenizer, [sample], end_ids=[tokenizer.eos_token_id])
    except LmflowError as error:
        return Outcome("refused", str(error), is_sound(tokenizer, sample))
    except Exception as error:  # any other is a fault of lmflow's, whatever it is
        return Outcome("wrong", f"{type(error).__name__}: {error}")
    try:
        Trained(tokenizer, sample, sequences, ask).check()
    except Fault as fault:
        return Outcome("wrong", str(fault))
    return Outcome("trained")


def answers(sample: Sample) -> list[int]:
    """The places of the assistant's turns."""
    return [index for index, turn in enumerate(sample.messages) if turn.role == "assistant"]


# What the template itself writes


def forms(turns: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """The turns in each form in which a template may want them."""
    thoughts = [("given",)]
    if any("<think>" in turn.content or turn.thinking for turn in turns):
        thoughts += [("inside",), *BESIDE]
    calls = any(turn.tool_calls for turn in turns)
    for parts, text, named in product((False, True), (False, True) if calls else (False,), (False, calls)):
        yield from (_handed(turns, parts, text, named, each) for each in thoughts)


def _handed(
    turns: Sequence[Message], parts: bool, text: bool, named: bool, thoughts: tuple[str, ...]
) -> list[dict[str, Any]]:
    ids: dict[str, str] = {}
    made = [_turn(turn, parts, text, thoughts) for turn in turns]
    for turn in made:
        for call in turn.get("tool_calls", ()) if named else ():
            ids[call["id"]] = f"functions.{call['function']['name']}:{len(ids)}"
            call["id"] = ids[call["id"]]
        if "tool_call_id" in turn:
            turn["tool_call_id"] = ids.get(turn["tool_call_id"], turn["tool_call_id"])
    return made


def _turn(turn: Message, parts: bool, text: bool, thoughts: tuple[str, ...]) -> dict[str, Any]:
    thought, content = _thought(turn, thoughts)
    made: dict[str, Any] = {"role": turn.role, "content": [{"type": "text", "text": content}] if parts else content}
    made |= dict.fromkeys(BESIDE[-1] if thoughts == ("given",) else thoughts, thought) if thought else {}
    if turn.tool_calls:
        made["tool_calls"] = [_call(call, text) for call in turn.tool_calls]
    made |= {"name": turn.name, "tool_call_id": turn.tool_call_id} if turn.role == "tool" else {}
    return made


def _thought(turn: Message, thoughts: tuple[str, ...]) -> tuple[str | None, str]:
    """What stands beside the content, and the content."""
    inside, closed, content = turn.content.partition("</think>")
    if thoughts == ("inside",) and turn.thinking:
        return None, f"<think>\n{turn.thinking}\n</think>\n\n{turn.content}"
    if thoughts in BESIDE and closed:
        return inside.replace("<think>", "").strip(), content.lstrip()
    return turn.thinking, turn.content


def _call(call: Any, text: bool) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    return {**call, "function": {**call["function"], "arguments": json.dumps(arguments) if text else dict(arguments)}}


def texts(tokenizer: Any, sample: Sample, count: int, *, prompt: bool) -> Iterator[str | None]:
    """The first `count` turns as the template writes each form of them; None for a form that it refuses."""
    for turns in forms(sample.messages):
        try:
            yield tokenizer.apply_chat_template(
                turns[:count],
                tools=[dict(tool) for tool in sample.tools] or None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception:  # a template is a program of the model's maker: it can raise anything
            yield None


def is_sound(tokenizer: Any, sample: Sample) -> bool:
    """Whether there is a form of which the template writes every fact, each answer right behind its prompt."""
    every = answers(sample)
    prompts = [list(texts(tokenizer, sample, index, prompt=True)) for index in every]
    wholes = [list(texts(tokenizer, sample, index + 1, prompt=False)) for index in every]
    offered = [str(tool["function"]["name"]) for tool in sample.tools]
    for form in range(len(prompts[0])):
        pairs = [(prompt[form], whole[form]) for prompt, whole in zip(prompts, wholes, strict=True)]
        if all(
            asked and said and _is_written(sample, index, asked, said, offered)
            for index, (asked, said) in zip(every, pairs, strict=True)
        ):
            return True
    return False


def _is_written(sample: Sample, index: int, asked: str, said: str, offered: Sequence[str]) -> bool:
    before = [fact for turn in sample.messages[:index] if turn.role != "assistant" for fact in facts_of(turn)]
    answer = squeezed(said[len(asked) :])
    return (
        said.startswith(asked)
        and all(place_of(fact, squeezed(asked)) is not None for fact in [*before, *offered])
        and all(place_of(fact, answer) is not None for fact in facts_of(sample.messages[index]))
    )


# What is trained


@dataclass(frozen=True)
class Trained:
    """The token sequences of a sample, and the prompt of each of its answers."""

    tokenizer: Any
    sample: Sample
    sequences: Sequence[TokenSequence]
    ask: Ask

    def check(self) -> None:
        """Raise Fault at the first thing that is wrong."""
        for sequence in self.sequences:
            self._check_untrained(sequence)
        for index in self.prompts:
            self._check_answer(index)
        for index in self.prompts:
            self._check_prompt(index)
        for sequence in self.sequences:
            self._check_text(sequence)

    @cached_property
    def prompts(self) -> dict[int, list[int]]:
        """The prompt that each answer is asked for with."""
        made = {}
        for index in answers(self.sample):
            try:
                made[index] = list(self.ask(self.tokenizer, self._upto(index)))
            except LmflowError as error:
                raise Fault(f"turn {index + 1} is trained and its prompt refused: {error}") from error
        return made

    def _upto(self, index: int) -> Sample:
        return replace(self.sample, messages=self.sample.messages[: index + 1])

    def _check_prompt(self, index: int) -> None:
        own = texts(self.tokenizer, self._upto(index), index, prompt=True)
        if not any(text is not None and self._ids(text) == self.prompts[index] for text in own):
            raise Fault(
                f"the prompt of turn {index + 1} is not the template's: …{self._decode(self.prompts[index][-12:])!r}"
            )

    def _check_untrained(self, sequence: TokenSequence) -> None:
        """No token before the first prompt is trained, nor any word of another role."""
        first = min((len(ids) for ids in self._begin(sequence).values()), default=0)
        if any(sequence.loss_mask[:first]):
            raise Fault("tokens before the first answer are trained")
        trained = squeezed("\n".join(map(self._decode, self._runs(sequence, 0, len(sequence)))))
        for turn in self.sample.messages:
            if turn.role != "assistant" and any(place_of(fact, trained) is not None for fact in facts_of(turn)):
                raise Fault(f"what {turn.role} says is trained: {turn.content!r}")

    def _check_text(self, sequence: TokenSequence) -> None:
        """The text is the template's own, to which an end may be added where it has none."""
        text = self._decode(sequence.ids)
        counts = [*(index + 1 for index in self.prompts), len(self.sample.messages)]
        own = {
            each
            for count in counts
            for each in texts(self.tokenizer, self.sample, count, prompt=False)
            if each is not None
        }
        if text in own or self._continues(sequence, text, own):
            return
        shorter = self._decode(sequence.ids[:-1]).rstrip()
        if all(each.rstrip() != shorter for each in own):
            raise Fault(f"the text is not the template's own: …{text[-60:]!r}")
        answer = shorter[max((len(self._decode(ids)) for ids in self._begin(sequence).values()), default=0) :]
        if answer.endswith(tuple(self.tokenizer.all_special_tokens)):
            raise Fault(f"a second end is added: …{text[-60:]!r}")

    def _continues(self, sequence: TokenSequence, text: str, own: Collection[str]) -> bool:
        """Whether the text is the template's prompt, which has an empty thought or opens one, and its own answer."""
        prompts = [self._decode(ids) for ids in self._begin(sequence).values()]
        if not prompts or any(each.startswith(max(prompts, key=len)) for each in own):
            return False
        answer = CLOSED_THOUGHT.sub("", text[max(map(len, prompts)) :])
        ends = (answer, self._without_end(answer))
        if not ends[1].strip():
            return True  # an empty answer, of which the prompts are looked at elsewhere
        return any(each.rstrip().endswith(end.rstrip()) for each in own for end in ends if end.strip())

    def _without_end(self, answer: str) -> str:
        end = next((each for each in self.tokenizer.all_special_tokens if answer.endswith(each)), "")
        return answer.removesuffix(end)

    def _check_answer(self, index: int) -> None:
        """The answer is trained once, whole, behind its prompt, with one end."""
        held = [each for each in self.sequences if index in self._begin(each)]
        if not held:
            raise Fault(f"no text begins with the prompt of turn {index + 1}")
        runs = [found for each in held if (found := self._runs(each, *self._region(each, index)))]
        if not runs:
            raise Fault(f"nothing of turn {index + 1} is trained")
        if len(runs) > 1:
            raise Fault(f"turn {index + 1} is trained {len(runs)} times")
        self._check_runs(index, [squeezed(self._decode(ids)) for ids in runs[0]])

    def _check_runs(self, index: int, texts: Sequence[str]) -> None:
        """The first runs of trained tokens hold the answer; nothing is trained after them."""
        facts = facts_of(self.sample.messages[index])
        for number in range(1, len(texts) + 1):
            text = "".join(texts[:number])
            if all(place_of(fact, text) is not None for fact in facts) or number == len(texts):
                self._check_facts(index, text)
                if rest := "".join(texts[number:]):
                    raise Fault(f"what follows turn {index + 1} is trained: {rest[:40]!r}")
                return

    def _check_facts(self, index: int, text: str) -> None:
        places = {fact: place_of(fact, text) for fact in facts_of(self.sample.messages[index])}
        for fact, place in places.items():
            if place is None:
                raise Fault(f"{fact!r} of turn {index + 1} is not trained")
        end = text[max((place for place in places.values() if place), default=0) :]
        found = [each for each in self.tokenizer.all_special_tokens if end.endswith(squeezed(each))]
        if not found:
            raise Fault(f"no end of turn {index + 1} is trained: …{text[-40:]!r}")
        if any(end.endswith(squeezed(each) * 2) for each in found):
            raise Fault(f"the end of turn {index + 1} is trained twice: …{text[-40:]!r}")

    def _begin(self, sequence: TokenSequence) -> dict[int, list[int]]:
        """The prompts that begin the sequence, by turn."""
        return {index: ids for index, ids in self.prompts.items() if list(sequence.ids[: len(ids)]) == ids}

    def _region(self, sequence: TokenSequence, index: int) -> tuple[int, int]:
        """The tokens from an answer's prompt to the end of the next one's."""
        later = [len(ids) for other, ids in self._begin(sequence).items() if other > index]
        return len(self.prompts[index]), min(later, default=len(sequence))

    def _runs(self, sequence: TokenSequence, start: int, end: int) -> list[list[int]]:
        """The trained tokens between two places, those that stand together in one list."""
        pairs = zip(sequence.loss_mask[start:end], sequence.ids[start:end], strict=True)
        return [[token for _, token in run] for on, run in groupby(pairs, key=lambda pair: pair[0]) if on]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def count(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How many outcomes there are of each kind; "sound" are those refused without need."""
    return Counter(each.status for each in outcomes) + Counter(sound=sum(each.sound for each in outcomes))
