"""Completions for prompts from anywhere: a text, a file of records, a folder of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow.components import GenerateRequest, Inferencer
from lmflow.data.containers import read_records
from lmflow.data.dataset import read_samples
from lmflow.data.formats.recognising import Formats
from lmflow.data.sample import Message, Prompt, Sample
from lmflow.errors import DataError, Interrupted, LmflowError
from lmflow.inference.types import Completion, Sampling
from lmflow.recipe.sections.data import Reading

if TYPE_CHECKING:
    from lmflow.components import Log
    from lmflow.inference.completion_file import CompletionFile
    from lmflow.models.language_model import LanguageModel

WINDOW = 256
"""Prompts that are tokenised together: enough to fill batches, few enough for those that hold images."""

IMAGE_MARK = "<image>"

Record = dict[str, Any]


@dataclass(frozen=True)
class Framing:
    """What the user wants around every prompt: a system text, and whether the chat template is left out."""

    system: str | None = None
    raw: bool = False


def prompt_sample(text: str, framing: Framing, images: Sequence[str] = (), source: str = "the prompt") -> Sample:
    """A prompt as a sample.

    Raises DataError where an image is not there, or the marks in the text are not as many as the images.
    """
    for image in images:
        if not image.startswith("data:") and not Path(image).is_file():
            raise DataError(f"{source}: there is no image {image}")
    return frame(Sample((Message("user", marked(text, images, source), tuple(images)),), source=source), framing)


def marked(text: str, images: Sequence[str], source: str) -> str:
    """The text with a mark for each image: its own, or before it if it has none.

    Raises DataError when it has marks, but not as many as there are images.
    """
    marks = text.count(IMAGE_MARK)
    if not images or marks == len(images):
        return text
    if marks:
        raise DataError(f"{source}: it says {IMAGE_MARK} {marks} times, and there are {len(images)} images")
    return f"{IMAGE_MARK * len(images)}\n{text}"


def read_prompts(
    data: Reading,
    formats: Formats,
    framing: Framing,
    note: Callable[[str], None] | None = None,
) -> list[Sample]:
    """The prompts of the records `data` describes; of a .txt file, each line that is not blank.

    A record's own answer stays in its last message. `note` is told of records that `data.on_bad_record` says to skip.
    Raises DataError for records no format recognises.
    """
    if formats.chosen is None and data.path is not None and is_text_file(Path(data.path)):
        return [
            prompt_sample(line, framing, source=f"{record.source}:{number}")
            for record in read_records(Path(data.path))
            for number, line in enumerate(record.fields["text"].splitlines(), 1)
            if line.strip()
        ][: data.limit]
    return [frame(sample, framing) for sample in read_samples(data, formats, note)]


def is_text_file(path: Path) -> bool:
    """Whether the name ends with .txt or .txt.gz."""
    return path.is_file() and Path(path.name.removesuffix(".gz")).suffix.lower() == ".txt"


def frame(sample: Sample, framing: Framing) -> Sample:
    """The sample with the system text, unless it brings its own, and with or without the chat template.

    Raises DataError for a system text where there is no template that could say it.
    """
    templated = sample.templated and not framing.raw
    if framing.system is None or sample.messages[0].role == "system":
        return replace(sample, templated=templated)
    if not templated:
        raise DataError(f"{sample.source}: a system text needs the chat template; leave out --system, or --raw")
    return replace(sample, messages=(Message("system", framing.system), *sample.messages))


def encode_prompt(model: LanguageModel, sample: Sample) -> Prompt:
    """The prompt's tokens. Raises DataError when it is empty or leaves no room for an answer."""
    turn = sample.prompt().messages[-1]
    if sample.templated and not turn.content.strip() and not turn.images:
        raise DataError(f"{sample.source}: the prompt is empty; there is nothing to answer")
    prompt = model.encode_prompt(sample)
    limit = model.context_length
    if not len(prompt.ids):
        raise DataError(f"{sample.source}: the prompt is empty; there is nothing to continue")
    if limit is not None and len(prompt.ids) >= limit:
        raise DataError(
            f"{sample.source}: the prompt has {len(prompt.ids):,} tokens and the model's context is {limit:,}, which "
            "leaves no room for an answer; shorten it, or stretch the context with --context"
        )
    return prompt


