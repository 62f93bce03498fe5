"""Log-probabilities without gradient: in order, bounded, of the weights as they are, and shared by processes."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.data.sample import TokenSequence
from lmflow.errors import Interrupted
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.testing.contexts import quiet_log, trainer_setup
from lmflow.training.batches import MICRO_BATCH_TOKENS
from lmflow.training.loss import sequence_logprobs, token_logprobs
from lmflow.training.trainer import Trainer


def sequences(count: int = 9, longest: int = 40) -> list[TokenSequence]:
    draw = random.Random(0)
    made = []
    for index in range(count):
        length = draw.randint(3, longest)
        mask = [draw.random() < 0.5 for _ in range(length)]
        made.append(TokenSequence([draw.randint(3, 250) for _ in range(length)], mask, f"s{index}"))
    return [*made, TokenSequence([5, 6, 7], [False] * 3, "without targets")]


def by_hand(module: nn.Module, sequence: TokenSequence) -> list[float]:
    with torch.no_grad():
        logprobs = module(torch.tensor([sequence.ids])).logits[0].double().log_softmax(-1)
    return [float(logprobs[i - 1, sequence.ids[i]]) for i in range(1, len(sequence)) if sequence.loss_mask[i]]


def test_each_target_has_its_own_in_the_order_given(tiny_model: LanguageModel):
    found = token_logprobs(tiny_model, sequences())
    for values, sequence in zip(found, sequences(), strict=True):
        assert values.dtype == torch.float32
        assert values.shape == (sequence.num_targets,)
        assert values.tolist() == pytest.approx(by_hand(tiny_model.module, sequence), rel=1e-4)
    sums = sequence_logprobs(tiny_model, sequences())
    torch.testing.assert_close(sums, torch.stack([each.sum() for each in found]))
    assert not sums.requires_grad
    assert sums[-1] == 0
    assert token_logprobs(tiny_model, []) == []
    assert sequence_logprobs(tiny_model, []).shape == (0,)


def test_dropout_is_off_and_the_mode_comes_back(make_llama: Any, tiny_model: LanguageModel):
    model = tiny_model.with_module(make_llama(attention_dropout=0.5).train())
    first, second = (sequence_logprobs(model, sequences()) for _ in range(2))
    assert torch.equal(first, second)
    assert model.module.training


def test_every_pass_is_bounded_by_tokens(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    """Sixteen rows of 256 tokens were one pass before, and so were sixteen of 1,500."""
    sizes = []
    own = type(tiny_model.module).forward

    def forward(self: Any, input_ids: torch.Tensor, **inputs: Any) -> Any:
        sizes.append(input_ids.numel())
        return own(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(tiny_model.module), "forward", forward)
    many = [TokenSequence([7] * 200, [True] * 200) for _ in range(30)]
    sequence_logprobs(tiny_model, many)
    assert max(sizes) <= MICRO_BATCH_TOKENS
    assert sum(sizes) >= 6000


def test_within_start_weights_they_are_those_of_the_start(tiny_model: LanguageModel, tmp_path: Path):
    model = tiny_model.with_module(copy.deepcopy(tiny_model.module))
    options = TrainingOptions(learning_rate=1e-2, batch_size=4)
    trainer = Trainer(model, options, quiet_log(), tmp_path, trainer_setup(keep_start_weights=True))
    trainer.fit(sequences(), steps=2, checkpoints=False)
    now = sequence_logprobs(model, sequences())
    with trainer.start_weights():
        start = sequence_logprobs(model, sequences())
    torch.testing.assert_close(start, sequence_logprobs(tiny_model, sequences()))
    assert not torch.allclose(now, start)
    torch.testing.assert_close(now, sequence_logprobs(model, sequences()))


def test_with_an_adapter_switched_off_they_are_the_bases(tiny_model: LanguageModel):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted: Any = get_peft_model(
        copy.deepcopy(tiny_model.module), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    model = tiny_model.with_module(adapted)
    with adapted.disable_adapter():
        off = sequence_logprobs(model, sequences())
    torch.testing.assert_close(off, sequence_logprobs(tiny_model, sequences()))
    assert not torch.allclose(off, sequence_logprobs(model, sequences()))


def test_with_a_log_they_advance_and_stop(tiny_model: LanguageModel):
    log = quiet_log()
    done: list[int] = []
    log.advance = done.append  # type: ignore[method-assign]
    sequence_logprobs(tiny_model, sequences(), log)
    assert sum(done) == 10
    log.stop_signal = 2
    tiny_model.module.train()
    with pytest.raises(Interrupted):
        sequence_logprobs(tiny_model, sequences(), log)
    assert tiny_model.module.training
