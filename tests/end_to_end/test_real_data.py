"""Every real file: checked, shown, converted, packed and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.packing import group_rows, pack_rows
from lmflow.models.encoding import encode
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions

FILES = {
    "alpaca_en_demo.json": ("alpaca", 999, "messages"),
    "dpo_en_demo.json": ("sharegpt", 300, "preference"),
    "hh_rlhf_harmless_test.jsonl.gz": ("hh", 2312, "paired_conversation"),
    "tinyshakespeare.txt": ("text_only", 1, "text_only"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_shown_checked_converted_and_trained_on(
    name: str, lmflow: Any, shared_data: Path, model_directory: Path, tmp_path: Path
):
    kind, records, other = FILES[name]
    path = str(shared_data / name)
    done = lmflow("data", "check", path, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["format"], report["records"]) == (kind, records)
    assert "bad_record" not in report["counts"]
    done = lmflow("data", "show", path, "--model", str(model_directory), "--count", "1")
    assert done.code == 0, done.err
    assert "«" in done.out
    done = lmflow("data", "convert", path, "--to", other, "--output", "other.jsonl")
    assert done.code == 0, done.err
    before, after = (
        read_samples(DataOptions(path=each), Formats(FORMATS)) for each in (path, str(tmp_path / "other.jsonl"))
    )
    assert [(s.messages, s.rejected) for s in after] == [(s.messages, s.rejected) for s in before]
    short = ("--training.max_steps", "2", "--training.batch_size", "4", "--data.limit", "40", "--data.packing", "true")
    done = lmflow("run", "--model", str(model_directory), "--data.path", path, *short, "--output", "run", "--json")
    assert done.code == 0, done.err
    assert done.record["data"]["format"] == kind
    assert done.record["tables"]["lengths"]["tokens"] > 0


def test_packed_rows_of_alpaca_are_at_least_97_percent_tokens(shared_data: Path, tiny_model: LanguageModel):
    data = DataOptions(path=str(shared_data / "alpaca_en_demo.json"), max_length=2048)
    limit = tiny_model.context_length
    samples = read_samples(data, Formats(FORMATS))
    lengths = [min(len(each), limit or 2048) for each in encode(tiny_model, samples, data)[0]]
    lengths = [length * 4 for length in lengths]  # as long as a larger vocabulary leaves them in a context of 2,048
    rows = [sum(lengths[i] for i in row) for row in pack_rows(lengths, 2048)]
    assert sum(rows) / (len(rows) * 2048) >= 0.97
    groups = group_rows(rows, 8)
    padded = sum(len(group) * max(rows[i] for i in group) for group in groups)
    assert sum(rows) / padded >= 0.97
