"""Draft models: loading one, and whether it can serve a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmflow.components import LoadRequest
from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError, RecipeError
from lmflow.models.language_model import dynamic_factor

if TYPE_CHECKING:
    from lmflow.components import Attention
    from lmflow.models.language_model import LanguageModel
    from lmflow.plugins import Plugins

LOOK = 0.05
"""What verifying one more proposal costs, in passes of the target; proposing by lookup costs nothing else."""


def load_draft(
    plugins: Plugins, reference: str, dtype: str, device: str, attention: Attention | None = None
) -> LanguageModel:
    """The model `reference` means, its weights in `dtype` on `device`; raises LmflowError when there is none."""
    from lmflow.recipe.resolve import model_from_reference

    try:
        request = LoadRequest(dtype=dtype, device=device, attention=attention, plugins=plugins)
        draft = model_from_reference(plugins, reference).load(request)
    except RecipeError as error:
        reasons = "; ".join(problem.removeprefix("--model: ") for problem in error.problems)
        raise RecipeError([f"inferencer.draft: {reasons}"]) from None
    except LmflowError as error:
        raise LmflowError(f"inferencer.draft: {error}") from error
    draft.module.requires_grad_(False)
    return draft


def check_vocabularies(draft: LanguageModel, target: LanguageModel) -> None:
    """Raise LmflowError, naming the first token that differs, unless both tokenizers give every token one number.

    So it does where the draft has fewer embeddings than there are tokens.
    """
    ours, theirs = _tokens(draft.tokenizer), _tokens(target.tokenizer)
    if ours == theirs:
        rows = draft.vocabulary_size
        beyond = None if rows is None else min((number for number in theirs if number >= rows), default=None)
        if beyond is not None:
            raise LmflowError(
                f"inferencer.draft: {draft.source} has {rows:,} embeddings, and token {beyond} "
                f"({theirs[beyond]!r}) of the model {target.source} is beyond them; lmflow draft trains one with all."
            )
        return
    number = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    raise LmflowError(
        f"inferencer.draft: {draft.source} and the model {target.source} have different vocabularies: token {number} "
        f"is {_shown(ours.get(number))} in the draft and {_shown(theirs.get(number))} in the model. Proposals are "
        "token numbers, so a draft needs the model's own tokenizer; lmflow draft trains one that has it."
    )


def check_positions(target: LanguageModel) -> None:
    """Raise LmflowError for dynamic RoPE, whose angles follow the longest text read so far.

    A block read at once then has other keys than its tokens one by one, and refused proposals would leave traces.
    """
    config: Any = target.module.config
    if dynamic_factor(config.get_text_config()) > 1:
        raise LmflowError(
            "Inferencer speculative is exact only where a token's position does not depend on those after it, and this "
            "model has dynamic RoPE. Use --inferencer hf, or another --context (yarn, ntk)."
        )


def check_decoding(model: LanguageModel) -> None:
    """Raise LmflowError for a model whose blocks, padded and with tokens taken back, are not what plain passes give."""
    from lmflow.inference.ways import USUAL, find_way

    if find_way(model) is not USUAL:
        config: Any = model.module.config
        raise LmflowError(
            f"Inferencer speculative cannot take back tokens from a model of type {config.model_type}: "
            "rows in one padded batch with a cache of keys and values come out wrong. Use --inferencer hf."
        )


def check_prompt(draft: LanguageModel, prompt: Prompt, which: str) -> None:
    """Raise DataError for a prompt the draft cannot read: one with images, or longer than its context."""
    reach = draft.context_length
    if prompt.model_inputs:
        raise DataError(
            f"{which} holds more than text ({', '.join(prompt.model_inputs)}), which the draft cannot read. Leave "
            "--inferencer.draft out: proposals are then looked up in the text."
        )
    if reach is not None and len(prompt.ids) > reach:
        raise DataError(
            f"{which} has {len(prompt.ids)} tokens; the draft's context is {reach}. Shorten it, use a draft with a "
            "longer context, or leave --inferencer.draft out."
        )


def relative_cost(target: LanguageModel, draft: LanguageModel | None) -> float:
    """What a proposal costs in passes of the target.

    A pass takes time by its weights where they are many and by its layers where they are few; the greater share of
    the two counts. Both are the same on every machine, so that what is sampled does not depend on a clock.
    """
    if draft is None:
        return LOOK
    return LOOK + max(ours / theirs for ours, theirs in zip(_size(draft), _size(target), strict=True))


def _size(model: LanguageModel) -> tuple[int, int]:
    """Weights and layers."""
    config: Any = model.module.config
    return sum(p.numel() for p in model.module.parameters()), config.get_text_config().num_hidden_layers


def _tokens(tokenizer: Any) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token)
