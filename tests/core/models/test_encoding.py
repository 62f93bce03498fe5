"""Tokenising once: stores that hold what was written, and caches that are found again only by all that matters."""

from __future__ import annotations

import copy
import json
import os
import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from lmflow import data
from lmflow.components import DataFormat
from lmflow.data import tally
from lmflow.data.cache import token_store, tokens
from lmflow.data.cache.token_store import INDEX, StoredSequences, write_store
from lmflow.data.cache.tokens import cache_directory, cached
from lmflow.data.dataset import load_dataset
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.lengths import fit_lengths
from lmflow.data.sample import Dataset, Message, Sample, TokenSequence
from lmflow.errors import DataError
from lmflow.models import encoding
from lmflow.models.encoding import encode
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which keeps the tokens of even a few samples."""
    monkeypatch.setenv("LMFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoding, "KEPT_FROM", 0)
    return cache_directory()


@pytest.fixture
def counted(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples the tiny model was given to tokenise, call by call."""
    calls: list[int] = []
    original = LanguageModel.encode_all

    def count(self: LanguageModel, samples: Any, train_on: str = "assistant") -> Any:
        calls.append(len(samples))
        return original(self, samples, train_on)

    monkeypatch.setattr(LanguageModel, "encode_all", count)
    return calls


def dialogues(count: int) -> list[Sample]:
    words = ["the", "quick", "brown", "fox", "jumps", "数据"]
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 12)))

    return [Sample((Message("user", text()), Message("assistant", text())), source=f"d:{i}") for i in range(count)]


def test_a_store_gives_back_what_was_written(tmp_path: Path):
    draw = random.Random(0)
    written = [
        TokenSequence([draw.randrange(2**31) for _ in range(n)], [draw.random() < 0.5 for _ in range(n)], f"dätei:{n}")
        for n in (3, 1, 0, 70)
    ]
    write_store(tmp_path / "store", iter(written), lambda: {"note": "é"})
    found = StoredSequences(tmp_path / "store")
    assert list(found) == written
    assert found[-1] == written[-1]
    assert found[1:3] == written[1:3]
    assert found.about["note"] == "é"
    with pytest.raises(IndexError):
        found[4]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]  # nothing is left beside it


def test_a_store_that_cannot_be_finished_leaves_nothing(tmp_path: Path):
    def fail() -> Any:
        yield TokenSequence([1], [True])
        raise DataError("d:2: no")

    with pytest.raises(DataError):
        write_store(tmp_path / "store", fail(), dict)
    assert not list(tmp_path.iterdir())


def test_tokens_are_made_once(tiny_model: LanguageModel, cache: Path, counted: list[int]):
    samples = dialogues(20)
    fresh = [each for sample in samples for each in tiny_model.encode(sample)]
    del counted[:]
    first, report = encode(tiny_model, samples, DataOptions())
    assert list(first) == fresh
    assert sum(counted) == 20
    again, same = encode(tiny_model, samples, DataOptions())
    assert list(again) == fresh
    assert same == report
    assert sum(counted) == 20
    assert len(list(cache.iterdir())) == 1


def test_of_two_that_need_the_same_tokens_one_makes_them(tmp_path: Path, cache: Path):
    """Locks are between open files, so two threads stand for two processes."""
    made: list[int] = []
    both_here = threading.Barrier(2)

    def make() -> list[TokenSequence]:
        made.append(1)
        time.sleep(0.2)  # time enough for the other to come
        return [TokenSequence([1, 2], [False, True])]

    def need(_: int) -> list[TokenSequence]:
        both_here.wait()
        return list(cached("key", make, dict))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(need, range(2))
    assert first == second == [TokenSequence([1, 2], [False, True])]
    assert len(made) == 1
    assert [path.name for path in cache.iterdir()] == ["key"]


def other_template(model: LanguageModel) -> LanguageModel:
    other = replace(model, tokenizer=copy.deepcopy(model.tokenizer))
    other.tokenizer.chat_template = "the " + other.tokenizer.chat_template
    return other


