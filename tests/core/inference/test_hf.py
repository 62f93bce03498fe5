"""Inferencer hf against transformers' own generation, and the promises of the interface."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest
from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Completion, Sampling
from lmflow.inference.ways import find_way

hf = HuggingFace()


@contextmanager
def forward_shapes(module: Any) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens) of every forward pass."""
    shapes: list[tuple[int, int]] = []
    handle = module.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    handle.remove()


def greedy_of_transformers(model: Any, prompt: Prompt, new_tokens: int) -> list[int]:
    pad = model.tokenizer.pad_token_id
    ids = torch.tensor([list(prompt.ids)])
    drawn = model.module.generate(ids, do_sample=False, max_new_tokens=new_tokens, suppress_tokens=[pad])
    return drawn[0, len(prompt.ids) :].tolist()


def ids_of(drawn: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in row] for row in drawn]


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": 8}),
        ("llama", {"attn_implementation": "eager"}),
    ],
)
def test_greedy_equals_transformers(make_model: Any, prompts: list[Prompt], architecture: str, options: Any):
    model = make_model(architecture, **options)
    drawn = hf.generate(GenerateRequest(model, prompts, Sampling(temperature=0, max_new_tokens=30)))
    for prompt, [completion] in zip(prompts, drawn):
        assert list(completion.ids) == greedy_of_transformers(model, prompt, 30)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_new_tokens=12),
        Sampling(max_new_tokens=12, n=3),
        Sampling(max_new_tokens=12, n=2, temperature=1.5, top_k=20, top_p=0.9, min_new_tokens=4),
    ],
)
def test_logprobs_equal_those_of_the_whole_sequence(
    make_model: Any, prompts: list[Prompt], architecture: str, sampling: Sampling
):
    model = make_model(architecture)
    for prompt, row in zip(prompts, hf.generate(GenerateRequest(model, prompts, sampling))):
        for completion in row:
            expected = teacher_forced(model, prompt, completion, sampling)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def teacher_forced(model: Any, prompt: Prompt, completion: Completion, sampling: Sampling) -> list[float]:
    """By transformers' warpers, on logits of one pass over prompt and completion."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    with torch.no_grad():
        logits = model.module(torch.tensor([[*prompt.ids, *completion.ids]])).logits[0, len(prompt.ids) - 1 : -1]
    logits[:, model.tokenizer.pad_token_id] = -torch.inf
    logits[: sampling.min_new_tokens, list(model.end_ids)] = -torch.inf
    if sampling.temperature:
        logits = TemperatureLogitsWarper(float(sampling.temperature))(None, logits)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits.log_softmax(-1)[range(len(completion.ids)), list(completion.ids)].tolist()


@pytest.mark.parametrize(("architecture", "options"), [("llama", {}), ("gpt2", {}), ("mistral", {"sliding_window": 8})])
def test_neighbours_change_nothing(make_model: Any, prompts: list[Prompt], architecture: str, options: Any):
    model = make_model(architecture, **options)
    sampling = Sampling(n=4, max_new_tokens=25, seed=7)
    alone = [ids_of(hf.generate(GenerateRequest(model, [prompt], sampling)))[0] for prompt in prompts]
    assert ids_of(hf.generate(GenerateRequest(model, prompts, sampling))) == alone
    assert ids_of(hf.generate(GenerateRequest(model, prompts[::-1], sampling))) == alone[::-1]
    assert ids_of(hf.generate(GenerateRequest(model, [*prompts, *prompts[:2]], sampling))) == [*alone, *alone[:2]]
    for budget in 1, 200, 500, 1000:
        assert ids_of(HuggingFace(batch_tokens=budget).generate(GenerateRequest(model, prompts, sampling))) == alone
    fewer = ids_of(hf.generate(GenerateRequest(model, prompts, sampling.model_copy(update={"n": 2}))))
    assert fewer == [row[:2] for row in alone]


def test_seeds_and_samples_differ(model: Any, prompts: list[Prompt]):
    sampling = Sampling(n=5, max_new_tokens=12)
    first = ids_of(hf.generate(GenerateRequest(model, prompts, sampling)))
    assert first == ids_of(hf.generate(GenerateRequest(model, prompts, sampling)))
    assert first != ids_of(hf.generate(GenerateRequest(model, prompts, sampling.model_copy(update={"seed": 1}))))
    assert all(len(set(row)) > 1 for row in first)


def test_draws_follow_the_model(make_model: Any):
    """20,000 first tokens against the model's own distribution (total variation; about 0.02 is expected by chance)."""
    model = make_model()
    ids = model.tokenizer("fox")["input_ids"]
    drawn = hf.generate(
        GenerateRequest(model, [Prompt(ids)], Sampling(n=20_000, max_new_tokens=1, temperature=0.7, top_k=30))
    )
    counts = torch.bincount(torch.tensor([each.ids[0] for each in drawn[0]]), minlength=len(model.tokenizer))
    with torch.no_grad():
        logits = model.module(torch.tensor([ids])).logits[0, -1] / 0.7
    logits[model.tokenizer.pad_token_id] = -torch.inf
    probabilities = logits.masked_fill(logits < logits.topk(30).values[-1], -torch.inf).softmax(-1)
    assert float((counts / 20_000 - probabilities).abs().sum() / 2) < 0.03


