"""Rewards, and what happens when they misbehave."""

import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from lmflow.builtin.rewards import Classifier, PythonFunction
from lmflow.components import Reward
from lmflow.data.sample import Message, Sample
from lmflow.errors import LmflowError, RecipeError, RewardError
from lmflow.inference.rewards import score_completions
from lmflow.run.log import RunLog

SAMPLES = [
    Sample((Message("user", "first"),), record={"answer": "1"}, source="p.jsonl:1"),
    Sample((Message("user", "a"), Message("assistant", "b"), Message("user", "c")), source="p.jsonl:2"),
]


class Fixed(Reward):
    """Return what it was told to."""

    name = "fixed"
    values: Any

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Any:
        if isinstance(self.values, BaseException):
            raise self.values
        return self.values


@pytest.fixture
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.startswith("my_rewards")]:
        del sys.modules[name]
    return tmp_path


def test_a_function_sees_prompts_completions_and_records(in_directory: Path):
    (in_directory / "my_rewards_a.py").write_text(
        "def score(prompts, completions, records):\n"
        "    assert prompts == ['first', 'user: a\\nassistant: b\\nuser: c'], prompts\n"
        "    assert records == [{'answer': '1'}, {}]\n"
        "    return [len(c) for c in completions]\n"
    )
    reward = PythonFunction(function="my_rewards_a:score")
    assert score_completions(reward, SAMPLES, ["xy", ""]) == [2.0, 0.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_missing:score", "ModuleNotFoundError"),
        ("my_rewards_b:nothing", "AttributeError"),
        ("my_rewards_b:VALUE", "not a function but int"),
        ("my_rewards_c:score", "SyntaxError"),
        ("my_rewards_d:score", r"ExitCalled: it called sys.exit\(0\)"),
        ("my_rewards_e:score", r"my_rewards_e:score\(prompts\) is called with prompts, completions and records"),
    ],
)
def test_a_function_that_cannot_be_loaded(in_directory: Path, function: str, message: str):
    (in_directory / "my_rewards_b.py").write_text("VALUE = 3\n")
    (in_directory / "my_rewards_c.py").write_text("def score(:\n")
    (in_directory / "my_rewards_d.py").write_text("import sys\nsys.exit(0)\n")
    (in_directory / "my_rewards_e.py").write_text("def score(prompts): return [1]\n")
    with pytest.raises(RecipeError, match=message):
        PythonFunction(function=function).check()


def test_a_function_that_can_be_called_is_found_good(in_directory: Path):
    (in_directory / "my_rewards_f.py").write_text(
        "def score(prompts, completions, *more, x=1): return [1]\nfast = max\n"
    )
    PythonFunction(function="my_rewards_f:score").check()
    PythonFunction(function="my_rewards_f:fast").check()


def test_what_an_import_changes_and_prints_stays_with_it(in_directory: Path, capfd: pytest.CaptureFixture[str]):
    (in_directory / "my_rewards_g.py").write_text(
        "import os, torch\ntorch.set_grad_enabled(False)\nos.system('echo loud')\n"
        "def score(prompts, completions, records): return [1]\n"
    )
    PythonFunction(function="my_rewards_g:score").check()
    assert torch.is_grad_enabled()
    assert capfd.readouterr() == ("", "loud\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ValueError("boom"), r"raised ValueError: boom\n.*p.jsonl:1\n  prompt: 'first'\n  completion: 'a'"),
        ([1.0], r"returned 1 scores for 2 completions.*p.jsonl:1"),
        ([1.0, math.nan], r"returned nan, not a finite number, for p.jsonl:2"),
        ([math.inf, 1.0], r"returned inf, not a finite number, for p.jsonl:1"),
        ([1.0, "good"], r"returned 'good', not a finite number"),
        ([1.0, None], r"returned None, not a finite number"),
        (None, r"returned a NoneType, not a list"),
        ({"a": 1.0, "b": 2.0}, r"returned a dict, not a list"),
        ({1.0, 2.0}, r"returned a set, not a list"),
        ("12", r"returned a str, not a list"),
        (3.0, r"returned a float, not a list"),
        (torch.ones(2, 1), r"returned numbers of the shape \(2, 1\), not a list"),
        (torch.tensor(1.0), r"returned numbers of the shape \(\), not a list"),
        ([1.0, 10**400], r"returned 1000.*…, not a finite number, for p.jsonl:2"),
        ([1.0, 10**5000], r"returned a int, not a finite number, for p.jsonl:2"),
        ([1.0, torch.ones(3)], r"returned tensor\(\[1., 1., 1.\]\), not a finite number"),
        (SystemExit(0), r"raised ExitCalled: it called sys.exit\(0\)\n.*p.jsonl:1\n  prompt: 'first'"),
        (SystemExit(), r"it called sys.exit\(\)"),
    ],
)
def test_misbehaviour_ends_the_run_with_the_sample_shown(values: Any, message: str):
    with pytest.raises(RewardError, match=message):
        score_completions(Fixed(values=values), SAMPLES, ["a", "b"])


