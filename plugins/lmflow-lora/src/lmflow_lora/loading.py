"""An adapter's weights upon its base: every tensor of the files in its place, and none of its own left random."""

from __future__ import annotations

from typing import Any

from lmflow.errors import LmflowError


def adapted(base: Any, directory: str) -> Any:
    """The base with the PEFT adapter in `directory` beside its weights.

    Raises LmflowError naming tensors that are missing, have no place upon this base, or have another shape.
    """
    import torch
    from peft import PeftModel

    from lmflow.models.reading import explained_failure
    from lmflow.models.source import check_report

    # PEFT draws weights for the adapter before it reads them.
    with torch.random.fork_rng(devices=[]), explained_failure(directory):
        try:
            module = PeftModel.from_pretrained(base, directory)
            report = module.load_adapter(directory, "default")  # once more, as only this returns what was read
        except RuntimeError as error:
            raise LmflowError(misfit(directory, error)) from error
    check_report(
        directory, "model.path", {"missing_keys": report.missing_keys, "unexpected_keys": report.unexpected_keys}
    )
    return module


def misfit(directory: str, error: RuntimeError) -> str:
    """What PEFT says of tensors that have another shape than the adapter's configuration and its base ask for."""
    lines = [line.strip() for line in str(error).splitlines()]
    shown = " ".join(line for line in lines[1:3]) or lines[0]
    return f"model.path {directory}: its tensors do not fit its base: {shown}"


def merged(module: Any) -> Any:
    """The model with its adapter merged in, which computes what it did beside it.

    A head that shares its weights with the embeddings, where an adapter changes one of them, gets weights of its own
    before: merging would change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    base = module.get_base_model()
    inputs, outputs = base.get_input_embeddings(), base.get_output_embeddings()
    if any(isinstance(each, BaseTunerLayer) for each in (inputs, outputs)):
        head, table = (
            each.get_base_layer() if isinstance(each, BaseTunerLayer) else each for each in (outputs, inputs)
        )
        if head.weight is table.weight:
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            base.config.tie_word_embeddings = False
    return module.merge_and_unload()