def test_greedy_samples_are_equal_and_drawn_once(model: Any, prompts: list[Prompt]):
    with forward_shapes(model.module) as shapes:
        drawn = hf.generate(GenerateRequest(model, prompts, Sampling(temperature=0, n=3, max_new_tokens=5)))
    assert all(len(set(row)) == 1 and len(row) == 3 for row in ids_of(drawn))
    assert max(rows for rows, _ in shapes) == len(prompts)


def test_each_prompt_is_read_once_and_finished_rows_leave(model: Any, prompts: list[Prompt]):
    favour_end(model, 0.08)
    find_way(model)
    with forward_shapes(model.module) as shapes:
        drawn = hf.generate(GenerateRequest(model, prompts, Sampling(n=16, max_new_tokens=60)))
    counts = Counter(c.finish_reason for row in drawn for c in row)
    assert counts["eos"] > 30
    prefills, steps = [s for s in shapes if s[1] > 1], [s for s in shapes if s[1] == 1]
    assert sum(rows for rows, _ in prefills) == len(prompts)
    lengths = [len(c.ids) for row in drawn for c in row]
    # A row of length L takes L - 1 steps; the rest is of rows that were finished but had not left.
    needed, computed = sum(length - 1 for length in lengths), sum(rows for rows, _ in steps)
    assert needed <= computed <= 1.2 * needed + 64
    assert computed < 0.6 * len(lengths) * (max(lengths) - 1)


def test_waiting_prompts_take_the_place_of_finished_rows(model: Any, prompts: list[Prompt]):
    favour_end(model, 0.08)
    find_way(model)
    sampling = Sampling(n=4, max_new_tokens=40)
    many = [Prompt([*prompt.ids, number]) for number in range(20, 26) for prompt in prompts]
    with forward_shapes(model.module) as shapes:
        drawn = HuggingFace(batch_tokens=2000).generate(GenerateRequest(model, many, sampling))
    order = [tokens == 1 for _, tokens in shapes]
    assert order.index(False, order.index(True)) < len(order) - 1
    assert sum(rows for rows, tokens in shapes if tokens > 1) == len(many)
    assert ids_of(drawn) == ids_of(hf.generate(GenerateRequest(model, many, sampling)))


