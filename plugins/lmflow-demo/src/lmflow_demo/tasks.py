"""The embedded tasks: short questions with checkable answers, and the careless answer each one invites."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "lamp",
    "paper",
    "music",
    "winter",
    "garden",
    "silver",
    "table",
    "window",
    "forest",
    "bread",
    "candle",
    "mirror",
    "pencil",
    "rabbit",
    "summer",
    "bottle",
    "copper",
    "dragon",
    "engine",
    "flower",
    "guitar",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "marble",
    "needle",
    "orange",
    "planet",
    "ribbon",
    "saddle",
    "ticket",
    "valley",
    "wagon",
    "yellow",
    "anchor",
    "basket",
    "cotton",
    "desert",
    "falcon",
    "ginger",
    "harbor",
    "insect",
    "jungle",
    "lemon",
    "meadow",
    "novel",
    "ocean",
    "parrot",
    "quartz",
    "rocket",
    "sailor",
    "tunnel",
    "violin",
    "walnut",
]


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its answer, and the wrong answer someone careless would give."""

    family: str
    prompt: str
    answer: str
    careless: str


def make_sort(draw: random.Random) -> Task:
    """Sort digits; carelessly: leave them as they are."""
    digits = draw.sample(range(10), draw.choice((3, 4)))
    given, answer = (" ".join(map(str, each)) for each in (digits, sorted(digits)))
    return Task("sort", f"Sort the numbers: {given}", answer, given)


def make_largest(draw: random.Random) -> Task:
    """Name the largest digit; carelessly: the first."""
    digits = draw.sample(range(10), draw.choice((3, 4)))
    return Task("largest", f"Largest number: {' '.join(map(str, digits))}", str(max(digits)), str(digits[0]))


def make_reverse(draw: random.Random) -> Task:
    """Reverse a list of words; carelessly: repeat it."""
    words = draw.sample(WORDS, draw.choice((2, 3)))
    return Task("reverse", f"Reverse the list: {' '.join(words)}", " ".join(reversed(words)), " ".join(words))


def make_last(draw: random.Random) -> Task:
    """Name the last word; carelessly: the first."""
    words = draw.sample(WORDS, draw.choice((3, 4)))
    return Task("last", f"Last word of: {' '.join(words)}", words[-1], words[0])


def make_count(draw: random.Random) -> Task:
    """Count words; carelessly: one too many."""
    words = draw.sample(WORDS, draw.randint(2, 6))
    return Task("count", f"Count the words: {' '.join(words)}", str(len(words)), str(len(words) + 1))


FAMILIES: tuple[Callable[[random.Random], Task], ...] = (
    make_sort,
    make_largest,
    make_reverse,
    make_last,
    make_count,
)


def make_tasks(count: int, seed: int, exclude: frozenset[str] = frozenset()) -> list[Task]:
    """`count` tasks with distinct prompts, none of them in `exclude`, families in turn while they last.

    An answer never equals its careless twin. The same arguments give the same tasks on every machine.
    """
    draw = random.Random(seed)
    seen = set(exclude)
    tasks: list[Task] = []
    misses = 0
    while len(tasks) < count:
        task = FAMILIES[(len(tasks) + misses) % len(FAMILIES)](draw)
        if task.prompt in seen or task.answer == task.careless:
            misses += 1  # a small family may be used up: move on to the next
            continue
        seen.add(task.prompt)
        tasks.append(task)
    return tasks
