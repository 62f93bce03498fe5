"""What goes into and comes out of an inferencer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["eos", "stop", "length"]


class Sampling(BaseModel):
    """How completions are sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, ge=0, description="Softmax temperature; 0 takes the most probable token.")
    top_k: int = Field(0, ge=0, description="Sample from the k most probable tokens only; 0 samples from all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the smallest set of tokens with this probability.")
    n: int = Field(1, gt=0, description="Completions per prompt.")
    max_new_tokens: int = Field(128, gt=0, description="Longest completion, in tokens.")
    min_new_tokens: int = Field(0, ge=0, description="The end-of-text token cannot be sampled before this many tokens.")
    stop: tuple[str, ...] = Field((), description="Strings that end a completion; they are cut from its text.")
    seed: int = Field(0, ge=0, description="Same seed, prompt and options: same completions, whatever the batch.")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    `ids` holds what was sampled, an end-of-text token included; `text` is decoded without special tokens and cut
    before a stop string. `logprobs[i]` is the log-probability of `ids[i]` under the distribution it was sampled
    from: after temperature, top-k and top-p, and without padding and forbidden ends, which are never sampled; for
    temperature 0 the log-softmax over the same tokens.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