def other_token(model: LanguageModel) -> LanguageModel:
    other = replace(model, tokenizer=copy.deepcopy(model.tokenizer), module=copy.deepcopy(model.module))
    other.tokenizer.add_tokens(["jumps"])
    other.module.resize_token_embeddings(len(other.tokenizer))
    return other


def split_specials(model: LanguageModel) -> LanguageModel:
    other = replace(model, tokenizer=copy.deepcopy(model.tokenizer))
    other.tokenizer.split_special_tokens = True
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda model, samples, data: (model, samples[:-1], data),
        lambda model, samples, data: (model, [replace(samples[0], templated=False), *samples[1:]], data),
        lambda model, samples, data: (model, samples, data.model_copy(update={"train_on": "all"})),
        lambda model, samples, data: (model, samples, data.model_copy(update={"max_length": 30})),
        lambda model, samples, data: (model, samples, data.model_copy(update={"too_long": "skip"})),
        lambda model, samples, data: (other_template(model), samples, data),
        lambda model, samples, data: (other_token(model), samples, data),
    ],
    ids=["samples", "templated", "train_on", "max_length", "too_long", "template", "vocabulary"],
)
def test_whatever_changes_the_tokens_makes_them_anew(
    change: Any, tiny_model: LanguageModel, cache: Path, counted: list[int]
):
    """LMFlow's cache left out train_on_prompt, and trained on masks made with another value."""
    samples, data = dialogues(20), DataOptions()
    encode(tiny_model, samples, data)
    model, others, options = change(tiny_model, samples, data)
    found, _ = encode(model, others, options)
    assert len(counted) == 2
    assert len(list(cache.iterdir())) == 2
    limit = encoding.length_limit(model, options)
    sequences = [each for sample in others for each in model.encode(sample, options.train_on)]
    assert list(found) == fit_lengths(sequences, limit, options.too_long)[0]


def test_special_tokens_taken_apart_are_other_tokens(tiny_model: LanguageModel):
    assert split_specials(tiny_model).token_key != tiny_model.token_key


def test_what_other_code_made_is_not_used():
    """A correction of how records are read, rendered, tokenised or cut must not meet tokens made before it."""

    class Other(LanguageModel):
        pass

    texts = encoding.code(LanguageModel)
    for part in ("lengths", "source", "rendering", "tokenize", "formats/dialogues", "formats/fields"):
        assert (Path(data.__file__).parent / f"{part}.py").read_text() in texts
    assert f"tokenizers {metadata.version('tokenizers')}" in texts
    assert Path(__file__).read_text() in encoding.code(Other)  # a model of a plugin makes tokens in its own way
    assert Path(__file__).read_text() not in texts


@pytest.mark.parametrize("damage", ["cut", "missing", "index"])
def test_a_damaged_store_is_made_anew(damage: str, tiny_model: LanguageModel, cache: Path, counted: list[int]):
    samples = dialogues(20)
    expected = list(encode(tiny_model, samples, DataOptions())[0])
    [store] = cache.iterdir()
    if damage == "cut":
        (store / "ids").write_bytes((store / "ids").read_bytes()[:-4])
    elif damage == "missing":
        (store / "trained").unlink()
    else:
        (store / INDEX).write_text("{")
    assert list(encode(tiny_model, samples, DataOptions())[0]) == expected
    assert len(counted) == 2


