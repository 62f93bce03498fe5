"""The parts of extending a configuration, each by itself; test_contexts.py has them together, on real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from lmflow.errors import LmflowError
from lmflow_longctx.configuration import (
    Rotation,
    check_accepted,
    check_frequencies,
    extend,
    extension,
    head_size,
    layer,
    layers_to_scale,
    parameter_types,
    reads_rope_type,
    refuse_scaled,
    rope_parameters,
    rotated,
    single,
    text_part,
    transformers_frequencies,
    unsupported,
    write,
)
from lmflow_longctx.contexts import Linear, Ntk, Yarn


def llama(**options: Any) -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 64}
    return LlamaConfig(**{**sizes, "vocab_size": 50, "intermediate_size": 32, **options})


def gemma(**options: Any) -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8, "max_position_embeddings": 64}
    return AutoConfig.for_model("gemma3_text", **{**sizes, "num_hidden_layers": 6, "vocab_size": 50, **options})


def test_the_text_part_of_a_text_model_is_itself():
    config = llama()
    assert text_part(config) is config


def test_rope_parameters_are_written_out():
    assert rope_parameters(llama(rope_theta=5000.0)) == {"rope_type": "default", "rope_theta": 5000.0}


def test_a_model_without_them_is_named_with_what_to_choose():
    with pytest.raises(LmflowError, match=r"cannot extend model type gpt2: .*no rotary positions.*Choose a model"):
        rope_parameters(AutoConfig.for_model("gpt2"))


@pytest.mark.parametrize(
    ("scaling", "expected"), [(Linear(factor=4), 4.0), (Linear(length=96), 1.5), (Yarn(length=6400), 100.0)]
)
def test_how_many_times_longer(scaling: Any, expected: float):
    assert extension("llama", scaling, 64) == expected


@pytest.mark.parametrize("length", [64, 63, 2])
def test_a_length_the_model_reads_already(length: int):
    with pytest.raises(LmflowError, match=rf"--context.length {length}: this llama model already reads 64 tokens"):
        extension("llama", Linear(length=length), 64)


def test_scalings_are_put_upon_one_another_only_where_they_make_one():
    refuse_scaled("llama", {"rope_type": "default"}, Yarn(factor=2))
    refuse_scaled("llama", {"rope_type": "linear", "factor": 2.0}, Linear(factor=2))
    with pytest.raises(LmflowError, match=r"positions of this llama model are already of type linear by 2, and two"):
        refuse_scaled("llama", {"rope_type": "linear", "factor": 2.0}, Yarn(factor=2))
    with pytest.raises(LmflowError, match=r"already of type longrope, and two"):
        refuse_scaled("phi3", {"rope_type": "longrope"}, Linear(factor=2))


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 8), ({"head_dim": 16}, 16), ({"num_attention_heads": 2}, 16)], ids=str
)
def test_the_size_of_a_head(options: dict[str, Any], expected: int):
    assert head_size(llama(**options)) == expected


def test_dimensions_that_are_turned():
    assert rotated(llama(), {"rope_type": "default"}) == 8
    assert rotated(llama(), {"rope_type": "default", "partial_rotary_factor": 0.5}) == 4
    with pytest.raises(LmflowError, match=r"turns 3 dimensions of a head, an odd number"):
        rotated(llama(), {"rope_type": "default", "partial_rotary_factor": 0.4})


def test_one_set_of_parameters_is_for_all_layers():
    config = llama()
    rope = rope_parameters(config)
    assert layers_to_scale(config, rope, 64) == [None]
    assert single(rope, None) == rope
    assert single(rope, None) is not rope, "what is changed is a copy"
    assert layer(config, None) is config


@pytest.mark.parametrize(
    ("window", "expected"),
    [(32, ["full_attention"]), (64, ["full_attention"]), (128, ["full_attention", "sliding_attention"])],
)
def test_layers_with_a_window_within_the_original_length_stay(window: int, expected: list[str]):
    config = gemma(sliding_window=window)
    rope = rope_parameters(config)
    assert sorted(map(str, layers_to_scale(config, rope, 64))) == expected
    assert single(rope, "full_attention")["rope_type"] == "default"
    assert parameter_types(rope, config) == {"default"}


def test_writing_replaces_one_kind_of_layer():
    rope: dict[str, Any] = {"a": {"rope_type": "default", "old": 1}, "b": {"rope_type": "default"}}
    write(rope, "a", {"rope_type": "linear", "factor": 2.0})
    assert rope == {"a": {"rope_type": "linear", "factor": 2.0}, "b": {"rope_type": "default"}}
    flat = {"rope_type": "default", "old": 1}
    write(flat, None, {"rope_type": "linear"})
    assert flat == {"rope_type": "linear"}


def test_frequencies_by_hand():
    """Of eight dimensions with base 10,000: 1, 1/10, 1/100 and 1/1,000."""
    config = llama(rope_theta=10_000.0)
    rope_parameters(config)
    found, factor = transformers_frequencies(config, None, 8)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    assert factor == 1.0


def test_linear_frequencies_are_divided_by_the_factor():
    config = llama(rope_theta=10_000.0)
    extend(config, Linear(factor=4))
    found, factor = transformers_frequencies(config, None, 8)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.025, 0.0025, 0.00025]))
    assert factor == 1.0
    assert config.max_position_embeddings == 256


def test_a_formula_that_transformers_does_not_share_is_refused():
    class Odd(Linear):
        name = "odd"

        def scale(self, frequencies: Any, rotation: Rotation) -> tuple[Any, float]:
            return frequencies / rotation.factor * 1.01, 1.0

    config = llama()
    before = config.to_dict()
    with pytest.raises(LmflowError, match=r"--context odd: model type llama does not take it: .*other frequencies"):
        extend(config, Odd(factor=2))
    assert config.to_dict() == before, "nothing is changed where it fails"


def test_another_factor_of_queries_and_keys_is_refused():
    class Loud(Linear):
        name = "loud"

        def scale(self, frequencies: Any, rotation: Rotation) -> tuple[Any, float]:
            return super().scale(frequencies, rotation)[0], 1.5

    text = llama()
    rope_parameters(text)
    changed = llama()
    rope_parameters(changed)
    write(
        changed.rope_parameters,
        None,
        {"rope_type": "linear", "factor": 2.0, "rope_theta": text.rope_parameters["rope_theta"]},
    )
    rotation = Rotation("default", 8, text.rope_parameters["rope_theta"], 2.0, 64)
    check_frequencies(text, changed, {None: rotation}, Linear(factor=2))
    with pytest.raises(LmflowError, match="other frequencies"):
        check_frequencies(text, changed, {None: rotation}, Loud(factor=2))


def test_a_configuration_that_is_not_read_back_is_refused(monkeypatch: pytest.MonkeyPatch):
    config = llama()
    rope_parameters(config)
    check_accepted(config, Linear(factor=2))

    def refuse(cls: Any, values: dict[str, Any]) -> Any:
        raise ValueError("no such field")

    monkeypatch.setattr(LlamaConfig, "from_dict", classmethod(refuse))
    with pytest.raises(LmflowError, match=r"--context linear: model type llama does not take it: no such field"):
        check_accepted(config, Linear(factor=2))


def test_a_configuration_that_becomes_another_is_refused(monkeypatch: pytest.MonkeyPatch):
    config, other = llama(), llama(rope_theta=5.0)
    for each in (config, other):
        rope_parameters(each)
    monkeypatch.setattr(LlamaConfig, "from_dict", classmethod(lambda cls, values: other))
    with pytest.raises(LmflowError, match=r"Transformers makes .*5\.0.* of it"):
        check_accepted(config, Linear(factor=2))


def test_code_that_reads_no_type_is_known():
    assert reads_rope_type(llama())
    assert not reads_rope_type(AutoConfig.for_model("gptj"))


def test_what_is_refused_names_a_method_that_always_works():
    error = unsupported(llama(), Yarn(factor=2), "  for a reason \n")
    assert str(error).startswith("--context yarn: model type llama does not take it: for a reason\n")
    assert "--context ntk" in str(error)


def neox(heads: int) -> Any:
    """GPT-NeoX turns a quarter of a head's dimensions."""
    sizes = {"hidden_size": 32, "num_attention_heads": heads, "num_hidden_layers": 1, "vocab_size": 50}
    return AutoConfig.for_model("gpt_neox", **sizes)


def test_ntk_turns_what_is_turned_of_a_head():
    config = neox(heads=2)
    extend(config, Ntk(factor=2))
    assert config.max_position_embeddings == 4096
    # Of 16 dimensions 4 are turned: 10,000 * 2^(4/2).
    assert config.rope_parameters["rope_theta"] == pytest.approx(40_000)


def test_two_turned_dimensions_have_no_other_base():
    """One frequency alone, which stays whatever the base is."""
    with pytest.raises(LmflowError, match=r"--context ntk: .*turns 2 dimensions of a head.*--context linear"):
        extend(neox(heads=4), Ntk(factor=2))
