"""Aligner `sft`: supervised fine-tuning, and continual pretraining when the samples are plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmflow.components import Aligner, Inferencer, Reward, Workload

if TYPE_CHECKING:
    from lmflow.data.sample import Dataset
    from lmflow.models.language_model import LanguageModel
    from lmflow.recipe.sections.training import TrainingOptions
    from lmflow.run.log import RunLog
    from lmflow.training.trainer import Trainer


class Sft(Aligner):
    """Maximise the likelihood of the answers in the data (of all of it, for plain text)."""

    name = "sft"

    def align(
        self,
        model: LanguageModel,
        data: Dataset,
        trainer: Trainer,
        inferencer: Inferencer,
        reward: Reward | None,
        log: RunLog,
    ) -> None:
        """Train over the data for `training.epochs`, or `training.max_steps` steps."""
        from lmflow.models.encoding import encode

        sequences, lengths = encode(model, data.train, data.options, data.fingerprint)
        log.note(lengths.describe())
        log.tables["lengths"] = lengths.as_dict()
        log.metrics["trained_token_share"] = lengths.num_targets / lengths.tokens
        options = trainer.options
        trainer.plan(options.max_steps or options.steps_for(len(sequences), options.epochs))
        trainer.fit(sequences, epochs=options.epochs, first_step=0)
        trainer.checkpoint({})

    def workload(self, model: LanguageModel, data: Dataset, options: TrainingOptions) -> Workload:
        """All samples, for as long as `align` goes through them."""
        from lmflow.models.encoding import encode

        sequences, _ = encode(model, data.train, data.options, data.fingerprint)
        return Workload(sequences, options.max_steps or options.steps_for(len(sequences), options.epochs))
