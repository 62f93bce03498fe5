"""Inferencer speculative: batches, caches, stops, streaming, figures, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest
from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError, RecipeError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.plugins import load_plugins
from lmflow.testing.contexts import evaluate_context
from lmflow_speculative.speculative import Speculative


def ids_of(drawn: Any) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in row] for row in drawn]


@pytest.fixture(scope="module")
def pair(make_model):
    """A target, and a draft that mostly agrees with it."""
    return make_model(), make_model(near=1)


@pytest.fixture(params=["draft", "lookup"])
def inferencer(request, pair):
    plain = Speculative(draft_length=4, adapt=False)
    return plain.using(pair[1]) if request.param == "draft" else plain


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("proposer", ["draft", "lookup"])
def test_neighbours_and_the_budget_change_nothing(pair, prompts, proposer, adapt):
    target, draft = pair
    some = prompts[:12]
    sampling = Sampling(n=3, max_new_tokens=16, seed=7)

    def make(**options: Any) -> Speculative:
        plain = Speculative(draft_length=5, adapt=adapt, **options)
        return plain.using(draft) if proposer == "draft" else plain

    together = ids_of(make().generate(GenerateRequest(target, some, sampling)))
    assert together == ids_of([make().generate(GenerateRequest(target, [prompt], sampling))[0] for prompt in some])
    assert together == ids_of(make(batch_tokens=300).generate(GenerateRequest(target, some, sampling)))
    assert together == ids_of(make().generate(GenerateRequest(target, some[::-1], sampling)))[::-1]
    assert len({ids for row in together for ids in row}) > 12  # samples differ


def test_other_seeds_draw_otherwise(inferencer, pair, prompts):
    drawn = [
        inferencer.generate(GenerateRequest(pair[0], prompts[:4], Sampling(max_new_tokens=12, seed=seed)))
        for seed in (1, 2)
    ]
    assert ids_of(drawn[0]) != ids_of(drawn[1])


def record_reads(module: Any, blocks: list[tuple[int, list[int]]]) -> Any:
    """Collect the first position and the tokens of every block a model of one row reads."""

    def note(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        assert inputs.get("attention_mask") is None  # a single row has neither padding nor holes
        positions = inputs["position_ids"][0].tolist()
        assert positions == list(range(positions[0], positions[0] + len(positions)))
        blocks.append((positions[0], inputs["input_ids"][0].tolist()))

    return module.register_forward_pre_hook(note, with_kwargs=True)


def check_nothing_right_is_read_again(blocks: list[tuple[int, list[int]]], final: list[int]) -> None:
    held: list[int] = []
    for start, tokens in blocks:
        right = next((i for i, (a, b) in enumerate(zip(held, final)) if a != b), min(len(held), len(final)))
        assert start >= min(right, len(final) - 1)
        assert start <= len(held)
        held = held[:start] + tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_position_is_computed_twice(pair, prompts, temperature):
    """What stays is read once by each model; beyond that only refused proposals are read."""
    blocks: tuple[list[Any], list[Any]] = ([], [])
    hooks = [record_reads(model.module, found) for model, found in zip(pair, blocks)]
    prompt = prompts[3]
    inferencer = Speculative(draft_length=4, adapt=False).using(pair[1])
    try:
        [[drawn]] = inferencer.generate(
            GenerateRequest(pair[0], [prompt], Sampling(temperature=temperature, max_new_tokens=40, seed=1))
        )
    finally:
        for hook in hooks:
            hook.remove()
    final = [*prompt.ids, *drawn.ids]
    statistics = inferencer.statistics
    refused = sum(statistics.proposed) - sum(statistics.accepted)
    assert refused
    assert sum(statistics.accepted)
    for found in blocks:
        check_nothing_right_is_read_again(found, final)
    target_tokens, draft_tokens = (sum(len(tokens) for _, tokens in found) for found in blocks)
    # The last token is read by neither.
    assert target_tokens == statistics.target.tokens == len(final) - 1 + refused
    assert draft_tokens == statistics.draft.tokens <= len(final) - 1 + refused


def test_a_batch_reads_no_more_than_its_rows_alone(pair, prompts):
    target, draft = pair
    inferencer = Speculative(draft_length=4, adapt=False).using(draft)
    drawn = inferencer.generate(GenerateRequest(target, prompts[:10], Sampling(n=2, max_new_tokens=16, seed=1)))
    statistics = inferencer.statistics
    kept = sum(len(completion.ids) - 1 for row in drawn for completion in row)
    refused = sum(statistics.proposed) - sum(statistics.accepted)
    # Proposals after an end token were read but not judged: few, and the only ones beyond.
    surplus = statistics.target.tokens - sum(len(prompt.ids) for prompt in prompts[:10]) - kept - refused
    assert 0 <= surplus <= 4 * 20
    assert statistics.tokens == sum(len(completion.ids) for row in drawn for completion in row)


def test_length_and_end_inside_a_block(inferencer, pair, prompts):
    target, _ = pair
    for most in (1, 2, 3, 7):
        drawn = inferencer.generate(GenerateRequest(target, prompts[:20], Sampling(max_new_tokens=most, seed=2)))
        for [completion] in drawn:
            assert len(completion.ids) <= most
            assert len(completion.logprobs) == len(completion.ids)
            assert (completion.finish_reason == "eos") == (completion.ids[-1] == 1)
            assert 1 not in completion.ids[:-1]
            if completion.finish_reason == "length":
                assert len(completion.ids) == most


def test_stop_strings_end_inside_a_block(pair, prompts):
    target, draft = pair
    greedy = Sampling(temperature=0, max_new_tokens=24)
    texts = [row[0].text for row in HuggingFace().generate(GenerateRequest(target, prompts[:30], greedy))]
    stop = next(text[4:6] for text in texts if len(text) > 12)
    stopping = greedy.model_copy(update={"stop": (stop,)})
    expected = HuggingFace().generate(GenerateRequest(target, prompts[:30], stopping))
    assert any(row[0].finish_reason == "stop" for row in expected)
    for inferencer in (Speculative(draft_length=6, adapt=False).using(draft), Speculative()):
        drawn = inferencer.generate(GenerateRequest(target, prompts[:30], stopping))
        assert [dataclasses.replace(row[0], logprobs=()) for row in drawn] == [
            dataclasses.replace(row[0], logprobs=()) for row in expected
        ]


def test_min_new_tokens_holds_for_proposals_too(inferencer, pair, prompts):
    drawn = inferencer.generate(
        GenerateRequest(pair[0], prompts[:30], Sampling(max_new_tokens=12, min_new_tokens=6, seed=3))
    )
    assert min(len(row[0].ids) for row in drawn) >= 6


def test_streaming_gives_the_text_of_generate_in_pieces(inferencer, pair, prompts):
    sampling = Sampling(max_new_tokens=30, seed=4, temperature=0.8)
    pieces = list(inferencer.stream(GenerateRequest(pair[0], [prompts[5]], sampling)))
    [[whole]] = inferencer.generate(GenerateRequest(pair[0], [prompts[5]], sampling))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 2


def test_progress_counts_every_token_and_may_stop(inferencer, pair, prompts):
    seen: list[int] = []
    drawn = inferencer.generate(GenerateRequest(pair[0], prompts[:8], Sampling(max_new_tokens=10), seen.append))
    assert sum(seen) == sum(len(row[0].ids) for row in drawn)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    pair[0].module.train()
    with pytest.raises(KeyboardInterrupt):
        inferencer.generate(GenerateRequest(pair[0], prompts[:8], Sampling(max_new_tokens=10), stop))
    assert pair[0].module.training
    pair[0].module.eval()


def test_the_end_of_the_context_ends_a_completion(inferencer, make_model):
    long = Prompt([5 + i % 40 for i in range(250)])
    target = make_model()
    [[completion]] = inferencer.generate(
        GenerateRequest(target, [long], Sampling(max_new_tokens=50, min_new_tokens=50, seed=1))
    )
    assert len(completion.ids) == 6
    assert completion.finish_reason == "length"


def test_a_draft_of_shorter_context_stops_proposing_where_it_ends(make_model, prompts):
    target = make_model("gpt2")
    draft = make_model("gpt2", n_positions=40)
    inferencer = Speculative(draft_length=4, adapt=False).using(draft)
    sampling = Sampling(temperature=0, max_new_tokens=80, min_new_tokens=80)
    short = [prompt for prompt in prompts if len(prompt.ids) < 30][:3]
    drawn = inferencer.generate(GenerateRequest(target, short, sampling))
    assert ids_of(drawn) == ids_of(HuggingFace().generate(GenerateRequest(target, short, sampling)))
    with pytest.raises(DataError, match=r"has 50 tokens; the draft's context is 40"):
        inferencer.generate(GenerateRequest(target, [Prompt([5] * 50)], sampling))


def test_a_draft_equal_to_the_target_is_accepted_whole(make_model, prompts):
    target = make_model()
    inferencer = Speculative(draft_length=4, adapt=False).using(target)
    inferencer.generate(
        GenerateRequest(target, prompts[:4], Sampling(max_new_tokens=21, min_new_tokens=21, temperature=0.7))
    )
    assert inferencer.statistics.acceptance_rate > 0.99
    # 21 tokens: one from the pass that reads the prompt, then five with each pass.
    assert inferencer.statistics.target.count == 5
    assert "4.20 tokens per target pass" in inferencer.statistics.describe()
    assert inferencer.figures()["target_passes"] == 5


def test_adaptation_proposes_less_to_a_bad_draft(make_model, prompts):
    target, bad = make_model(), make_model(seed=9, hidden_size=16, num_hidden_layers=1)
    sampling = Sampling(max_new_tokens=40, min_new_tokens=40)
    made = {}
    for adapt in (True, False):
        inferencer = Speculative(draft_length=6, adapt=adapt).using(bad)
        inferencer.generate(GenerateRequest(target, prompts[:4], sampling))
        made[adapt] = sum(inferencer.statistics.proposed)
    assert made[True] < made[False] / 2


def test_spare_rows_of_either_vocabulary_are_never_drawn(make_model, make_llama, prompts):
    """Weights may have more rows than the tokenizer has tokens, and not the same number in both models."""
    from lmflow.models.language_model import LanguageModel

    target = make_model()
    for rows in (len(target.tokenizer), len(target.tokenizer) + 64):
        draft = LanguageModel(make_llama(rows, seed=3), target.tokenizer, "draft")
        sampling = Sampling(max_new_tokens=8, seed=1)
        drawn = Speculative(draft_length=3).using(draft).generate(GenerateRequest(target, prompts[:6], sampling))
        assert all(token < len(target.tokenizer) for row in drawn for token in row[0].ids)


def test_a_draft_is_found_by_reference_and_loaded_once(model_directory, tiny_model, prompts, monkeypatch):
    from lmflow_speculative import drafting

    loads: list[Any] = []
    load = drafting.load_draft
    monkeypatch.setattr(drafting, "load_draft", lambda *key: loads.append(key) or load(*key))
    inferencer = Speculative(draft=str(model_directory))
    with inferencer.opened(evaluate_context(tiny_model, [], plugins=load_plugins())):
        for seed in (1, 2):
            inferencer.generate(GenerateRequest(tiny_model, prompts[:2], Sampling(max_new_tokens=4, seed=seed)))
    assert [load[1:] for load in loads] == [(str(model_directory), "float32", "cpu", None)]
    with pytest.raises(LmflowError, match=r"open\(\) gives the plugins"):
        inferencer.generate(GenerateRequest(tiny_model, prompts[:1], Sampling()))
    assert inferencer.statistics.acceptance_rate > 0.99  # the tiny model's own weights


def test_another_vocabulary_is_refused_by_its_first_token(make_model, make_tokenizer, make_llama, prompts):
    from lmflow.models.language_model import LanguageModel

    tokenizer = make_tokenizer(vocab_size=300)
    draft = LanguageModel(make_llama(len(tokenizer)), tokenizer, "small-draft")
    inferencer = Speculative().using(draft)
    with pytest.raises(
        LmflowError, match=r"small-draft and the model tiny-llama-1 have different vocabularies: token \d+"
    ):
        inferencer.generate(GenerateRequest(make_model(), prompts[:1], Sampling()))


def test_a_missing_draft_is_refused_before_anything_is_loaded(tmp_path, model_directory, tiny_model, prompts):
    def ask(draft: str) -> None:
        inferencer = Speculative(draft=draft)
        with inferencer.opened(evaluate_context(tiny_model, [], plugins=load_plugins())):
            inferencer.generate(GenerateRequest(tiny_model, prompts[:1], Sampling()))

    near = model_directory.parent / "tinny"
    with pytest.raises(ValueError, match=f"tinny does not exist; did you mean {model_directory}"):
        Speculative(draft=str(near))
    with pytest.raises(ValueError, match="does not exist"):
        Speculative(draft=str(tmp_path / "nothing" / "here"))
    with pytest.raises(RecipeError, match=r"inferencer\.draft: no model is called nonsense"):
        ask("nonsense")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RecipeError, match=r"inferencer\.draft: .*without config\.json"):
        ask(str(empty))


def test_prompts_without_tokens_or_room_are_refused(inferencer, pair):
    with pytest.raises(DataError, match="Prompt 1 of 1 is empty"):
        inferencer.generate(GenerateRequest(pair[0], [Prompt([])], Sampling()))
    with pytest.raises(DataError, match=r"256, which leaves no room|context is 256"):
        inferencer.generate(GenerateRequest(pair[0], [Prompt([5]), Prompt([5] * 300)], Sampling()))


def test_images_need_lookup(pair):
    prompt = Prompt([5, 6], {"pixel_values": torch.zeros(1, 3, 2, 2)})
    with pytest.raises(DataError, match="pixel_values"):
        Speculative().using(pair[1]).generate(GenerateRequest(pair[0], [prompt], Sampling()))


def test_broken_weights_are_an_error(make_model, prompts):
    target = make_model()
    with torch.no_grad():
        target.module.lm_head.weight.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(LmflowError, match="not finite"):
            Speculative().generate(GenerateRequest(target, prompts[:2], Sampling(temperature=temperature)))


def test_no_prompts_no_completions(inferencer, pair):
    assert inferencer.generate(GenerateRequest(pair[0], [], Sampling())) == []


def test_dynamic_positions_are_refused(make_model, prompts):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(LmflowError, match="dynamic RoPE"):
        Speculative().generate(GenerateRequest(make_model(rope_parameters=rope), prompts[:1], Sampling()))
