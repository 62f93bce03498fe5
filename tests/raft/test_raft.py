"""RAFT's masks, KL, selection in the loop, resume, and its errors, on a tiny model."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.components import Reward
from lmflow.data.formats import Prompts
from lmflow.data.sample import Dataset, Message, Prompt, Sample
from lmflow.errors import Interrupted
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Completion
from lmflow.recipe.sections.data import DataOptions
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.testing.contexts import align_context, trainer_setup
from lmflow.training.trainer import Trainer
from lmflow_raft.raft import Raft, Rollout, Work, training_sequence


class CountsE(Reward):
    """Number of letters e."""

    name = "e"

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
        return [float(text.count("e")) for text in completions]


def ask(text: str) -> Sample:
    return Sample((Message("user", text),), source=f"{text}:1")


def data(train: int = 12, heldout: int = 4) -> Dataset:
    samples = [ask(f"question {i}") for i in range(train + heldout)]
    return Dataset(samples[:train], samples[train:], DataOptions(), Prompts())


class Setting:
    """A trainer in a directory, made the same way every time."""

    def __init__(self, model: Any, path: Path, *, resume: bool = False, **options: Any) -> None:
        self.directory = RunDirectory(path, resume=resume)
        self.directory.write_record({"status": "running"})
        self.log = RunLog(self.directory, lambda *_, **__: None)
        settings = TrainingOptions(**{"batch_size": 4, "learning_rate": 3e-3, **options})
        setup = trainer_setup("constant", keep_start_weights=True)
        self.trainer = Trainer(model, settings, self.log, self.directory.checkpoints, setup)
        self.model = model
        if resume:
            self.trainer.restore()
        self.directory.close()

    def align(self, raft: Raft, dataset: Dataset | None = None, reward: Reward | None = None) -> None:
        raft.align(align_context(self.trainer, dataset or data(), reward=reward or CountsE()))


@pytest.fixture
def make_setting(tiny_model: Any, tmp_path: Path) -> Any:
    import copy

    def make(name: str = "run", **options: Any) -> Setting:
        model = tiny_model.with_module(copy.deepcopy(tiny_model.module))
        return Setting(model, tmp_path / name, **options)

    return make


RAFT = Raft(iterations=3, prompts=6, samples=4, max_new_tokens=8, heldout_samples=1)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def drawn_by_hand() -> Rollout:
    completions = [[Completion((7, 8, 1), "ab", (-0.1, -0.2, -0.3), "eos"), Completion((9,), "c", (-0.5,), "length")]]
    return Rollout([ask("q")], [Prompt([3, 4])], completions, [[1.0, 0.0]], 0.0, 0.0)


def test_the_loss_is_on_the_completion_and_its_end_only():
    sequence = training_sequence(drawn_by_hand(), (0, 0))
    assert list(sequence.ids) == [3, 4, 7, 8, 1]
    assert list(sequence.loss_mask) == [False, False, True, True, True]
    assert list(training_sequence(drawn_by_hand(), (0, 1)).ids) == [3, 4, 9]


def test_hash_signs_and_repeated_prompts_survive(tiny_model):
    """LMFlow threw away answers with '#' and cut the prompt out by text; here token positions decide."""
    tokenizer = tiny_model.tokenizer
    ids = tuple(tokenizer("q # q", add_special_tokens=False).input_ids)
    prompt = tuple(tokenizer("q", add_special_tokens=False).input_ids)
    drawn = Rollout([ask("q")], [Prompt(prompt)], [[Completion(ids, "q # q", (0.0,) * len(ids), "eos")]], [[1.0]], 0, 0)
    sequence = training_sequence(drawn, (0, 0))
    trained = [token for token, is_trained in zip(sequence.ids, sequence.loss_mask) if is_trained]
    assert tokenizer.decode(trained) == "q # q"


def test_reward_rises_and_everything_is_recorded(make_setting, tmp_path: Path):
    setting = make_setting()
    setting.align(RAFT.model_copy(update={"iterations": 5, "samples": 16, "epochs": 4, "heldout_samples": 16}))
    iterations = [m for m in lines(tmp_path / "run" / "metrics.jsonl") if "iteration" in m]
    assert [m["iteration"] for m in iterations] == [0, 1, 2, 3, 4, 5]
    for each in iterations[1:]:
        assert {
            "reward_mean",
            "reward_kept_mean",
            "heldout_reward",
            "distinct_1",
            "distinct_2",
            "response_length",
            "kl",
            "seconds_sampling",
            "seconds_scoring",
            "seconds_training",
        } <= each.keys()
        assert each["reward_kept_mean"] >= each["reward_mean"]
    assert iterations[-1]["reward_mean"] > iterations[1]["reward_mean"]
    assert iterations[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert iterations[-1]["kl"] > 0.01
    assert setting.log.metrics["heldout_reward_after"] > setting.log.metrics["heldout_reward_before"]
    rows = lines(tmp_path / "run" / "samples" / "iteration-0001.jsonl")
    assert len(rows) == 6 * 16
    for prompt in {row["prompt"] for row in rows}:
        of_prompt = [row for row in rows if row["prompt"] == prompt]
        [kept] = [row for row in of_prompt if row["kept"]]
        assert kept["reward"] == max(row["reward"] for row in of_prompt)
        assert all(row["reward"] == row["completion"].count("e") for row in of_prompt)


def test_top_keeps_the_best_share(make_setting, tmp_path: Path):
    make_setting().align(RAFT.model_copy(update={"strategy": "top", "fraction": 0.25, "iterations": 1}))
    rows = lines(tmp_path / "run" / "samples" / "iteration-0001.jsonl")
    kept = [row["reward"] for row in rows if row["kept"]]
    assert len(kept) == 6
    assert min(kept) >= max(row["reward"] for row in rows if not row["kept"])


def test_resume_continues_from_the_last_finished_iteration(make_setting, tmp_path: Path):
    whole = make_setting("whole")
    whole.align(RAFT)
    cut = make_setting("cut")

    class StopsInThird(CountsE):
        """Ask the run to stop while the second iteration's samples are scored."""

        def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
            if len(cut.log.metrics) and cut.trainer.step == 2 and len(completions) > 4:
                cut.log.stop_signal = 2
            return super().score(samples, completions)

    with pytest.raises(Interrupted):
        cut.align(RAFT, reward=StopsInThird())
    resumed = make_setting("cut", resume=True)
    assert resumed.trainer.restored == {"iteration": 1}
    resumed.align(RAFT)
    kept = ("loss", "reward_mean", "heldout_reward", "kl")
    for name in ("whole", "cut"):
        assert [m["step"] for m in lines(tmp_path / name / "metrics.jsonl") if "loss" in m] == [1, 2, 3, 4, 5, 6]
    pick = [[{k: m.get(k) for k in kept} for m in lines(tmp_path / n / "metrics.jsonl")] for n in ("whole", "cut")]
    assert pick[0] == pick[1]


