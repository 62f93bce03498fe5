"""The suite of attention passes good ones, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lmflow.builtin.attention import Eager, Sdpa
from lmflow.components import Attention
from lmflow.errors import LmflowError
from lmflow.testing import AttentionSuite


@pytest.mark.parametrize("given", [Sdpa(), Eager()], ids=["sdpa", "eager"])
class TestOurs(AttentionSuite):
    @pytest.fixture
    def attention(self, given: Attention) -> Attention:
        return given


class Registered(Attention):
    """A function of the plugin's own, registered as Transformers asks for."""

    name = "registered"
    refuses: tuple[str, ...] = ("gpt2",)

    def implementation(self, config: Any, device: str) -> str:
        if config.model_type in self.refuses:
            raise LmflowError(f"--attention {self.name}: model type {config.model_type} is not supported")
        name = f"lmflow-test-{type(self).__name__}"
        AttentionInterface.register(name, self.forward)
        AttentionMaskInterface.register(name, sdpa_mask)
        return name

    @staticmethod
    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, mask, **options)


class Unregistered(Registered):
    def implementation(self, config, device):
        return "sdpa" if config._attn_implementation != "sdpa" else "eager"


class ChangesTheConfiguration(Registered):
    def implementation(self, config, device):
        config.attention_dropout = 0.1
        return super().implementation(config, device)


class RefusesByTypeError(Registered):
    def implementation(self, config, device):
        if config.model_type == "gpt2":
            raise TypeError("no scale")
        return super().implementation(config, device)


class WrongScale(Registered):
    @staticmethod
    def forward(module, query, key, value, mask, **options):
        return sdpa_attention_forward(module, query * 1.1, key, value, mask, **options)


class IgnoresTheMask(Registered):
    """Causal over the whole row, whatever the mask says: right for one sequence alone."""

    @staticmethod
    def forward(module, query, key, value, mask, **options):
        causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
        return sdpa_attention_forward(module, query, key, value, causal, **options)


class SeesItselfAlone(Registered):
    """Looks at no other token where the mask is given in full, as for padding."""

    @staticmethod
    def forward(module, query, key, value, mask, **options):
        if mask is not None:
            mask = mask & (torch.rand(mask.shape) < 2) & (mask.sum(-1, keepdim=True) < 10)
        return sdpa_attention_forward(module, query, key, value, mask, **options)


class NoGradientOfValues(Registered):
    @staticmethod
    def forward(module, query, key, value, mask, **options):
        return sdpa_attention_forward(module, query, key, value.detach(), mask, **options)


REFUSED, BUILT = "test_what_it_cannot_compute_is_refused", "test_the_model_is_built_with_it"
LOGITS, PADDED = "test_logits_are_those_of_eager", "test_padding_changes_nothing"
PACKED, CACHED = "test_packed_samples_do_not_see_each_other", "test_a_cache_changes_nothing"


def test_a_good_attention_passes_everything(examine: Callable[..., Any]):
    reports = examine(AttentionSuite, attention=Registered(), refused=("gpt2",))
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (Unregistered, BUILT, "to compute with"),
        (ChangesTheConfiguration, "test_asking_changes_nothing", "attention_dropout"),
        (RefusesByTypeError, REFUSED, "found TypeError: no scale"),
        (WrongScale, LOGITS, "expected the numbers of eager"),
        (SeesItselfAlone, PADDED, "padded"),
        (IgnoresTheMask, PACKED, "packed"),
        (NoGradientOfValues, "test_gradients_are_those_of_eager", "v_proj"),
    ],
)
def test_a_broken_attention_fails_its_check(
    broken: type[Attention], check: str, said: str, examine: Callable[..., Any]
):
    given = {"attention": broken(), "refused": ("gpt2",), "architectures": ("llama",)}
    report = examine(AttentionSuite, only=check, **given)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_what_is_taken_must_not_be_declared_refused(examine: Callable[..., Any]):
    report = examine(AttentionSuite, attention=Sdpa(), refused=("gpt2",), only=REFUSED)[REFUSED]
    assert report.outcome == "failed"
    assert "names the model type gpt2; found NoneType" in report.message


def test_one_that_cannot_pack_says_so(examine: Callable[..., Any]):
    given = {"architectures": ("llama",), "only": PACKED, "packs": False}
    assert examine(AttentionSuite, attention=IgnoresTheMask(), **given)[PACKED].outcome == "passed"
    assert examine(AttentionSuite, attention=Sdpa(), **given)[PACKED].outcome == "failed"
