"""Aligner `raft`: reward-ranked fine-tuning (Dong et al., 2023, arXiv 2304.06767).

Per iteration: draw a batch of prompts, sample K completions each from the current policy, score them, keep the
best, fine-tune on what was kept. Left out of the paper: sampling from several models, and warm-up by SFT on
demonstrations, which is a run of its own (`--aligner sft`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lmflow.components import Aligner, GenerateRequest, Inferencer, Need, Reward, Workload
from lmflow.data.sample import Prompt, Sample, TokenSequence
from lmflow.inference.rollouts import completion_sequence
from lmflow.inference.types import Completion, Sampling
from lmflow_raft.selection import distinct_n, draw_prompts, keep_best_of_all, keep_best_of_each

if TYPE_CHECKING:
    from lmflow.components import AlignContext, Log, PlanContext
    from lmflow.models.language_model import LanguageModel
    from lmflow.training.trainer import Trainer


class Raft(Aligner):
    """Sample, rank by reward, fine-tune on the best, repeat (RAFT, Dong et al., 2023)."""

    name = "raft"
    compares_with_start = True
    needs = (Need("reward", because="raft ranks completions by reward; name one with --reward"),)
    preferred: ClassVar[Mapping[str, Any]] = {
        "training.learning_rate": 1e-3,
        "training.batch_size": 16,
        "schedule.name": "constant",
        "schedule.warmup": 0,
    }

    iterations: int = Field(8, gt=0, description="Rounds of sampling and fine-tuning.")
    prompts: int = Field(64, gt=0, description="Prompts sampled from per iteration.")
    samples: int = Field(8, gt=0, description="Completions sampled per prompt (K).")
    strategy: Literal["local", "top"] = Field(
        "local", description="Keep the best completion of each prompt (local), or the best share of all (top)."
    )
    fraction: float = Field(0.125, gt=0, le=1, description="Share of all completions kept by strategy top.")
    min_reward: float | None = Field(None, description="Never train on a completion with a lower reward.")
    temperature: float = Field(1.0, gt=0, description="Temperature completions are sampled at.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the smallest set of tokens with this probability.")
    top_k: int = Field(0, ge=0, description="Sample from the k most probable tokens only; 0 samples from all.")
    min_new_tokens: int = Field(0, ge=0, description="No completion ends before this many tokens.")
    epochs: int = Field(1, gt=0, description="Passes over the kept completions per iteration.")
    heldout_samples: int = Field(2, gt=0, description="Completions sampled per held-out prompt when measuring.")

    def align(self, context: AlignContext) -> None:
        """Run the iterations left to do; each ends with a checkpoint, so a resumed run repeats at most one."""
        from lmflow.models.encoding import prompts_with_room

        model, data, trainer, log = context.model, context.data, context.trainer, context.log
        reward = context.reward
        assert reward is not None  # declared in `needs`
        work = Work(model, trainer, context.inferencer, reward, log)
        pool = prompts_with_room(model, data.train, self.max_new_tokens, data.options, log, "training")
        fixed = prompts_with_room(model, data.heldout, self.max_new_tokens, data.options, log, "held-out")
        fixed = fixed[: self.heldout_prompts]
        trainer.plan(trainer.options.max_steps or self.iterations * self._steps(trainer, len(pool)))
        done = int(trainer.restored.get("iteration", 0))
        if not done:
            before = self._measure(work, fixed)
            log.step({"step": 0, "iteration": 0, **before})
            remember(log, "before", before)
        for iteration in range(done + 1, self.iterations + 1):
            if trainer.step >= trainer.total_steps:
                break
            chosen = [pool[i] for i in draw_prompts(len(pool), self.prompts, iteration, trainer.options.seed)]
            rollout = self._sample(work, chosen, self.samples, seed=trainer.options.seed * 100_003 + iteration)
            kept = self._select(rollout)
            log.samples(iteration, sample_rows(iteration, rollout, kept))
            sequences = [training_sequence(rollout, at) for at in kept]
            loss, training_before = None, log.seconds["training"]
            if sequences:
                steps = min(trainer.steps_for(len(sequences), self.epochs), trainer.total_steps - trainer.step)
                loss = trainer.fit(sequences, steps=steps, first_epoch=(iteration - 1) * self.epochs, checkpoints=False)
            else:
                log.note(f"iteration {iteration}: no completion reached --aligner.min_reward; nothing to train on")
            after = self._measure(work, fixed)
            log.step(
                {
                    "step": trainer.step,
                    "iteration": iteration,
                    **describe(rollout, kept, loss),
                    "seconds_training": log.seconds["training"] - training_before,
                    **after,
                }
            )
            remember(log, "after", after)
            trainer.remember({"iteration": iteration})
            trainer.checkpoint()

    def workload(self, context: PlanContext) -> Workload:
        """The first iteration's prompts with completions of the greatest length; the number of steps of all."""
        model, data, options = context.model, context.data, context.options
        longest = [model.end_ids[0]] * self.max_new_tokens
        sequences = []
        for index in draw_prompts(len(data.train), self.prompts, 1, options.seed):
            prompt = model.encode_prompt(data.train[index])
            loss_mask = [False] * len(prompt.ids) + [True] * len(longest)
            sequences.append(
                TokenSequence([*prompt.ids, *longest], loss_mask, data.train[index].source, prompt.model_inputs)
            )
        kept = self._kept(len(sequences))
        sequences = [sequences[index % len(sequences)] for index in range(kept)]
        return Workload(sequences, options.max_steps or self.iterations * options.steps_for(kept, self.epochs))

    def _steps(self, trainer: Trainer, pool: int) -> int:
        """Optimizer steps of one iteration."""
        return trainer.steps_for(self._kept(min(self.prompts, pool)), self.epochs)

    def _kept(self, prompts: int) -> int:
        """Completions that an iteration of so many prompts trains on."""
        return prompts if self.strategy == "local" else max(1, round(self.fraction * prompts * self.samples))

    def _sample(self, work: Work, samples: Sequence[Sample], n: int, seed: int) -> Rollout:
        """Sample n completions for each prompt and score them.

        Of several processes each samples for a share of the prompts, and rank 0 scores, as a reward that looks at
        a whole batch has to.
        """
        from lmflow.inference.rewards import score_groups
        from lmflow.inference.shard import generate_sharded

        log = work.log
        sampling = Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            n=n,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            seed=seed,
        )
        prompts = [work.model.encode_prompt(sample) for sample in samples]
        seconds = dict(log.seconds)
        with work.trainer.autocast():
            request = GenerateRequest(work.model, prompts, sampling)
            completions = generate_sharded(work.inferencer, request, log, "sampling")
        rewards = score_groups(log, work.reward, samples, completions)
        spent = {name: log.seconds[name] - seconds.get(name, 0.0) for name in ("sampling", "scoring")}
        return Rollout(samples, prompts, completions, rewards, spent["sampling"], spent["scoring"])

    def _select(self, rollout: Rollout) -> list[tuple[int, int]]:
        if self.strategy == "local":
            chosen = keep_best_of_each(rollout.rewards)
        else:
            chosen = keep_best_of_all(rollout.rewards, self.fraction)
        if self.min_reward is None:
            return chosen
        return [(i, j) for i, j in chosen if rollout.rewards[i][j] >= self.min_reward]

    def _measure(self, work: Work, samples: Sequence[Sample]) -> dict[str, float]:
        """Mean reward of the fixed held-out prompts, always with the same seed, and KL to the start model."""
        if not samples:
            return {}
        rollout = self._sample(work, samples, self.heldout_samples, seed=work.trainer.options.seed)
        return {"heldout_reward": mean(flat(rollout.rewards)), "kl": work.kl_to_start(rollout)}