def test_tensors_and_integers_are_numbers():
    assert score_completions(Fixed(values=torch.tensor([0.5, 2.0])), SAMPLES, ["a", "b"]) == [0.5, 2.0]
    assert score_completions(Fixed(values=[True, 3]), SAMPLES, ["a", "b"]) == [1.0, 3.0]


class Meddling(Reward):
    """Change what is torch's, and print."""

    name = "meddling"

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Any:
        print("python")
        os.system("echo child")
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
        torch.set_autocast_enabled("cpu", True)
        torch.manual_seed(3)
        os.chdir("/")
        return (float(len(each)) for each in completions)


def modes() -> list[Any]:
    return [
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_rng_state().tolist(),
        os.getcwd(),
    ]


def test_what_a_reward_changes_and_prints_stays_with_it(capfd: pytest.CaptureFixture[str]):
    before = modes()
    assert score_completions(Meddling(), SAMPLES, ["xy", ""]) == [2.0, 0.0]
    assert modes() == before
    assert capfd.readouterr() == ("", "python\nchild\n")


def squared(text: str) -> float:
    return float(len(text) ** 2)


class Pooling(Reward):
    """Score in processes of its own."""

    name = "pooling"

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Any:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(squared, completions)


def test_a_reward_may_use_processes_of_its_own():
    """A pool ends its processes by SIGTERM, which a run takes for a wish to stop at the next safe place."""
    log = RunLog(None, lambda *_, **__: None)
    with log.handle_signals(), ended_after(60):
        assert score_completions(Pooling(), SAMPLES, ["xy", "abc"]) == [4.0, 9.0]
    assert log.asked_to_stop is None


@contextmanager
def ended_after(seconds: int) -> Iterator[None]:
    """Within the context what takes longer ends with an error."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def make_classifier(tmp_path: Path, make_tokenizer: Any) -> Any:
    def make(labels: int) -> Path:
        tokenizer = make_tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=labels,
            pad_token_id=2,
        )
        directory = tmp_path / f"classifier{labels}"
        LlamaForSequenceClassification(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return make


def test_classifier_equals_one_text_at_a_time(make_classifier: Any):
    path = make_classifier(1)
    reward = Classifier(path=str(path), batch_size=2)
    answers = ["short", "a much longer answer that needs padding beside it"]
    scores = reward.score(SAMPLES, answers)
    model = LlamaForSequenceClassification.from_pretrained(path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    for sample, answer, score in zip(SAMPLES, answers, scores):
        messages = [{"role": m.role, "content": m.content} for m in sample.messages]
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        assert score == pytest.approx(model(ids).logits.item(), abs=1e-5)


def test_classifier_with_labels(make_classifier: Any):
    path = str(make_classifier(3))
    scores = [Classifier(path=path, label=f"LABEL_{i}").score(SAMPLES, ["a", "b"]) for i in range(3)]
    for column in range(2):
        assert sum(math.exp(row[column]) for row in scores) == pytest.approx(1.0, abs=1e-5)
    Classifier(path=path, label="LABEL_1").check()
    for label in (None, "LABEL_7"):
        with pytest.raises(RecipeError, match="labels LABEL_0, LABEL_1, LABEL_2; name one"):
            Classifier(path=path, label=label).check()
    Classifier(path=str(make_classifier(1))).check()


def test_not_a_classifier(tmp_path: Path):
    with pytest.raises(LmflowError, match=rf"--reward\.path: {tmp_path} is a directory without config\.json"):
        Classifier(path=str(tmp_path)).check()