def test_unused_stores_are_deleted_when_another_is_written(tiny_model: LanguageModel, cache: Path):
    encode(tiny_model, dialogues(20), DataOptions())
    [old] = cache.iterdir()
    long_ago = time.time() - 40 * 86_400
    os.utime(old / INDEX, (long_ago, long_ago))
    encode(tiny_model, dialogues(10), DataOptions())
    assert not old.exists()
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("failure", ["full", "not to be written", "a file"])
def test_where_tokens_cannot_be_kept_they_are_held(
    failure: str, tiny_model: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """A full disk means no cache, not no run."""
    samples = dialogues(20)
    fresh = [each for sample in samples for each in tiny_model.encode(sample)]
    if failure == "a file":
        cache.parent.mkdir(parents=True)
        cache.write_text("")
    else:
        monkeypatch.setattr(token_store if failure == "full" else tokens, *FAILURES[failure])
    held, report = encode(tiny_model, samples, DataOptions())
    assert list(held) == fresh
    assert held[3:5] == fresh[3:5]
    assert report.kept == 20, "what was counted before the disk was full does not count"
    assert report.not_kept is not None
    assert str(cache) in report.not_kept
    assert "tokens are held in memory" in report.describe()
    assert not cache.is_dir() or not [path for path in cache.iterdir() if path.name != INDEX]


def _full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def _refused(*_: Any) -> Any:
    raise PermissionError(13, "Permission denied")


FAILURES: dict[str, tuple[str, Any]] = {
    "full": ("move_into_place", _full),
    "not to be written": ("_alone_with", _refused),
}


def test_what_a_killed_process_was_writing_goes_with_the_next(tiny_model: LanguageModel, cache: Path):
    (cache / ".key.0123abcd.partial").mkdir(parents=True)
    encode(tiny_model, dialogues(20), DataOptions())
    assert [path.name[0] == "." for path in cache.iterdir()] == [False]


def test_errors_are_those_without_a_cache(tiny_model: LanguageModel, cache: Path):
    questions = [Sample((Message("user", "the fox"),), source="d:1")] * 3
    for _ in range(2):
        with pytest.raises(DataError, match="No token would be trained in any of 3 samples"):
            encode(tiny_model, questions, DataOptions())
    assert not list(cache.iterdir())


def key_for(
    tmp_path: Path, rows: list[dict[str, Any]], chosen: DataFormat | None = None, seed: int = 0, **options: Any
) -> Dataset:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset(DataOptions(path=str(tmp_path / "a.jsonl"), **options), Formats(FORMATS, chosen), seed)[0]


class TextPrompts(DataFormat):
    """Prompts alone."""

    name = "text-prompts"
    ending: str = Field("", description="What each prompt ends with.")

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        return Sample((Message("user", record["prompt"] + self.ending),), True, record, source)


def test_the_key_of_a_data_set_is_all_that_its_samples_depend_on(tmp_path: Path):
    rows = [{"prompt": str(i), "answer": "a", "response": "r"} for i in range(10)]
    keys = [
        key_for(tmp_path, rows).fingerprint,
        key_for(tmp_path, rows, seed=1).fingerprint,
        key_for(tmp_path, rows, limit=5).fingerprint,
        key_for(tmp_path, rows, validation=0.3).fingerprint,
        key_for(tmp_path, rows, columns={"completion": "answer"}).fingerprint,
        key_for(tmp_path, [{**rows[0], "answer": "b"}, *rows[1:]]).fingerprint,
        key_for(tmp_path, rows, TextPrompts()).fingerprint,
        key_for(tmp_path, rows, TextPrompts(ending=".")).fingerprint,
    ]
    assert len(set(keys)) == len(keys)
    assert key_for(tmp_path, rows).fingerprint == keys[0]


def test_samples_on_disk_become_the_same_tokens(tmp_path: Path, tiny_model: LanguageModel, cache: Path):
    rows = [{"prompt": f"the fox {i}", "answer": "jumps"} for i in range(30)]
    memory, disk = (key_for(tmp_path, rows, streaming=streaming) for streaming in (False, True))
    found = [list(encode(tiny_model, each.train, each.options, each.fingerprint)[0]) for each in (memory, disk)]
    assert found[0] == found[1]


def test_how_many_samples_are_tokenised_is_counted(
    cache: Path, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(tally, "CHUNK", 4)
    samples = dialogues(10)
    with tally.tokenising_counted(lambda *counted: told.append(counted)):
        encode(tiny_model, samples, DataOptions())
        assert told == [("samples tokenised", done, 10) for done in (4, 8, 10)]
        encode(tiny_model, samples, DataOptions())
    encode(tiny_model, samples[:4], DataOptions())
    assert len(told) == 3, "what is kept is not tokenised, and afterwards nobody asks"
