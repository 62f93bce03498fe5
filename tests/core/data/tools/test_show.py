"""Token sequences as people read them."""

from __future__ import annotations

import pytest

from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.data.tokenize import encode_sample
from lmflow.data.tools.show import fitted_to, packed_layout, pieces_of, plain, shown_as_data, shown_sequences, table
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions


def test_pieces_are_the_text(tiny_model: LanguageModel):
    sample = Sample((Message("user", "naïve 日本 🙂"), Message("assistant", "the fox 数据")), source="s:1")
    [sequence] = encode_sample(tiny_model.tokenizer, sample, end_ids=tiny_model.end_ids)
    pieces = list(pieces_of(tiny_model.tokenizer, sequence))
    assert [i for piece in pieces for i in piece.ids] == list(sequence.ids)
    assert "".join(piece.text for piece in pieces) == tiny_model.tokenizer.decode(sequence.ids)
    assert plain(pieces).count("«the fox 数据") == 1
    assert [piece.position for piece in pieces] == sorted(piece.position for piece in pieces)


def test_rows_say_where_samples_lie(tiny_model: LanguageModel):
    samples = [Sample((Message("assistant", "the " * n),), False, source=f"s:{n}") for n in (5, 3, 2)]
    sequences = [each for sample in samples for each in tiny_model.encode(sample)]
    layout = packed_layout(sequences, len(sequences[0]) + len(sequences[2]))
    assert [[(place.source, place.start) for place in row] for row in layout] == [
        [("s:5", 0), ("s:2", len(sequences[0]))],
        [("s:3", 0)],
    ]


def test_a_character_that_never_comes_is_shown_byte_by_byte(tiny_model: LanguageModel):
    tokenizer = tiny_model.tokenizer
    first, *_ = tokenizer("日", add_special_tokens=False)["input_ids"]
    [end] = tokenizer("d", add_special_tokens=False)["input_ids"]
    pieces = list(pieces_of(tokenizer, TokenSequence([first, end], [False, True], "s")))
    assert [piece.ids for piece in pieces] == [(first,), (end,)]
    assert pieces[0].text == tokenizer.convert_ids_to_tokens(first)


def test_a_line_for_each_piece(tiny_model: LanguageModel):
    sequence = TokenSequence(tiny_model.tokenizer("the fox")["input_ids"], [False] + [True] * 20, "s")
    sequence = sequence.cut(0, len(sequence.ids))
    lines = list(table(list(pieces_of(tiny_model.tokenizer, sequence))))
    assert [line.split()[0] for line in lines] == [str(i) for i in range(len(lines))]
    assert "trained" not in lines[0]
    assert all("trained" in line for line in lines[1:])
    assert "".join(eval(line.split(maxsplit=2 + ("trained" in line))[-1]) for line in lines) == "the fox"


def test_without_packing_there_are_no_rows(tiny_model: LanguageModel):
    sequence = TokenSequence([5, 6], [False, True], "s:1")
    shown = shown_as_data(tiny_model.tokenizer, [(sequence, "answer 1 of 2")], None)
    assert shown["rows"] is None
    [found] = shown["sequences"]
    assert (found["source"], found["answers"], found["tokens"], found["num_targets"]) == ("s:1", "answer 1 of 2", 2, 1)
    assert shown_as_data(tiny_model.tokenizer, [], []) == {"sequences": [], "rows": []}


ANSWERED = TokenSequence(list(range(12)), [False] * 3 + [True] * 9, "a")
PLAIN = TokenSequence(list(range(12)), [True] * 12, "b")


@pytest.mark.parametrize(
    ("sequence", "policy", "lengths", "notes"),
    [
        (ANSWERED, "auto", [5], ["longer than 5 tokens: 7 are cut off"]),
        (ANSWERED, "truncate", [5], ["longer than 5 tokens: 7 are cut off"]),
        (PLAIN, "auto", [5, 5, 4], ["piece 1 of 3", "piece 2 of 3", "piece 3 of 3"]),
        (ANSWERED, "split", [5, 5, 4], ["piece 1 of 3", "piece 2 of 3", "piece 3 of 3"]),
        (ANSWERED, "skip", [12], ["longer than 5 tokens: left out"]),
        (ANSWERED, "error", [12], ["longer than 5 tokens: which stops a run"]),
    ],
)
def test_what_is_too_long_is_shown_as_a_run_takes_it(
    sequence: TokenSequence, policy: str, lengths: list[int], notes: list[str]
):
    found = fitted_to(sequence, 5, policy)
    assert [(len(each), note) for each, note in found] == list(zip(lengths, notes, strict=True))
    assert policy not in ("skip", "error") or not any(found[0][0].loss_mask)
    assert fitted_to(sequence, 12, policy) == fitted_to(sequence, None, policy) == [(sequence, "")]


def test_a_sample_is_shown_within_the_limit(tiny_model: LanguageModel):
    sample = Sample((Message("user", "q"), Message("assistant", "the fox " * 20)), source="s")
    [(sequence, note)] = shown_sequences(tiny_model, sample, DataOptions(max_length=9))
    assert len(sequence) == 9
    assert note.startswith("longer than 9 tokens: ")