def test_kl_against_enumeration(make_llama, make_tokenizer, tmp_path: Path):
    """Completions of two tokens over a vocabulary of 8: the estimate approaches the enumerated KL."""
    from lmflow.models.language_model import LanguageModel

    module = make_llama(8, eos_token_id=7, pad_token_id=0)
    model = LanguageModel(module, make_tokenizer(), "tiny")
    setting = Setting(model, tmp_path / "kl")
    prompt = [3, 4]
    pairs = list(itertools.product(range(8), repeat=2))

    def exact_logprobs() -> torch.Tensor:
        ids = torch.tensor([[*prompt, *pair] for pair in pairs])
        with torch.no_grad():
            logprobs = module(ids).logits.double().log_softmax(-1)
        return torch.stack([logprobs[i, 1, a] + logprobs[i, 2, b] for i, (a, b) in enumerate(pairs)])

    start = exact_logprobs()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    now = exact_logprobs()
    exact = float((now.exp() * (now - start)).sum())
    assert exact > 0.005
    # every pair, repeated in proportion to its probability: the estimator's expectation up to rounding
    counts = (now.exp() * 20_000).round().int().tolist()
    rows = [Completion(pair, "", (0.0, 0.0), "length") for pair, count in zip(pairs, counts) for _ in range(count)]
    drawn = Rollout([ask("q")], [Prompt(prompt)], [rows], [[0.0] * len(rows)], 0.0, 0.0)
    work = Work(model, setting.trainer, HuggingFace(), CountsE(), setting.log)
    assert work.kl_to_start(drawn) == pytest.approx(exact, rel=0.01)


def test_min_reward_may_leave_nothing(make_setting, tmp_path: Path):
    setting = make_setting()
    setting.align(RAFT.model_copy(update={"min_reward": 1e9, "iterations": 1}))
    assert setting.trainer.step == 0
    rows = lines(tmp_path / "run" / "samples" / "iteration-0001.jsonl")
    assert not any(row["kept"] for row in rows)


def test_held_out_prompts_may_be_missing(make_setting):
    setting = make_setting()
    setting.align(RAFT.model_copy(update={"iterations": 1}), data(heldout=0))
    assert "heldout_reward_after" not in setting.log.metrics
    assert not any(isinstance(v, float) and math.isnan(v) for v in setting.log.metrics.values())
