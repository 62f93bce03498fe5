"""What lmflow makes of every causal architecture of transformers: a tiny model of random weights in every column.

    python benchmarks/architectures.py [TYPE ...] [--output FILE]

Columns: `way`, how it is decoded; `alone` and `batch`, whether greedy text equals plain forward passes without a cache,
one prompt at a time and in a batch of unequal prompts with two completions of each; `sft`, `packed`, `lora`, `merge`:
whether a step of training moves the weights, packed rows are proven apart, and merged weights give the logits of the
adapter; `plan`, whether its memory is foretold. A refusal is a sentence; "WRONG" is a silent fault, and makes the
script end with 1.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lmflow.components import GenerateRequest
from lmflow.data.collate import collate
from lmflow.data.sample import Prompt, TokenSequence
from lmflow.errors import LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.inference.ways import find_way
from lmflow.models.language_model import LanguageModel
from lmflow.planning.footprint import StepSettings, predict_footprint
from lmflow.testing.architectures import tiny_architecture
from lmflow.testing.tiny import scale_matrices, tiny_tokenizer
from lmflow.training.batching_checks import check_batching, check_causal, logits_of
from lmflow.training.loss import negative_log_likelihood

RESULT = Path(__file__).parent / "results" / "architectures.md"
COLUMNS = ("way", "alone", "batch", "sft", "packed", "lora", "merge", "plan")
PROMPTS = [Prompt([5, 6, 7, 8, 9, 10, 11]), Prompt([40, 41]), Prompt([90, 91, 92, 93])]
LENGTHS = (5, 2, 4)
SEQUENCES = [
    TokenSequence([(7 * i + n) % 200 + 5 for i in range(n)], [i > n // 2 for i in range(n)], f"s{n}")
    for n in (23, 17, 9)
]


def main() -> int:
    """Measure the architectures named, or all, and write the table; 1 where a cell is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    tokenizer, rows = tiny_tokenizer(), []
    for kind in options.types:
        rows.append((kind, measure(kind, tokenizer)))
        sys.stdout.write(row(*rows[-1]) + "\n")
        sys.stdout.flush()
        options.output.write_text(page(rows), encoding="utf-8")  # what is there when a long sweep is stopped
    return int(any("WRONG" in cell for _, cells in rows for cell in cells.values()))


def measure(kind: str, tokenizer: Any) -> dict[str, str]:
    """The cells of one architecture."""
    try:
        model = make(kind, tokenizer)
    except Exception as error:  # what a configuration with small sizes raises is transformers' own
        return {"way": f"not built: {sentence(error)}"}
    cells: dict[str, str] = {}
    for name, measured in (("way", way), ("alone", alone), ("batch", batch)):
        cells[name] = cell(lambda measured=measured: measured(model))  # type: ignore[misc]
        if name == "way" and cells[name].startswith("refused"):
            break
    for name, column in (("sft", sft), ("packed", packed), ("lora", lora), ("merge", merge), ("plan", plan)):
        cells[name] = cell(lambda column=column: column(make(kind, tokenizer)))  # type: ignore[misc]
    return cells


def make(kind: str, tokenizer: Any) -> LanguageModel:
    """A model of this architecture, its weights large enough for what it has read to matter."""
    module = tiny_architecture(kind, len(tokenizer))
    scale_matrices(module, 3.0)
    return LanguageModel(module, tokenizer, kind)


def cell(measured: Callable[[], str]) -> str:
    """What was found, or the sentence that refuses it."""
    try:
        return measured()
    except LmflowError as error:
        return f"refused: {sentence(error)}"
    except Exception as error:
        return f"error: {type(error).__name__}: {sentence(error)}"


def sentence(error: BaseException) -> str:
    """The first sentence of an error, fit for a cell."""
    text = " ".join(str(error).split()).replace("|", "/")
    return text.partition(". ")[0][:160]


def way(model: LanguageModel) -> str:
    """How it is decoded."""
    return find_way(model).name