def favour_end(model: Any, probability: float) -> None:
    """Make every token end the completion with about this probability, by a bias on the head's logits."""
    end, pad = model.end_ids[0], model.tokenizer.pad_token_id

    def bias(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        others = logits.clone()
        others[..., [end, pad]] = -torch.inf
        logits = logits.clone()
        logits[..., end] = others.logsumexp(-1) + torch.tensor(probability / (1 - probability)).log()
        return logits

    model.module.lm_head.register_forward_hook(bias)


def test_the_end_and_padding_are_not_drawn_where_forbidden(model: Any, prompts: list[Prompt]):
    favour_end(model, 0.5)
    pad = model.tokenizer.pad_token_id
    for row in hf.generate(GenerateRequest(model, prompts, Sampling(n=20, min_new_tokens=6, max_new_tokens=12))):
        for completion in row:
            assert len(completion.ids) > 6
            assert set(completion.ids[:6]).isdisjoint(model.end_ids)
            assert pad not in completion.ids
            assert completion.finish_reason == ("eos" if completion.ids[-1] in model.end_ids else "length")
            assert all(logprob > -30 for logprob in completion.logprobs)


def test_stop_strings_across_tokens(scripted: Any, make_tokenizer: Any):
    tokenizer = make_tokenizer()
    text = "the fox € and more"
    script = tokenizer(text)["input_ids"]
    prompt, rest = script[:1], script[1:]
    whole = tokenizer.decode(rest)
    model = scripted([*script[1:], *[tokenizer.eos_token_id] * 99])
    [[completion]] = hf.generate(GenerateRequest(model, [Prompt(prompt)], Sampling(max_new_tokens=50, temperature=0)))
    assert (completion.text, completion.finish_reason) == (whole, "eos")
    for stop in "x €", "€", " and m", "re":
        sampling = Sampling(max_new_tokens=50, temperature=0, stop=("never", stop))
        [[completion]] = hf.generate(GenerateRequest(model, [Prompt(prompt)], sampling))
        assert completion.finish_reason == "stop"
        assert completion.text == whole[: whole.index(stop)]
        assert list(completion.ids) == rest[: len(completion.ids)]
        assert stop in tokenizer.decode(completion.ids)
        assert stop not in tokenizer.decode(completion.ids[:-1])
        assert len(completion.logprobs) == len(completion.ids)
        assert "".join(hf.stream(GenerateRequest(model, [Prompt(prompt)], sampling))) == completion.text


def test_stream_holds_back_parts_of_characters(scripted: Any, make_tokenizer: Any):
    tokenizer = make_tokenizer()
    ids = tokenizer("a漢字👩‍👧 end")["input_ids"]
    model = scripted([*ids[1:], *[tokenizer.eos_token_id] * 99])
    given = list(hf.stream(GenerateRequest(model, [Prompt(ids[:1])], Sampling(max_new_tokens=50, temperature=0))))
    assert "".join(given) == "漢字👩‍👧 end"
    assert len(given) > 4
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in given)