def complete(
    model: LanguageModel,
    samples: Mapping[int, Sample],
    inferencer: Inferencer,
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
    *,
    stop_if_none: bool = True,
) -> Iterator[Record]:
    """Yield a record per sample, as they finish: `index` is the sample's key, the rest see `completion_record`.

    A prompt that cannot be answered (too long, a missing image) gets a record with `error` and no completion, so
    that one does not cost the others. With `stop_if_none`, if that is so for all of the first few hundred, the first
    DataError is raised.
    """
    indices = list(samples)
    for start in range(0, len(indices), WINDOW):
        window = indices[start : start + WINDOW]
        prompts: dict[int, Prompt] = {}
        refused: list[tuple[int, DataError]] = []
        for index in window:
            try:
                prompts[index] = encode_prompt(model, samples[index])
            except DataError as error:
                refused.append((index, error))
        if not prompts and start == 0 and stop_if_none:
            raise refused[0][1]
        for index, refusal in refused:
            yield {**completion_record(index, samples[index], []), "error": str(refusal)}
        keys = list(prompts)
        answered = inferencer.generate_each(GenerateRequest(model, list(prompts.values()), sampling, progress))
        for number, completions in answered:
            yield completion_record(keys[number], samples[keys[number]], completions)


def completion_record(index: int, sample: Sample, completions: Sequence[Completion]) -> Record:
    """What is written of one prompt: where it came from, its text, and each completion with why it ended.

    `tokens` counts what was sampled, the end included; `logprob` is the sum of the tokens' log-probabilities. A prompt
    of several turns is there as `messages` too; `expected` is the record's own answer.
    """
    turns = sample.prompt().messages
    record: Record = {"index": index, "source": sample.source, "prompt": sample.prompt_text}
    if len(turns) > 1:
        record["messages"] = [{"role": turn.role, "content": turn.content} for turn in turns]
    if sample.images:
        record["images"] = [image if not image.startswith("data:") else "data:…" for image in sample.images]
    if len(turns) < len(sample.messages):
        record["expected"] = sample.messages[-1].content
    record["completions"] = [
        {
            "text": each.text,
            "finish_reason": each.finish_reason,
            "tokens": len(each.ids),
            "logprob": round(sum(each.logprobs), 6),
        }
        for each in completions
    ]
    return record


def in_order(records: Iterable[Record]) -> Iterator[Record]:
    """The records by index from 0 without a gap, each as soon as those before it are there."""
    waiting: dict[int, Record] = {}
    following = 0
    for record in records:
        waiting[record["index"]] = record
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def complete_to_file(
    model: LanguageModel, file: CompletionFile, inferencer: Inferencer, sampling: Sampling, log: Log
) -> None:
    """Append a record for every prompt `file` lacks, each as soon as it is complete.

    Raises Interrupted, with what is finished kept, when a signal asks to stop, and LmflowError at the end if some
    prompts could not be answered.
    """
    missing = file.missing()
    begun = len(file) > 0
    answered = complete(model, missing, inferencer, sampling, lambda _: log.check_stop(), stop_if_none=not begun)
    try:
        with file, log.phase("generating", len(missing)):
            for record in answered:
                file.append(record)
                log.advance_or_stop()
    except (Interrupted, KeyboardInterrupt) as error:
        number = error.signal_number if isinstance(error, Interrupted) else signal.SIGINT
        text = f"Stopped; {len(file):,} of {file.expected:,} records are in {file.path}."
        raise Interrupted(number, text) from error
    report_refused(file.records, f"; their records in {file.path} say why, and --resume tries them again")


def report_refused(records: Iterable[Mapping[str, Any]], where: str = "") -> None:
    """Raise LmflowError if some of the records hold an error instead of completions."""
    records = list(records)
    errors = [record["error"] for record in records if "error" in record]
    if errors:
        raise LmflowError(f"{len(errors)} of {len(records)} prompts could not be answered ({errors[0]}){where}")


def stream(model: LanguageModel, sample: Sample, inferencer: Inferencer, sampling: Sampling) -> Iterator[str]:
    """Yield one completion's text piece by piece."""
    yield from inferencer.stream(GenerateRequest(model, [encode_prompt(model, sample)], sampling))
