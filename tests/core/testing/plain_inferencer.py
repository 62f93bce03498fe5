"""A good inferencer, slow and plain, from which those that are broken in one respect differ in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import PrivateAttr

from lmflow.components import Inferencer
from lmflow.data.sample import Prompt
from lmflow.inference.decoder import eval_mode
from lmflow.inference.generate import completion_budgets
from lmflow.inference.sampling import filtered_logprobs, sample, stream_key, uniforms
from lmflow.inference.types import Completion, Sampling
from lmflow.testing import InferencerSuite


class Plain(Inferencer):
    """One token after the other, the whole text read for each: a good inferencer."""

    name = "plain"
    _known: dict[tuple[int, ...], Any] = PrivateAttr(default_factory=dict)
    """Logits by what was read, within one call: a thousand completions of two tokens read the same few texts."""

    def generate(self, request):
        self._known.clear()
        model, samplings = request.model, request.samplings
        limits = [sampling.max_new_tokens for sampling in samplings]
        rooms = completion_budgets(request.prompts, limits, model.context_length)
        with torch.no_grad(), eval_mode(model.module):
            return [
                [self.complete(model, prompt, room, sampling, number, request.progress) for number in range(sampling.n)]
                for prompt, sampling, room in zip(request.prompts, samplings, rooms)
            ]

    def complete(self, model, prompt, room, sampling, number, progress):
        key = self.key(prompt, number, sampling)
        ids, logprobs, text, reason = [], [], "", "length"
        while len(ids) < room:
            logits = self.logits(model, [*prompt.ids, *ids])
            logits[:, list(model.suppressed_ids)] = -torch.inf
            if len(ids) < sampling.min_new_tokens:
                logits[:, list(model.end_ids)] = -torch.inf
            scores = self.distribution(logits, sampling, len(ids))
            token = int(sample(scores, uniforms(torch.tensor([key]), torch.tensor([len(ids)]))))
            ids.append(token)
            given = scores if sampling.temperature else logits.float().log_softmax(-1)  # see `Completion.logprobs`
            logprobs.append(float(given[0, token]))
            if progress:
                progress(1)
            if self.ends(model, token):
                reason = "eos"
                break
            text, stopped = self.cut(model.decode(ids), sampling.stop)
            if stopped:
                return Completion(tuple(ids), text, tuple(logprobs), "stop")
        return Completion(tuple(ids), model.decode(ids), tuple(logprobs), reason)

    def key(self, prompt: Prompt, number: int, sampling: Sampling) -> int:
        return stream_key(prompt.ids, number, sampling.seed)

    def logits(self, model: Any, ids: Sequence[int]) -> Any:
        if tuple(ids) not in self._known:
            self._known[tuple(ids)] = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        return self._known[tuple(ids)].clone()

    def distribution(self, logits: Any, sampling: Sampling, drawn: int) -> Any:
        return filtered_logprobs(logits, sampling.temperature, sampling.top_k, sampling.top_p)

    def ends(self, model: Any, token: int) -> bool:
        return token in model.end_ids

    def cut(self, text: str, stops: Sequence[str]) -> tuple[str, bool]:
        found = [text.index(stop) for stop in stops if stop in text]
        return (text[: min(found)], True) if found else (text, False)


class GlobalRandomness(Plain):
    def key(self, prompt, number, sampling):
        return int(torch.randint(1 << 40, ()))


def fails(examine: Any, broken: type[Inferencer], check: str, message: str) -> bool:
    """Whether the check of the suite, run on that inferencer alone, fails with that message."""
    report = examine(InferencerSuite, inferencer=broken(), only=check.replace("[", " and ").removesuffix("]"))[check]
    assert report.outcome == "failed"
    return " ".join(message.split()) in " ".join(report.message.replace("\nE  ", " ").split())
