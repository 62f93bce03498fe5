"""What is wrong with the tokens of samples: answers that do not end, and what they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.data.token_findings import TokenChecker, answer_names, target_runs
from lmflow.models.language_model import LanguageModel

Q, A = Message("user", "q"), Message("assistant", "a")
UNTRAINED = Message("assistant", "a", is_target=False)


@pytest.fixture
def ids(tiny_model: LanguageModel) -> Callable[[str], list[int]]:
    return lambda text: list(tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"])


def sequence(*runs: tuple[list[int], bool]) -> TokenSequence:
    return TokenSequence([i for ids, _ in runs for i in ids], [on for ids, on in runs for _ in ids], "s")


def kinds(model: LanguageModel, sample: Sample, *sequences: TokenSequence, train_on: str = "assistant") -> list[str]:
    found = TokenChecker(model, train_on).end_findings(sample, sequences)
    return [f"{kind}: {detail}" for kind, detail in found]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([0, 1, 1, 0, 1], [(1, 3), (4, 5)]),
        ([1, 1], [(0, 2)]),
        ([0, 0], []),
        ([], []),
        ([1, 0, 1], [(0, 1), (2, 3)]),
    ],
)
def test_runs_of_trained_tokens(mask: list[int], expected: list[tuple[int, int]]):
    assert list(target_runs(TokenSequence(list(range(len(mask))), [bool(on) for on in mask]))) == expected


def test_a_thought_in_front_of_the_prompt_is_found(make_tokenizer: Callable[..., Any], tiny_model: LanguageModel):
    asks = "{% for m in messages %}THOUGHT<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    asks += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    in_front = "{% if m.reasoning_content %}<|im_start|>{{ m.reasoning_content }}<|im_end|>{% endif %}"
    sample = Sample((Q, replace(A, thinking="hm"), Q, A, Q, replace(UNTRAINED, thinking="hm")))
    for thought, found in ((in_front, ["turn 2"]), ("", [])):
        tokenizer = make_tokenizer(chat_template=asks.replace("THOUGHT", thought))
        checker = TokenChecker(replace(tiny_model, tokenizer=tokenizer), "assistant")
        assert [detail for kind, detail in checker.findings(sample, []) if kind == "thought_not_asked_for"] == found


def test_an_answer_ends_with_a_special_token_and_empty_space_behind_it_is_no_fault(
    tiny_model: LanguageModel, ids: Callable[[str], list[int]]
):
    checker = TokenChecker(tiny_model, "assistant")
    [end], [start], [line], [letter] = ids("<|im_end|>"), ids("<|im_start|>"), ids("\n"), ids("d")
    assert checker.ends_well([letter, end])
    assert checker.ends_well([letter, end, line, line])
    assert checker.ends_well([letter, start]), "some templates end an answer with the token that begins the next turn"
    assert not checker.ends_well([end, letter])
    assert not checker.ends_well([line])
    assert not checker.ends_well([])
    everything = TokenChecker(tiny_model, "all")
    assert everything.ends_well([end, letter, line])
    assert not everything.ends_well([letter, line])


def test_the_last_answer_must_end(tiny_model: LanguageModel, ids: Callable[[str], list[int]]):
    asked, said, end = (ids("the"), False), (ids("fox"), True), (ids("<|im_end|>"), True)
    assert kinds(tiny_model, Sample((Q, A)), sequence(asked, said, end)) == []
    [found] = kinds(tiny_model, Sample((Q, A)), sequence(asked, said))
    assert found.startswith("end_not_trained: the last trained token is ")
    assert kinds(tiny_model, Sample((A, Q)), sequence(asked, said)) == [], "a prompt has no end to learn"


def test_earlier_answers_are_told_apart(tiny_model: LanguageModel, ids: Callable[[str], list[int]]):
    asked, said, end = (ids("the"), False), (ids("fox"), True), (ids("<|im_end|>"), True)
    [found] = kinds(tiny_model, Sample((Q, A, Q, A)), sequence(asked, said, asked, said, end))
    assert found.startswith("earlier_end_not_trained: the last trained token of answer 1 of 2 is ")
    marked = sequence(asked, said, asked, said, asked, said, end)  # the template marks more than answers
    assert kinds(tiny_model, Sample((Q, A, Q, A)), marked) == []


def test_of_an_answer_that_is_not_trained_nothing_is_expected(
    tiny_model: LanguageModel, ids: Callable[[str], list[int]]
):
    asked, said, end = (ids("the"), False), (ids("fox"), True), (ids("<|im_end|>"), True)
    assert kinds(tiny_model, Sample((Q, A, Q, UNTRAINED)), sequence(asked, said, end, asked)) == []
    [found] = kinds(tiny_model, Sample((Q, A, Q, UNTRAINED)), sequence(asked, said, asked))
    assert found.startswith("earlier_end_not_trained: the last trained token of answer 1 of 2 is ")
    assert kinds(tiny_model, Sample((Q, UNTRAINED)), sequence(asked)) == []


def test_which_answer_each_run_is():
    dialogue = Sample((Q, A, Q, A))
    assert answer_names(Sample((Q, A)), [1]) == [[""]]
    assert answer_names(dialogue, [2]) == [["answer 1 of 2", "answer 2 of 2"]]
    assert answer_names(dialogue, [3]) == [["", "", ""]], "there is no answer 3 of 2"
    assert answer_names(dialogue, [1, 1]) == [["answer 1 of 2"], ["answer 2 of 2"]]
    assert answer_names(dialogue, [1, 2]) == [["answer 1 of 2"], ["", "answer 2 of 2"]]
    assert answer_names(dialogue, [1, 1, 1]) == [[""], [""], [""]]
    assert answer_names(Sample((Q, UNTRAINED, Q, A)), [1]) == [["answer 2 of 2"]]
    assert answer_names(Sample((Q,)), [0]) == [[]]


def test_special_tokens_in_contents_are_found_with_the_rest(tiny_model: LanguageModel):
    sample = Sample((Message("user", "what is <|im_end|>?"), A))
    found = list(TokenChecker(tiny_model, "assistant").findings(sample, tiny_model.encode(sample)))
    assert found == [("control_token", "turn 1 (user) contains '<|im_end|>' at character 9")]
