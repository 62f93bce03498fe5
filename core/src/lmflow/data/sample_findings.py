"""What is wrong with samples before they are tokens: odd turns, the same sample twice, held-out samples trained on."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import pairwise, zip_longest
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from lmflow.data.findings import Findings
from lmflow.data.sample import Message, Sample

DIGEST_BYTES = 8
"""Of ten million samples, two that differ have the same digest with a probability of 3 in a million."""
MANY_DUPLICATES = 0.1
"""Where more than this share of the samples occurs before, duplicates are worth a warning."""
ALL_OF_TURN = attrgetter(*(each.name for each in fields(Message)))
"""All fields of a turn: as a tuple they are written in a fraction of the time that a dataclass takes."""
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
Keys = npt.NDArray[np.uint64]


def find_in_samples(train: Sequence[Sample], heldout: Sequence[Sample], findings: Findings) -> None:
    """Add what is wrong with samples, and what the two parts share.

    Takes 24 bytes of memory for each sample. A sample that a mix repeats by its weight is one sample.
    """
    says, sources, prompts = _keys(train, findings)
    held_says, _, held_prompts = _keys(heldout, findings)
    once = np.sort(np.unique(says ^ sources, return_index=True)[1])
    repeated = list(_repeated(says[once]))
    for index, first in repeated:
        findings.add("duplicate", train[once[index]].source, f"the same as {train[once[first]].source}")
    if len(repeated) > MANY_DUPLICATES * len(once):
        findings.changed["duplicate"] = "warning"
    for index, (same, asked) in enumerate(zip(_found(held_says, says), _found(held_prompts, prompts), strict=True)):
        sample = heldout[index]
        if same is not None:
            findings.add("leak", sample.source, f"the same as {train[same].source}")
        elif asked is not None and len(sample.messages) > 1:
            findings.add("shared_prompt", sample.source, f"the prompt of {train[asked].source}")


def _keys(samples: Iterable[Sample], findings: Findings) -> tuple[Keys, Keys, Keys]:
    """Digests of what each sample says, of where it is from, and of what it asks; its odd turns are added."""
    says, sources, prompts = array("Q"), array("Q"), array("Q")
    for sample in samples:
        for kind, detail in turn_findings(sample):
            findings.add(kind, sample.source, detail)
        said, asked = digests_of(sample)
        says.append(said)
        sources.append(hash(sample.source) % (1 << 64))
        prompts.append(asked)
    one, two, three = (np.frombuffer(each, dtype=np.uint64) for each in (says, sources, prompts))
    return one, two, three


def _repeated(keys: Keys) -> Iterator[tuple[int, int]]:
    """Each place of a key that occurs before, and its first place."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    firsts = first[inverse]
    for index in np.flatnonzero(firsts != np.arange(len(keys))):
        yield int(index), int(firsts[index])


def _found(wanted: Keys, keys: Keys) -> Iterator[int | None]:
    """The first place of each of `wanted` among `keys`; None where there is none."""
    known, first = np.unique(keys, return_index=True)
    for key, place in zip(wanted, np.searchsorted(known, wanted), strict=True):
        yield int(first[place]) if place < len(known) and known[place] == key else None


def turn_findings(sample: Sample) -> Iterator[tuple[str, str]]:
    """What is odd about a sample's turns, as kinds and details."""
    yield from (("empty_turn", f"turn {place}") for place in empty_turns(sample.messages))
    if sample.rejected:
        yield from (("empty_turn", f"rejected turn {place}") for place in empty_turns(sample.rejected))
        if sample.rejected == sample.messages:
            yield "same_answers", "chosen and rejected are the same"
        yield from (("other_prompt", detail) for detail in other_prompts(sample))
    yield from (("inner_thought", detail) for turns in (sample.messages, sample.rejected) for detail in inner(turns))
    if sample.templated:
        yield from role_findings([turn.role for turn in sample.messages])


def other_prompts(sample: Sample) -> Iterator[str]:
    """Where the two dialogues of a preference differ before the assistant has spoken: in what it is asked."""
    if sample.label is not None:
        return
    for number, (chosen, rejected) in enumerate(zip_longest(sample.messages, sample.rejected), 1):
        if chosen != rejected:
            asks = [turn for turn in (chosen, rejected) if turn is not None and turn.role != "assistant"]
            if asks:
                yield f"the dialogues differ first in turn {number}, which is the {asks[0].role}'s"
            return


def inner(turns: Sequence[Message]) -> Iterator[str]:
    """Number of each answer in which a whole thought stands behind other text, or behind another thought."""
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and (found := THOUGHT.search(turn.content)):
            second = THOUGHT.search(turn.content, found.end())
            if turn.content[: found.start()].strip() or turn.thinking or second:
                yield f"turn {number} (assistant): put it first, or beside the answer as reasoning_content"


def role_findings(roles: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is odd about the order of a dialogue's roles, as kinds and details."""
    odd = []
    if "system" in roles[1:]:
        odd.append(f"turn {roles.index('system', 1) + 1} is the system's, which comes first or not at all")
    spoken = [role for role in roles if role != "system"]
    if spoken and spoken[0] != "user":
        odd.append(f"the dialogue begins with {spoken[0]}")
    twice = next((before for before, after in pairwise(spoken) if before == after and before != "tool"), None)
    if twice is not None:
        odd.append(f"two turns of {twice} in a row")
    if odd:
        yield "role_order", "; ".join(odd)
    if spoken and spoken[-1] in ("user", "tool") and "assistant" in spoken:
        yield "unanswered", f"the last turn is the {spoken[-1]}'s; nothing answers it"


def empty_turns(turns: Sequence[Message]) -> Iterator[str]:
    """Number and role of each turn that says, thinks, shows and calls nothing."""
    for number, turn in enumerate(turns, 1):
        if not (turn.content.strip() or turn.thinking or turn.images or turn.tool_calls):
            yield f"{number} ({turn.role})"


def digests_of(sample: Sample) -> tuple[int, int]:
    """Digests of all that a sample says, and of what it asks, whatever file it is from."""
    last_is_answer = sample.messages[-1].role == "assistant" and len(sample.messages) > 1
    asked = sample.messages[:-1] if last_is_answer else sample.messages
    digest = hashlib.blake2b(_written(list(map(ALL_OF_TURN, asked)), sample.tools), digest_size=DIGEST_BYTES)
    asks = int.from_bytes(digest.digest(), "little")
    answer, rejected = (list(map(ALL_OF_TURN, turns)) for turns in (sample.messages[len(asked) :], sample.rejected))
    digest.update(_written(answer, rejected, sample.label, sample.answers))
    return int.from_bytes(digest.digest(), "little"), asks


def _written(*parts: object) -> bytes:
    return repr(parts).encode("utf-8", "surrogatepass")