@pytest.mark.parametrize("stop", [(), ("e", "xyz"), (" the", "zz")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stream_is_the_text_of_generate(model: Any, prompts: list[Prompt], stop: tuple[str, ...], temperature: float):
    sampling = Sampling(n=2, max_new_tokens=40, stop=stop, temperature=temperature, seed=3)
    for prompt, row in zip(prompts, hf.generate(GenerateRequest(model, prompts, sampling))):
        assert "".join(hf.stream(GenerateRequest(model, [prompt], sampling))) == row[0].text
        assert not any(each in row[0].text for each in stop)


def test_progress_counts_tokens_and_may_stop(model: Any, prompts: list[Prompt]):
    favour_end(model, 0.1)
    counts: list[int] = []
    drawn = hf.generate(GenerateRequest(model, prompts, Sampling(n=4, max_new_tokens=20), counts.append))
    assert sum(counts) == sum(len(completion.ids) for row in drawn for completion in row)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    model.module.train()
    with pytest.raises(KeyboardInterrupt):
        hf.generate(GenerateRequest(model, prompts, Sampling(), stop))
    assert model.module.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("wrapped", ["bare", "checkpointing", "peft", "dynamic"])
def test_training_goes_on_as_before(make_model: Any, prompts: list[Prompt], wrapped: str):
    """Modes, configuration and parameters are left as they were, and gradients flow, also through an adapter."""
    options: dict[str, Any] = {}
    if wrapped == "dynamic":  # keeps frequencies it computes while running: they must not be inference tensors
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        options = {"rope_parameters": rope, "max_position_embeddings": 16}
    model = make_model("llama", **options)
    if wrapped == "peft":
        from peft import LoraConfig, get_peft_model

        model = model.with_module(get_peft_model(model.module, LoraConfig(r=2, init_lora_weights=False)))
    module = model.module
    if wrapped == "checkpointing":
        module.gradient_checkpointing_enable()
    module.config.use_cache = False
    module.train()
    frozen = module.get_input_embeddings()
    frozen.eval()
    before = {name: value.clone() for name, value in module.named_parameters()}
    state = copy.deepcopy(module.config.to_dict())
    short = [Prompt(list(prompt.ids)[:6]) for prompt in prompts]
    drawn = hf.generate(GenerateRequest(model, short, Sampling(temperature=0, max_new_tokens=10)))
    if wrapped == "peft":
        merged = copy.deepcopy(module).merge_and_unload().eval()
        expected = [greedy_of_transformers(model.with_module(merged), prompt, 10) for prompt in short]
        assert [list(completion.ids) for [completion] in drawn] == expected
    next(hf.stream(GenerateRequest(model, [short[0]], Sampling(max_new_tokens=10))))
    assert torch.is_grad_enabled()
    assert module.training
    assert not frozen.training
    assert module.config.to_dict() == state
    ids = torch.tensor([list(prompts[0].ids)])
    module(ids, labels=ids, use_cache=False).loss.backward()
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trainable)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_prompts_that_cannot_be_continued(model: Any, make_model: Any):
    with pytest.raises(DataError, match=r"Prompt 2 of 2 is empty"):
        hf.generate(GenerateRequest(model, [Prompt([5]), Prompt([])], Sampling()))
    with pytest.raises(DataError, match=r"Prompt 1 of 1 has 300 tokens; the model's context is 256"):
        hf.generate(GenerateRequest(model, [Prompt([5] * 300)], Sampling()))
    with pytest.raises(DataError, match=r"Prompt 1 of 1 has 256 tokens"):
        next(hf.stream(GenerateRequest(model, [Prompt([5] * 256)], Sampling())))
    assert hf.generate(GenerateRequest(model, [], Sampling())) == []


def test_prompt_learning_is_refused_by_name(model: Any):
    from peft import PromptTuningConfig, get_peft_model

    module = get_peft_model(model.module, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(LmflowError, match="PROMPT_TUNING"):
        hf.generate(GenerateRequest(model.with_module(module), [Prompt([5])], Sampling()))


def test_model_inputs_are_given_once_in_row_order(model: Any):
    """Pixel values go to the prefill, in the order of the rows, and to no later pass."""
    given: list[Any] = []
    find_way(model)
    module = model.module
    plain = module.forward

    def forward(*args: Any, pixel_values: Any = None, **inputs: Any) -> Any:
        given.append(pixel_values)
        return plain(*args, **inputs)

    module.forward = forward
    prompts = [
        Prompt([5, 6], {"pixel_values": torch.full((1, 2), 1.0)}),
        Prompt([5, 6, 7, 8], {"pixel_values": torch.full((2, 2), 2.0)}),
        Prompt([5, 6, 7]),
    ]
    hf.generate(GenerateRequest(model, prompts, Sampling(max_new_tokens=3, min_new_tokens=3, n=2)))
    assert given[0][:, 0].tolist() == [2.0, 2.0, 1.0]
    assert given[1:] == [None, None]
