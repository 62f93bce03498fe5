"""Inferencer `hf`: batched sampling from any Transformers model, one prefill per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from lmflow.components import Inferencer
from lmflow.errors import DataError
from lmflow.inference.batching import batches_by_length
from lmflow.inference.completion import Completion, FinishReason, Prompt, Sampling

if TYPE_CHECKING:
    import torch

    from lmflow.models import LanguageModel

LEAVE_SHARE = 8
"""Finished rows leave the batch once they are one in so many: leaving copies the cache, staying computes in vain."""


class HuggingFace(Inferencer):
    """Sample with Transformers: batches by length, one prefill per prompt, finished rows leave."""

    name = "hf"

    batch_tokens: int = Field(32_768, gt=0, description="Most tokens in the key-value cache of a batch.")

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw completions batch by batch; see `Inferencer.generate`."""
        from lmflow.inference.decoder import for_inference

        check_prompts(prompts, model.context_length)
        lengths = [len(prompt.ids) for prompt in prompts]
        distinct = 1 if sampling.temperature == 0 else sampling.n  # greedy samples are all the same
        completions: list[list[Completion]] = [[] for _ in prompts]
        with for_inference(model.module):
            for batch in batches_by_length(lengths, distinct, sampling.max_new_tokens, self.batch_tokens):
                drawn = _draw_batch(model, [prompts[i] for i in batch], sampling, distinct, progress)
                for place, index in enumerate(batch):
                    rows = drawn[place * distinct : (place + 1) * distinct]
                    completions[index] = rows * (sampling.n // distinct)
        return completions

    def stream(self, model: LanguageModel, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the text of the completion `generate` gives, as it becomes final."""
        import torch

        from lmflow.inference.decoder import Decoder, for_inference
        from lmflow.inference.sampling import uniform_streams
        from lmflow.inference.stopping import TextStream

        check_prompts([prompt], model.context_length)
        text = TextStream(model.decode, sampling.stop)
        uniforms = uniform_streams([prompt.ids], 1, sampling.max_new_tokens, sampling.seed).to(model.device)
        room = rooms([prompt], sampling, model.context_length)[0]
        with for_inference(model.module):
            decoder = Decoder(model.module, [prompt], model.pad_id, room)
            logits = decoder.prefill(1)
            for step in range(room):
                token, _ = _draw_step(logits, uniforms[:, step], sampling, model.end_ids, step)
                if int(token) in model.end_ids:
                    break
                yield text.add(int(token))
                if text.stopped:
                    return
                if step + 1 < room:
                    with torch.no_grad():  # the caller ran in between
                        logits = decoder.step(token)
        yield text.finish()


def check_prompts(prompts: Sequence[Prompt], context_length: int | None) -> None:
    """Raise DataError for a prompt without a token, or without room for one more."""
    for number, prompt in enumerate(prompts, 1):
        if not len(prompt.ids):
            raise DataError(f"Prompt {number} of {len(prompts)} is empty; there is nothing to continue.")
        if context_length is not None and len(prompt.ids) >= context_length:
            raise DataError(
                f"Prompt {number} of {len(prompts)} has {len(prompt.ids)} tokens; the model's context is "
                f"{context_length}, which leaves no room for an answer. Shorten it."
            )


def rooms(prompts: Sequence[Prompt], sampling: Sampling, context_length: int | None) -> list[int]:
    """New tokens each prompt may get: `max_new_tokens`, or up to the end of the context."""
    if context_length is None:
        return [sampling.max_new_tokens] * len(prompts)
    return [min(sampling.max_new_tokens, context_length - len(prompt.ids)) for prompt in prompts]


def _draw_step(
    logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling, end_ids: Sequence[int], step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their log-probabilities, (R,) each, from next-token logits (R, V)."""
    from lmflow.inference.sampling import draw, filtered_logprobs

    if step < sampling.min_new_tokens:
        logits[:, list(end_ids)] = float("-inf")
    logprobs = filtered_logprobs(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    tokens = draw(logprobs, uniforms, sampling.temperature)
    return tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _draw_batch(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    n: int,
    progress: Callable[[int], None] | None,
) -> list[Completion]:
    """n completions for each prompt of one batch, prompt by prompt."""
    import torch

    from lmflow.inference.decoder import Decoder
    from lmflow.inference.sampling import uniform_streams
    from lmflow.inference.stopping import cut_at_stop

    device = model.device
    limits = torch.tensor(rooms(prompts, sampling, model.context_length)).repeat_interleave(n)
    longest = int(limits.max())
    uniforms = uniform_streams([prompt.ids for prompt in prompts], n, longest, sampling.seed).to(device)
    rows = len(prompts) * n
    tokens = torch.zeros(rows, longest, dtype=torch.long)
    logprobs = torch.zeros(rows, longest)
    counts = torch.zeros(rows, dtype=torch.long)
    reasons: list[FinishReason] = ["length"] * rows
    end_ids = torch.tensor(model.end_ids, device=device)

    decoder = Decoder(model.module, prompts, model.pad_id, longest)
    logits = decoder.prefill(n)
    present = torch.arange(rows)  # which completion each row of the cache is
    running = torch.ones(rows, dtype=torch.bool)  # by row of the cache
    for step in range(longest):
        drawn, scores = _draw_step(logits, uniforms[present.to(device), step], sampling, model.end_ids, step)
        on_cpu = drawn.cpu()
        active = present[running]
        tokens[active, step] = on_cpu[running]
        logprobs[active, step] = scores.cpu()[running]
        counts[active] = step + 1
        ended = torch.isin(drawn, end_ids).cpu() & running
        for index in present[ended].tolist():
            reasons[index] = "eos"
        stopped = torch.zeros_like(ended)
        if sampling.stop:
            for row in (running & ~ended).nonzero().flatten().tolist():
                index = int(present[row])
                if cut_at_stop(model.decode(tokens[index, : step + 1].tolist()), sampling.stop) is not None:
                    reasons[index] = "stop"
                    stopped[row] = True
        if progress is not None:
            progress(int(running.sum()))
        running = running & ~ended & ~stopped & (limits[present] > step + 1)
        alive = int(running.sum())
        if not alive:
            break
        if (len(running) - alive) * LEAVE_SHARE >= len(running):
            staying = running.nonzero().flatten()
            decoder.keep(staying.to(device))
            drawn, present, running = drawn[staying.to(device)], present[staying], running[staying]
        logits = decoder.step(drawn)
    return [
        _completion(model, tokens[i, : counts[i]].tolist(), logprobs[i, : counts[i]].tolist(), reasons[i], sampling)
        for i in range(rows)
    ]


def _completion(
    model: LanguageModel, ids: list[int], logprobs: list[float], reason: FinishReason, sampling: Sampling
) -> Completion:
    from lmflow.inference.stopping import cut_at_stop

    text = model.decode([token for token in ids if token not in model.end_ids])
    cut = cut_at_stop(text, sampling.stop)
    return Completion(tuple(ids), text if cut is None else cut, tuple(logprobs), reason)
