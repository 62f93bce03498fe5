"""Training a draft: a small model learns the target's distribution on the target's own samples.

Sequence-level data from the target and its probabilities as labels (Zhou et al., 2024, DistillSpec, arXiv 2310.08461):
what is minimised, KL(p || q) at every place of a completion, bounds how often a proposal is refused. Left out are other
divergences and samples from the draft itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch
from lmflow.data.sample import Prompt, TokenSequence
from lmflow.errors import LmflowError
from lmflow.inference.types import Completion
from lmflow.models.language_model import LanguageModel
from lmflow.training.loss import forward_inputs, head_restricted_to, target_mask
from lmflow.training.objective import FunctionObjective, Objective
from lmflow_speculative.options import DraftOptions

HEAD_SIZE = 32
"""Smallest size of an attention head in a draft."""


def build_draft(target: LanguageModel, options: DraftOptions, seed: int) -> LanguageModel:
    """A new Llama with the target's tokenizer and context, its weights random in float32.

    With the target's hidden size it starts from the target's embeddings, which it need not learn then.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs: Any = target.module.config
    text = theirs.get_text_config()
    head = target.module.get_output_embeddings().weight  # type: ignore[operator]
    hidden = options.hidden or text.hidden_size
    heads = max(1, hidden // max(HEAD_SIZE, getattr(text, "head_dim", None) or HEAD_SIZE))
    if hidden % heads:
        raise LmflowError(
            f"draft.hidden: {hidden} cannot be divided among {heads} attention heads; use a multiple of 32."
        )
    rope = getattr(text, "rope_parameters", None) or {}
    config = LlamaConfig(
        vocab_size=head.shape[0],
        hidden_size=hidden,
        intermediate_size=options.intermediate or -(-hidden * 8 // 3 // 32) * 32,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=target.context_length or 2048,
        rope_parameters={"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)},
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", True)),
        bos_token_id=target.tokenizer.bos_token_id,
        eos_token_id=list(target.end_ids),
        pad_token_id=target.tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    module = LlamaForCausalLM(config).to(target.device)
    if hidden == text.hidden_size:
        with torch.no_grad():
            module.get_input_embeddings().weight.copy_(target.module.get_input_embeddings().weight)  # type: ignore[operator]
            module.get_output_embeddings().weight.copy_(head)
    module.generation_config.eos_token_id = list(target.end_ids)
    return LanguageModel(module, target.tokenizer, "draft")


def as_sequences(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]]) -> list[TokenSequence]:
    """Completions after their prompts, trained on what was drawn."""
    return [
        TokenSequence(
            [*prompt.ids, *completion.ids],
            [False] * len(prompt.ids) + [True] * len(completion.ids),
            f"completion {number}.{sample} of the target",
        )
        for number, (prompt, row) in enumerate(zip(prompts, drawn, strict=True), 1)
        for sample, completion in enumerate(row, 1)
    ]


def distillation_from(target: LanguageModel) -> Objective:
    """The objective KL(p || q): the sum over the batch's targets, in nats, p the target's and q the draft's.

    Both are read at temperature 1 without filters, for a draft serves all ways of sampling.
    """

    def objective(forward: nn.Module, unwrapped: nn.Module, batch: Batch) -> Tensor:
        mask = target_mask(batch.loss_mask)
        with torch.no_grad(), head_restricted_to(target.module, mask):
            theirs = target.module(**forward_inputs(batch)).logits.float().log_softmax(-1)
        with head_restricted_to(unwrapped, mask):
            ours = forward(**forward_inputs(batch)).logits.float().log_softmax(-1)
        return divergence(theirs, ours)

    return FunctionObjective(objective)


def divergence(target: Tensor, draft: Tensor) -> Tensor:
    """Sum over rows of KL(p || q) in nats, from log p (N, V) and log q (N, V'); spare columns are left out.

    Columns beyond the narrower vocabulary are no tokens; p leaves nothing there worth counting.
    """
    width = min(target.shape[-1], draft.shape[-1])
    return nn.functional.kl_div(draft[:, :width], target[:, :width], reduction="sum", log_target=True)
