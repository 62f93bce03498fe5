"""Decoders without padding, for models whose caches cannot bear it: rows in groups, and rows without any cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.data.sample import Prompt
from lmflow.inference.decoder import RowDecoder, beneath_adapter, check_decodable, concatenate_inputs

PASS_TOKENS = 4096
"""Most tokens that are read in one forward pass without a cache: every position may get logits."""


@dataclass(slots=True)
class Group:
    """Rows that one decoder holds, and where each of them stands among all rows."""

    decoder: RowDecoder
    places: list[int]


class GroupedDecoder:
    """Rows in groups, each with a decoder of its own, made by `make`: no group holds padding.

    Rows of prompts of equal length are a group; with `alone` every row is one, and its prompt is read for it alone.
    """

    flexible = True

    def __init__(self, make: Callable[[], RowDecoder], *, alone: bool = False) -> None:
        self._make = make
        self._alone = alone
        self._groups: list[Group] = []

    @property
    def width(self) -> int:
        """Positions of the longest row."""
        return max(group.decoder.width for group in self._groups)

    def prefill(self, prompts: Sequence[Prompt], repeats: Sequence[int] | None = None) -> Tensor:
        """Read the prompts, group by group: logits of the next token of each row, (R, V)."""
        counts = [1] * len(prompts) if repeats is None else repeats
        starts = [sum(counts[:index]) for index in range(len(prompts))]
        if self._alone:
            chosen = [[(index, [start + i], 1)] for index, start in enumerate(starts) for i in range(counts[index])]
        else:
            lengths = dict.fromkeys(len(prompt.ids) for prompt in prompts)
            chosen = [
                [
                    (index, list(range(starts[index], starts[index] + counts[index])), counts[index])
                    for index, prompt in enumerate(prompts)
                    if len(prompt.ids) == length
                ]
                for length in lengths
            ]
        found = []
        for members in chosen:
            decoder = self._make()
            found.append(decoder.prefill([prompts[i] for i, _, _ in members], [times for _, _, times in members]))
            self._groups.append(Group(decoder, [place for _, places, _ in members for place in places]))
        return self._in_order(found)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, (R,), and return the logits of the next, (R, V)."""
        return self._in_order(
            [group.decoder.step(tokens[torch.tensor(group.places, device=tokens.device)]) for group in self._groups]
        )

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those at the indices `rows`; groups without a row are gone."""
        wanted: list[int] = rows.tolist()
        groups = []
        for group in self._groups:
            held = {place: index for index, place in enumerate(group.places)}
            staying = [(new, held[old]) for new, old in enumerate(wanted) if old in held]
            if not staying:
                continue
            local = [index for _, index in staying]
            if local != list(range(len(group.places))):
                group.decoder.keep(torch.tensor(local, device=rows.device))
            groups.append(Group(group.decoder, [new for new, _ in staying]))
        self._groups = groups

    def concat(self, other: GroupedDecoder) -> None:
        """Add the groups of another decoder below these."""
        rows = sum(len(group.places) for group in self._groups)
        self._groups += [Group(each.decoder, [rows + place for place in each.places]) for each in other._groups]

    def _in_order(self, found: Iterable[Tensor]) -> Tensor:
        """Logits of the groups as those of the rows in order."""
        logits = torch.cat(list(found))
        places = [place for group in self._groups for place in group.places]
        return logits[torch.tensor(places, device=logits.device).argsort()]


class UncachedDecoder:
    """Rows that are read anew for every token, with nothing kept: slow, and right for every causal model.

    Rows are padded on the right, where a causal model does not look.
    """

    flexible = True

    def __init__(self, module: nn.Module) -> None:
        check_decodable(module)
        self._module = module
        self._device = next(module.parameters()).device
        takes = inspect.signature(beneath_adapter(module).forward).parameters
        self._keeps = "logits_to_keep" in takes
        self._prompts: list[Prompt] = []
        self._rows: list[list[int]] = []

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self._rows))

    def prefill(self, prompts: Sequence[Prompt], repeats: Sequence[int] | None = None) -> Tensor:
        """Read the prompts, each once, and repeat row i `repeats[i]` times: logits of the next token, (R, V)."""
        self._prompts, self._rows = list(prompts), [list(prompt.ids) for prompt in prompts]
        logits = self._read()
        if repeats is None:
            return logits
        repeated = [index for index, times in enumerate(repeats) for _ in range(times)]
        self._prompts = [prompts[index] for index in repeated]
        self._rows = [list(prompts[index].ids) for index in repeated]
        return logits[torch.tensor(repeated, device=logits.device)]

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, (R,), and return the logits of the next, (R, V)."""
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._read()

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those at the indices `rows`."""
        wanted: list[int] = rows.tolist()
        self._prompts = [self._prompts[index] for index in wanted]
        self._rows = [list(self._rows[index]) for index in wanted]

    def concat(self, other: UncachedDecoder) -> None:
        """Add the rows of another decoder below these."""
        self._prompts += other._prompts
        self._rows += other._rows

    def _read(self) -> Tensor:
        """Logits after the last token of every row, (R, V)."""
        size = max(1, PASS_TOKENS // self.width)
        parts = range(0, len(self._rows), size)
        return torch.cat([self._read_some(self._rows[i : i + size], self._prompts[i : i + size]) for i in parts])

    def _read_some(self, rows: Sequence[Sequence[int]], prompts: Sequence[Prompt]) -> Tensor:
        width, shortest = max(map(len, rows)), min(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self._device)
        inputs: dict[str, Any] = dict(concatenate_inputs(prompts, self._device))
        skipped = 0
        if self._keeps:
            skipped = shortest - 1
            inputs["logits_to_keep"] = width - skipped
        logits: Tensor = self._module(input_ids=ids, use_cache=False, **inputs).logits
        last = torch.tensor([len(row) - 1 - skipped for row in rows], device=logits.device)
        return logits[torch.arange(len(rows), device=logits.device), last].float()
