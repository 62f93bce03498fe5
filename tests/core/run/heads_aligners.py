"""A plugin for tests of whole runs: aligners with a value head and with a reward head, and tuners that train little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import AlignContext, Aligner, Head, PlanContext, RunContext, Tuner, Workload
from lmflow.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lmflow.data.sample import Dataset, Item, Sample
    from lmflow.models.language_model import LanguageModel
    from lmflow.training.objective import Objective


class Valued(Aligner):
    """Learn the answers, and to tell at each token how much of the answer is behind: a value head."""

    name = "valued"
    width: int = Field(0, description="Size of the head's layer between; 0 for none.")

    def heads(self, model: LanguageModel) -> dict[str, Head]:
        return {"value": Head(hidden=(self.width,) if self.width else ())}

    def items(self, model: LanguageModel, samples: Sequence[Sample], data: Dataset) -> Sequence[Item]:
        from lmflow.models.encoding import encode_answered

        return [with_returns(each) for each in encode_answered(model, samples, data.options)]

    def objective(self, context: RunContext) -> Objective:
        from lmflow.training.heads import head_applied
        from lmflow.training.loss import target_inputs, target_logprobs
        from lmflow.training.objective import FunctionObjective, Loss

        head = context.model.heads["value"]

        def loss(forward: Any, module: Any, batch: Any) -> Loss:
            with head_applied(module, head, batch.target_positions) as found:
                logprobs, _ = target_logprobs(forward, module, batch)
            errors = (found[0].squeeze(-1) - target_inputs(batch, "returns")).square()
            return Loss(errors.sum() - logprobs.sum(), {"value_error": errors.detach().sum()})

        return FunctionObjective(loss)

    def align(self, context: AlignContext) -> None:
        items = self.items(context.model, context.data.train, context.data)
        steps = context.trainer.options.total_steps(len(items))
        context.trainer.plan(steps)
        context.trainer.fit(items, steps=steps, start=0)
        context.trainer.checkpoint()

    def workload(self, context: PlanContext) -> Workload:
        items = self.items(context.model, context.data.train, context.data)
        return Workload(items, context.options.total_steps(len(items)))


def with_returns(sequence: Any) -> Any:
    """The sequence, with the share of the answer that lies before each of its targets."""
    count = sequence.num_targets
    return replace(sequence, objective_inputs={"returns": [k / count for k in range(count)]})


class Rewarded(Valued):
    """The recorded answer is to score higher than the same letters from the last to the first: a reward head."""

    name = "rewarded"

    def heads(self, model: LanguageModel) -> dict[str, Head]:
        return {"reward": Head(bias=False)}

    def items(self, model: LanguageModel, samples: Sequence[Sample], data: Dataset) -> Sequence[Item]:
        pairs = []
        for sample in samples:
            *prompt, answer = sample.messages
            worse = replace(answer, content=answer.content[::-1])
            [[good], [bad]] = model.encode_all([sample, replace(sample, messages=(*prompt, worse))])
            pairs.append((good, bad))
        return pairs

    def objective(self, context: RunContext) -> Objective:
        from torch.nn.functional import logsigmoid

        from lmflow.training.heads import head_outputs, last_positions
        from lmflow.training.objective import FunctionObjective, Loss

        head = context.model.heads["reward"]

        def loss(forward: Any, module: Any, batch: Any) -> Loss:
            scores = head_outputs(forward, module, batch, head, last_positions(batch)).squeeze(-1)
            margin = scores[::2] - scores[1::2]
            return Loss(-logsigmoid(margin).sum(), {"accuracy": (margin > 0).float().sum()})

        return FunctionObjective(loss, "item")


class Forgets(Valued):
    """Its objective looks at the head without a gradient."""

    name = "forgets"

    def objective(self, context: RunContext) -> Objective:
        from lmflow.training.heads import head_outputs
        from lmflow.training.objective import FunctionObjective, Loss, NextToken

        def loss(forward: Any, module: Any, batch: Any) -> Loss:
            values = head_outputs(forward, module, batch, context.model.heads["value"]).detach()
            return Loss(NextToken()(forward, module, batch).total, {"value": values.sum()})

        return FunctionObjective(loss)


class Nothing(Tuner):
    """Leave the model as it is."""

    name = "nothing"

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(False)


class LastBlock(Tuner):
    """Train the last block alone."""

    name = "last-block"

    def prepare(self, model: nn.Module) -> nn.Module:
        layers: Any = model.requires_grad_(False).model.layers  # type: ignore[union-attr]
        layers[-1].requires_grad_(True)
        return model


@hookimpl
def lmflow_aligners() -> list[type[Aligner]]:
    return [Valued, Rewarded, Forgets]


@hookimpl
def lmflow_tuners() -> list[type[Tuner]]:
    return [Nothing, LastBlock]
