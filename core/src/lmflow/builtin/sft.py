"""Aligner `sft`: supervised fine-tuning, and continual pretraining when the samples are plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmflow.components import Aligner, Workload

if TYPE_CHECKING:
    from lmflow.components import AlignContext, PlanContext


class Sft(Aligner):
    """Maximise the likelihood of the answers in the data (of all of it, for plain text)."""

    name = "sft"
    packs = True

    def align(self, context: AlignContext) -> None:
        """Train over the data for `training.epochs`, or `training.max_steps` steps."""
        from lmflow.models.encoding import encode

        data, trainer, log = context.data, context.trainer, context.log
        sequences, lengths = encode(context.model, data.train, data.options, data.fingerprint)
        log.note(lengths.describe())
        log.tables["lengths"] = lengths.as_dict()
        log.metrics["trained_token_share"] = lengths.num_targets / lengths.tokens
        steps = trainer.options.total_steps(len(sequences))
        trainer.plan(steps)
        trainer.fit(sequences, steps=steps, start=0)
        trainer.checkpoint()

    def workload(self, context: PlanContext) -> Workload:
        """All samples, for as long as `align` goes through them."""
        from lmflow.models.encoding import encode

        data = context.data
        sequences, lengths = encode(context.model, data.train, data.options, data.fingerprint)
        return Workload(sequences, context.options.total_steps(len(sequences)), lengths=lengths)