def greedy(model: LanguageModel, ids: list[int], tokens: int) -> list[int]:
    """The most probable tokens, each from one plain forward pass."""
    row = list(ids)
    for _ in range(tokens):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].float()
        logits[list(model.suppressed_ids)] = -torch.inf
        row.append(int(logits.argmax()))
        if row[-1] in model.end_ids:
            break
    return row[len(ids) :]


def texts(model: LanguageModel, prompts: list[Prompt], lengths: tuple[int, ...], n: int) -> list[list[list[int]]]:
    """What the inferencer samples at a temperature that leaves nothing to chance."""
    samplings = [Sampling(temperature=1e-4, max_new_tokens=length, n=n) for length in lengths]
    drawn = HuggingFace().generate(GenerateRequest(model, prompts, samplings))
    return [[list(each.ids) for each in row] for row in drawn]


def alone(model: LanguageModel) -> str:
    """Whether each prompt by itself gives the text of plain passes."""
    found = [texts(model, [prompt], (n,), 1)[0][0] for prompt, n in zip(PROMPTS, LENGTHS, strict=True)]
    return judged(found == [greedy(model, list(p.ids), n) for p, n in zip(PROMPTS, LENGTHS, strict=True)])


def batch(model: LanguageModel) -> str:
    """Whether unequal prompts together, two completions of each and rows that end apart give the same."""
    expected = [[greedy(model, list(p.ids), n)] * 2 for p, n in zip(PROMPTS, LENGTHS, strict=True)]
    return judged(texts(model, PROMPTS, LENGTHS, 2) == expected)


def judged(right: bool) -> str:
    """The word for it."""
    return "yes" if right else "WRONG"


def sft(model: LanguageModel) -> str:
    """Whether the checks before training pass, and a step lowers the loss on what it was taken on."""
    model.module.eval()
    check_causal(model, SEQUENCES)
    check_batching(model, SEQUENCES, packing=False)
    return judged(step(model))


def step(model: LanguageModel) -> bool:
    """Whether small steps along the gradient lower the loss."""
    module, together = model.module, collate(SEQUENCES, model.pad_id)
    optimizer = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = negative_log_likelihood(module, module, together)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[-1] < losses[0]


def packed(model: LanguageModel) -> str:
    """Whether packed samples are kept apart."""
    check_batching(model, SEQUENCES, packing=True)
    return "yes"


def lora(model: LanguageModel) -> str:
    """Whether an adapter on every linear layer trains."""
    return judged(step(adapted(model)))


def merge(model: LanguageModel) -> str:
    """Whether merged weights give the logits of the adapter."""
    wrapped = adapted(model)
    module: Any = wrapped.module
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    module.eval()
    one = collate(SEQUENCES[:1], model.pad_id)
    with torch.no_grad():
        before = logits_of(wrapped, one)
        after = logits_of(model.with_module(module.merge_and_unload()), one)
    return judged(torch.allclose(before, after, atol=1e-3 * float(before.abs().max()), rtol=1e-3))


def adapted(model: LanguageModel) -> LanguageModel:
    """The model under tuner `lora` with its defaults."""
    from lmflow_lora.lora import Lora

    return model.prepare(Lora())


def plan(model: LanguageModel) -> str:
    """The memory foretold of a step."""
    found = predict_footprint(model.module, collate(SEQUENCES, model.pad_id), StepSettings())
    return f"{(found.gradients + found.activations + found.logits) / 1e6:.1f} MB"


def row(kind: str, cells: dict[str, str]) -> str:
    """A row of the table."""
    return f"| {kind} | " + " | ".join(cells.get(name, "") for name in COLUMNS) + " |"


def page(rows: list[tuple[str, dict[str, str]]]) -> str:
    """The page."""
    built = [cells for _, cells in rows if not cells["way"].startswith("not built")]
    wrong = sum("WRONG" in each for _, cells in rows for each in cells.values())
    head = f"| type | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"
    return (
        "# Architectures\n\nWritten by `python benchmarks/architectures.py` with transformers "
        f"{transformers.__version__} and torch {torch.__version__}: {len(rows)} architectures, {len(built)} built with "
        f"small sizes, {wrong} wrong cells.\n\n{(__doc__ or '').partition('FILE]')[2].strip()}\n\n{head}\n"
        + "\n".join(row(*each) for each in rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
