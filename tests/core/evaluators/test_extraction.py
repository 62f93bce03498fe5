"""Finding answers in what models say: adversarial strings, among them those that LMFlow's evaluator gets wrong."""

from __future__ import annotations

import pytest

from lmflow.evaluators.extraction import FOUR_CHOICES, KINDS, NAMES, extract_verdict, same, same_number

CHOICES = [
    ("The answer is C. Because it is.", "C"),  # LMFlow: B, the first letter of "Because"
    ("Based on the record I choose B", "B"),  # LMFlow's medmcqa: d, the last letter of "record"
    ("C", "C"),
    ("c", "C"),
    ("(D)", "D"),
    ("d) the liver", "D"),
    ("B. Blood pressure", "B"),
    ("**B**", "B"),
    ("Answer: **E**", "E"),
    ("**Answer:** C", "C"),
    ("The correct answer is option (B).", "B"),
    ("The answer is (a)", "A"),
    ("A) is wrong, because of the dose. The answer is D", "D"),
    ("I think the best answer choice is E.", "E"),
    ("Answer: A. A man cannot.", "A"),
    ("Option A is wrong; the answer is a bit hard to see, but I choose D.", "D"),
    ("Let me think. A dog is an animal. So (B).", "B"),
    ("A dog is an animal, hence B", "B"),
    ("The final answer is \\boxed{C}", "C"),
    ("First I thought the answer is B. But no: the answer is C.", "C"),
    ("I choose a good book.", None),
    ("A dog and an Elephant", None),
    ("Don't know", None),
    ("", None),
]

NUMBERS = [
    ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
    ("The answer is 1,250.", "1250"),
    ("The answer is 3 + 4 = 7", "7"),
    ("The answer is $72.50 per week.", "72.50"),
    ("5-3 is 2", "2"),
    ("It is -5", "-5"),
    ("so x = -5.", "-5"),
    ("\\boxed{\\frac{3}{4}}", "3/4"),
    ("The answer is 5 of the 10 apples.", "5"),
    ("The answer is 4. There were 12 before.", "4"),
    ("There are 4 boxes of 12, so 48.", "48"),
    ("I counted 3, 4", "4"),
    ("GPT4 says twelve", None),
    ("1,2,3", "3"),
    ("about 1e5", "1e5"),
    ("half is .5", ".5"),
    ("Result: 1/2", "1/2"),
    ("The answer is unknown", None),
    ("", None),
]

VERDICTS = [
    ("There is no evidence, however. yes", "yes"),  # LMFlow's pubmedqa: no
    ("Yes, because it never did.", "yes"),
    ("No.", "no"),
    ("maybe", "maybe"),
    ("The answer is no. Yes-men disagree.", "no"),
    ("Answer: (yes)", "yes"),
    ("**Maybe**", "maybe"),
    ("I know nothing", None),
    ("It could be, so maybe", "maybe"),
    ("", None),
]

LETTERS = [
    ("The answer is n-k.", "nk"),
    ('The answer is "nk".', "nk"),
    ("n k so it is nk", "nk"),
    ("NK", "nk"),
    ("...", None),
]

TEXTS = [
    ("The answer is Paris.", "paris"),
    ("Answer: Paris\nIt lies on the Seine.", "paris"),
    ("  'Paris' ", "paris"),
    ("1 2  3", "1 2 3"),
    ("  ", None),
]


@pytest.mark.parametrize(
    ("kind", "said", "found"),
    [
        *(("multiple_choice", *row) for row in CHOICES),
        *(("number", *row) for row in NUMBERS),
        *(("binary_choice", *row) for row in VERDICTS),
        *(("last_letters", *row) for row in LETTERS),
        *(("text", *row) for row in TEXTS),
    ],
)
def test_extraction(kind: str, said: str, found: str | None) -> None:
    assert KINDS[kind](said) == found


def test_four_choices_know_no_e() -> None:
    assert FOUR_CHOICES("E") is None
    assert FOUR_CHOICES("I choose E, or rather (d)") == "D"


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("72", "72.0", True),
        ("1/2", "0.5", True),
        ("1e3", "1000", True),
        ("0", "-0", True),
        ("71.6", "72", False),  # LMFlow rounds to whole numbers for gsm8k, and takes it
        ("1/0", "1/0", False),
        ("5", "-5", False),
    ],
)
def test_numbers_are_compared_by_value(one: str, other: str, equal: bool) -> None:
    assert same_number(one, other) is equal
    assert same(KINDS["number"], one, other) is equal


def test_other_kinds_are_compared_as_they_are() -> None:
    assert same(extract_verdict, "yes", "yes")
    assert not same(KINDS["last_letters"], "1.0", "1")


def test_every_answer_type_of_lmflow_is_there() -> None:
    theirs = (
        "text multiple_choice binary_choice math gsm8k svamp asdiv addsub singleeq multiarith aqua csqa strategyqa "
        "coin_flip last_letters pubmedqa medmcqa usmle"
    )
    assert set(theirs.split()) <= NAMES.keys()