@dataclass(frozen=True)
class Work:
    """What every iteration uses."""

    model: LanguageModel
    trainer: Trainer
    inferencer: Inferencer
    reward: Reward
    log: Log

    def kl_to_start(self, rollout: Rollout) -> float:
        """Estimate of KL(policy || start model) per completion, in nats: the mean of log p(y|x) - log p0(y|x).

        Unbiased for completions sampled at temperature 1 from all tokens; both models are read at temperature 1.
        """
        from lmflow.training.loss import sequence_logprobs

        sequences = [
            training_sequence(rollout, (i, j)) for i, row in enumerate(rollout.completions) for j in range(len(row))
        ]
        with self.log.phase("comparing with the start model", 2 * len(sequences)), self.trainer.autocast():
            now = sequence_logprobs(self.model, sequences, self.log)
            with self.trainer.start_weights():
                start = sequence_logprobs(self.model, sequences, self.log)
        return float((now - start).mean())


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch of prompts with their rewards, [prompt][sample]."""

    samples: Sequence[Sample]
    prompts: Sequence[Prompt]
    completions: Sequence[Sequence[Completion]]
    rewards: Sequence[Sequence[float]]
    seconds_sampling: float
    seconds_scoring: float


def training_sequence(rollout: Rollout, at: tuple[int, int]) -> TokenSequence:
    """Prompt and completion as sampled, the loss on the completion's tokens and its end-of-text token only."""
    prompt, completion = rollout.prompts[at[0]], rollout.completions[at[0]][at[1]]
    return completion_sequence(prompt, completion, rollout.samples[at[0]].source)


def describe(rollout: Rollout, kept: Sequence[tuple[int, int]], loss: float | None) -> dict[str, Any]:
    """The metrics of one iteration's samples."""
    completions = flat(rollout.completions)
    ids = [completion.ids for completion in completions]
    metrics = {
        "reward_mean": mean(flat(rollout.rewards)),
        "reward_kept_mean": mean([rollout.rewards[i][j] for i, j in kept]) if kept else None,
        "kept": len(kept),
        "distinct_1": distinct_n(ids, 1),
        "distinct_2": distinct_n(ids, 2),
        "response_length": mean([len(each) for each in ids]),
        "stopped_share": mean([completion.finish_reason != "length" for completion in completions]),
        "iteration_loss": loss,
        "seconds_sampling": rollout.seconds_sampling,
        "seconds_scoring": rollout.seconds_scoring,
    }
    return {name: value for name, value in metrics.items() if value is not None and value == value}


def sample_rows(iteration: int, rollout: Rollout, kept: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """One row per completion for samples/, in the order of the rollout."""
    chosen = set(kept)
    return [
        {
            "iteration": iteration,
            "prompt": sample.prompt_text,
            "completion": completion.text,
            "reward": rollout.rewards[i][j],
            "kept": (i, j) in chosen,
            "tokens": len(completion.ids),
            "finish_reason": completion.finish_reason,
            "source": sample.source,
        }
        for i, sample in enumerate(rollout.samples)
        for j, completion in enumerate(rollout.completions[i])
    ]


def remember(log: Log, when: str, measured: Mapping[str, float]) -> None:
    """Put the held-out reward into the run's summary."""
    if "heldout_reward" in measured:
        log.metrics[f"heldout_reward_{when}"] = measured["heldout_reward"]
    if when == "after":
        log.metrics["kl"] = measured.get("kl")


def flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """All elements of all rows."""
    return [each for row in rows for each in row]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
