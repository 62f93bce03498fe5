"""The `data` section of a recipe, the same for all formats: where records lie, how samples become rows of tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class Reading(BaseModel):
    """Where records lie and which of them are read, whatever they mean."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    path: str | None = Field(
        None, description="File or directory of records (JSON, JSON lines, CSV, Parquet, text), or a hub name."
    )
    subset: str | None = Field(None, description="Which configuration of a data set that has several, as on the hub.")
    split: str | None = Field(
        None, description="Which split of a data set that has several, as on the hub; train if unset."
    )
    mix: dict[str, float] = Field(
        {},
        description="Several of them, each with how often its records come in an epoch: a.jsonl=1,b.csv=0.5.",
    )
    columns: dict[str, str] = Field(
        {}, description="Fields that are called otherwise in the file: OURS=THEIRS,OURS=THEIRS."
    )
    ignore: list[str] = Field(
        [], description="Fields left out before records are looked at, as the file calls them: label,messages.weight."
    )
    on_bad_record: Literal["error", "skip"] = Field(
        "error", description="What to do with records that cannot be used: stop, or leave them out and count them."
    )
    streaming: bool | None = Field(
        None, description="Read samples from disk when they are needed; if unset, those of more than 256 MB."
    )
    limit: int | None = Field(None, gt=0, description="Use only the first so many records.")


class DataOptions(Reading):
    """Where records lie, and how they are split, cut and packed, whatever they mean."""

    may_change: ClassVar[tuple[str, ...]] = ("streaming",)
    """Options that a run may be resumed with other values of, since the result stays the same."""

    max_length: int | None = Field(None, gt=1, description="Longest sample, in tokens; the model's context if unset.")
    too_long: Literal["auto", "error", "truncate", "skip", "split"] = Field(
        "auto", description="What becomes of longer samples; auto splits plain text and truncates everything else."
    )
    packing: bool | Literal["auto"] = Field(
        "auto",
        description="Fill each row with several samples, none of which sees another; auto does where the model allows "
        "it and padding would be more than a tenth.",
    )
    validation: float | str = Field(
        0.05, description="Share of the records held out for evaluation, or the path of a file that holds them."
    )
    template: str | None = Field(
        None, description="Chat template, by name (chatml, llama3, …) or a Jinja file; the model's own if unset."
    )
    template_arguments: dict[str, bool | int | float | str] = Field(
        {}, description="What the chat template is called with, and keeps: enable_thinking=false,NAME=VALUE."
    )
    special_tokens: Literal["text", "keep"] | None = Field(
        None,
        description="Special tokens that stand in contents: encoded as text, or kept as what they are, also where the "
        "result is asked; if unset as the model was trained, else text.",
    )
    train_on: str = Field(
        "assistant", pattern="^(assistant|last|all)$", description="Tokens with a loss: answers, the last one, or all."
    )
