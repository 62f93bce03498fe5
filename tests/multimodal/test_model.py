"""The whole model: exact on text, features where the marks are, the same alone and in a batch, saved and loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.builtin.full import Full
from lmflow.components import GenerateRequest, Head, LoadRequest
from lmflow.data.collate import collate, collate_packed
from lmflow.data.lengths import fit_lengths
from lmflow.data.sample import Message, Prompt, Sample
from lmflow.errors import DataError, LmflowError, RecipeError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.models.heads import heads_apart, write_heads
from lmflow.models.language_model import LanguageModel
from lmflow.models.pretrained import Pretrained
from lmflow.plugins import load_plugins
from lmflow.training.heads import head_outputs
from lmflow.training.loss import forward_inputs, negative_log_likelihood
from lmflow_multimodal.component import VisionLanguage
from lmflow_multimodal.model import spread
from lmflow_multimodal.tuner import Projector

Load = Callable[..., Any]


@pytest.fixture
def plain(model_directory: Path) -> LanguageModel:
    return Pretrained(path=str(model_directory)).load(LoadRequest(plugins=load_plugins()))


def talk(asked: str, answer: str, *images: str) -> Sample:
    return Sample((Message("user", asked, images), Message("assistant", answer)), source="it:1")


def logits(model: LanguageModel, *sequences: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.module(**forward_inputs(collate(sequences, model.pad_id))).logits


def test_text_alone_is_bitwise_the_language_model(vision: Load, plain: LanguageModel):
    model = vision()
    sample = talk("the quick fox", "jumps over")
    [mine], [theirs] = model.encode(sample), plain.encode(sample)
    assert (mine.ids, mine.loss_mask) == (theirs.ids, theirs.loss_mask)
    expected = logits(plain, theirs)
    assert torch.equal(logits(model, mine), expected)
    model.prepare(Full())
    with torch.enable_grad():  # with gradients the projector takes part, with zero
        found = model.module(**forward_inputs(collate([mine], model.pad_id))).logits
    assert torch.equal(found, expected)
    assert model.context_length == plain.context_length
    sampling = Sampling(max_new_tokens=6, seed=3, n=2)
    drawn = [
        HuggingFace().generate(GenerateRequest(each, [each.encode_prompt(sample)], sampling)) for each in (model, plain)
    ]
    assert [c.ids for c in drawn[0][0]] == [c.ids for c in drawn[1][0]]


def test_features_stand_where_the_marks_are(vision: Load, images: dict[str, str]):
    """By hand: embed each token, put the projected features of each image in the place of its four image tokens."""
    model = vision()
    network = model.network
    sample = talk("<image> the <image> fox", "jumps", images["red"], images["blue"])
    [sequence] = model.encode(sample)
    rows = []
    features = {
        colour: network.projector(model.store.load(model.store._ensure(images[colour]))) for colour in ("red", "blue")
    }
    coming = iter([*features["red"], *features["blue"]])
    for token in sequence.ids:
        rows.append(next(coming) if token == network.image_id else network.get_input_embeddings().weight[token])
    with torch.no_grad():
        expected = network.language_model(inputs_embeds=torch.stack(rows).unsqueeze(0)).logits
    torch.testing.assert_close(logits(model, sequence), expected)
    assert sequence.ids.count(network.image_id) == 8
    swapped = talk("<image> the <image> fox", "jumps", images["blue"], images["red"])
    assert not torch.allclose(logits(model, *model.encode(swapped)), expected)


def test_no_image_token_is_a_target(vision: Load, images: dict[str, str]):
    model = vision()
    sample = Sample(
        (Message("user", "a <image>", (images["red"],)), Message("assistant", "see <image>", (images["blue"],))),
        source="it:1",
    )
    for train_on in ("assistant", "all"):
        [sequence] = model.encode(sample, train_on)
        marks = [index for index, token in enumerate(sequence.ids) if token == model.network.image_id]
        assert len(marks) == 8
        assert not any(sequence.loss_mask[index] for index in marks)
        assert sequence.num_targets > 0
    assert spread([5, 9, 6], [True, True, False], 9, 2) == ([5, 9, 9, 6], [True, False, False, False])


def test_a_prompt_begins_its_sample(vision: Load, images: dict[str, str]):
    model = vision()
    sample = talk("<image> what?", "red", images["red"])
    prompt, [sequence] = model.encode_prompt(sample), model.encode(sample)
    assert list(sequence.ids[: len(prompt.ids)]) == list(prompt.ids)
    assert torch.equal(prompt.model_inputs["image_features"], sequence.model_inputs["image_features"])


def test_a_mixed_batch_equals_its_samples(vision: Load, images: dict[str, str]):
    model = vision()
    samples = [
        talk("<image> fox", "jumps", images["red"]),
        talk("the lazy dog learns", "to answer"),
        talk("<image> over <image>", "a model and then", images["blue"], images["green"]),
    ]
    sequences = [each for sample in samples for each in model.encode(sample)]
    together = logits(model, *sequences)
    for row, sequence in enumerate(sequences):
        torch.testing.assert_close(together[row, : len(sequence)], logits(model, sequence)[0], atol=1e-5, rtol=1e-4)
    packed = collate_packed([sequences], model.pad_id)
    with torch.no_grad():
        alone = sum(negative_log_likelihood(model.module, model.module, collate([s], model.pad_id)) for s in sequences)
        in_a_row = negative_log_likelihood(model.module, model.module, packed)
    torch.testing.assert_close(in_a_row, alone)


def test_generating_equals_reading_everything_again(vision: Load, images: dict[str, str]):
    """The cache holds the images: greedy tokens are those of forward passes over the whole text; n is one prefill."""
    model = vision()
    samples = [
        Sample((Message("user", "what <image> is it?", (images["red"],)),)),
        Sample((Message("user", "the dog?"),)),
        Sample((Message("user", "<image><image>\nwhich?", (images["blue"], images["green"])),)),
    ]
    prompts = [model.encode_prompt(sample) for sample in samples]
    drawn = HuggingFace().generate(GenerateRequest(model, prompts, Sampling(temperature=0, max_new_tokens=5)))
    for prompt, [completion] in zip(prompts, drawn):
        ids = list(prompt.ids)
        for token in completion.ids:
            with torch.no_grad():
                output = model.module(torch.tensor([ids]), **prompt.model_inputs).logits[0, -1]
            output[2] = -torch.inf  # padding is never drawn
            assert int(output.argmax()) == token
            ids.append(token)
    seen: list[bool] = []
    hook = model.module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append("image_features" in kwargs), with_kwargs=True
    )
    HuggingFace().generate(GenerateRequest(model, prompts[:1], Sampling(max_new_tokens=4, min_new_tokens=4, n=3)))
    hook.remove()
    assert seen == [True, False, False, False]


def test_the_image_token_is_neither_drawn_nor_proposed(
    vision: Load,
    images: dict[str, str],
    make_llama: Callable[..., Any],
    make_tokenizer: Callable[..., Any],
    tmp_path: Path,
):
    """Also where the language model's head has spare rows, and where a look back finds it in the prompt."""
    from lmflow_speculative.speculative import Speculative

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    spare = make_llama(len(tokenizer) + 5)
    spare.save_pretrained(tmp_path)
    model = vision(language_model=str(tmp_path))
    assert model.network.image_id == len(tokenizer)
    with torch.no_grad():
        model.network.get_output_embeddings().weight[model.network.image_id] *= 100
    text = "".join(f"{letter}<image>" for letter in "abcdefghijklmnopqrstuvwxyz")
    prompt = model.encode_prompt(Sample((Message("user", text, (images["red"],) * 26),)))
    hot = Sampling(temperature=3.0, n=8, max_new_tokens=30)
    for inferencer in (HuggingFace(), Speculative()):
        [drawn] = inferencer.generate(GenerateRequest(model, [prompt], hot))
        assert not any(model.network.image_id in completion.ids for completion in drawn)
    greedy = Sampling(temperature=0, max_new_tokens=20)
    assert (
        Speculative().generate(GenerateRequest(model, [prompt], greedy))[0][0].ids
        == HuggingFace().generate(GenerateRequest(model, [prompt], greedy))[0][0].ids
    )


def test_marks_and_images_must_agree(vision: Load, images: dict[str, str]):
    model = vision()
    with pytest.raises(DataError, match="it:1: 2 <image> in the text and 1 images"):
        model.encode(talk("<image> <image>", "x", images["red"]))
    with pytest.raises(DataError, match="1 <image> in the text and 0 images"):
        model.encode_prompt(talk("<image>", "x"))
    prompt = model.encode_prompt(talk("<image>", "x", images["red"]))
    with pytest.raises(LmflowError, match="4 image tokens and features for 0"):
        model.module(torch.tensor([list(prompt.ids)]))


def test_the_context_counts_image_tokens(vision: Load, images: dict[str, str]):
    model = vision()
    text = "<image>" * 64
    prompt = model.encode_prompt(talk(text, "x", *[images["red"]] * 64))
    assert len(prompt.ids) > 256 == model.context_length
    with pytest.raises(DataError, match="the model's context is 256"):
        HuggingFace().generate(GenerateRequest(model, [prompt], Sampling(max_new_tokens=1)))


def test_a_cut_keeps_the_rows_of_what_is_left(vision: Load, images: dict[str, str]):
    model = vision()
    [sequence] = model.encode(talk("<image> a <image> b", "jumps over", images["red"], images["blue"]), "all")
    first = sequence.ids.index(model.network.image_id)
    cut = sequence.cut(0, first + 2)
    assert torch.equal(cut.model_inputs["image_features"], sequence.model_inputs["image_features"][:2])
    later = sequence.cut(first + 3, len(sequence))
    assert torch.equal(later.model_inputs["image_features"], sequence.model_inputs["image_features"][3:])
    assert sequence.cut(0, first).model_inputs == {}
    [short], _ = fit_lengths([sequence], len(sequence) - 3, "truncate")
    assert logits(model, short).shape[1] == len(sequence) - 3


def test_gradient_only_where_it_should_be(vision: Load, images: dict[str, str]):
    for tuner, of_language in ((Projector(), False), (Full(), True)):
        model = vision().prepare(tuner)
        [imaged] = model.encode(talk("<image> fox", "jumps", images["red"]))
        [text] = model.encode(talk("fox", "jumps"))
        for batch in ([imaged], [imaged, text], [text]):
            model.module.zero_grad(set_to_none=True)
            loss = negative_log_likelihood(model.module, model.module, collate(batch, model.pad_id))
            loss.backward()
            found = {name.partition(".")[0] for name, p in model.module.named_parameters() if p.grad is not None}
            assert found == ({"projector", "language_model"} if of_language else {"projector"})
        assert not any(p.grad.any() for p in model.network.projector.parameters())  # the last batch has no image
        assert not model.tower.training
    still = vision(train_projector=False).prepare(Full())
    assert not any(p.requires_grad for p in still.network.projector.parameters())


def test_a_learning_rate_for_the_projector(vision: Load):
    from lmflow.distributed.strategies.base import trainable_parameters
    from lmflow.training.optimizer import parameter_groups

    model = vision(projector_learning_rate=0.5).prepare(Full())
    groups = parameter_groups(trainable_parameters(model.module), 0.1, 0.0, model.learning_rate)
    projector = {id(p) for p in model.network.projector.parameters()}
    rates = {each["lr"] for each in groups for p in each["params"] if id(p) in projector}
    others = {each["lr"] for each in groups for p in each["params"] if id(p) not in projector}
    assert (rates, others) == ({0.5}, {0.1})


def test_features_are_computed_once_for_a_content(vision: Load, images: dict[str, str], tmp_path: Path):
    import shutil

    copied = shutil.copy(images["red"], tmp_path / "copy.png")
    model = vision()
    for path in (images["red"], copied, images["red"]):
        model.encode_prompt(talk("<image>", "x", str(path)))
    assert model.store.computed == 1
    stored = vision(feature_cache=str(tmp_path / "cache"))
    [sequence] = stored.encode(talk("<image>", "x", images["red"]))
    again = vision(feature_cache=str(tmp_path / "cache"))
    [same] = again.encode(talk("<image>", "x", str(copied)))
    assert (stored.store.computed, again.store.computed) == (1, 0)
    assert torch.equal(logits(again, same), logits(model, *model.encode(talk("<image>", "x", images["red"]))))
    assert dict(sequence.model_inputs).keys() == {"image_features"}
    other = vision(feature_cache=str(tmp_path / "cache"), layer=-1)
    other.encode(talk("<image>", "x", images["red"]))
    assert other.store.computed == 1


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_one_directory_saves_and_loads_the_whole(vision: Load, images: dict[str, str], tmp_path: Path, projector: str):
    model = vision(projector=projector, pool=2, resize="longest")
    with torch.no_grad():
        for parameter in model.network.projector.parameters():
            parameter.add_(0.1)
    model.save(tmp_path / "saved")
    moved = tmp_path / "elsewhere"
    (tmp_path / "saved").rename(moved)
    assert VisionLanguage.recognises(str(moved))
    assert not Pretrained.recognises(str(moved))
    again = VisionLanguage(path=str(moved)).load(LoadRequest(plugins=load_plugins()))
    sample = talk("<image> fox", "jumps", images["red"])
    assert torch.equal(logits(again, *again.encode(sample)), logits(model, *model.encode(sample)))
    assert len(again.tokenizer) == len(model.tokenizer)
    assert again.network.image_id == model.network.image_id


@pytest.mark.parametrize("tuner", ["full", "projector", "lora"])
def test_what_a_tuner_trained_comes_back(vision: Load, images: dict[str, str], tmp_path: Path, tuner: str):
    from lmflow_lora.lora import Lora

    chosen = {"full": Full(), "projector": Projector(), "lora": Lora(rank=2)}[tuner]
    model = vision().prepare(chosen)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.module.eval()
    saved = model.save_tuned(chosen, tmp_path)
    assert saved.name == ("adapter" if tuner == "lora" else "model")
    assert (saved / "language_model" / "adapter_config.json").exists() == (tuner == "lora")
    again = VisionLanguage(path=str(saved)).load(LoadRequest(plugins=load_plugins()))
    sample = talk("<image> fox", "jumps", images["red"])
    expected = logits(model, *model.encode(sample))
    torch.testing.assert_close(logits(again, *again.encode(sample)), expected, atol=1e-5, rtol=1e-4)
    if tuner == "lora":  # a second adapter: the first one is in no stored base, so the result is whole
        second = again.prepare(Lora(rank=2))
        whole = second.save_tuned(Lora(rank=2), tmp_path)
        assert whole.name == "model"
        third = VisionLanguage(path=str(whole)).load(LoadRequest(plugins=load_plugins()))
        torch.testing.assert_close(logits(third, *third.encode(sample)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_an_aligners_head_reads_what_follows_an_image_and_comes_back(
    vision: Load, images: dict[str, str], tmp_path: Path, tuner: str
):
    from lmflow_lora.lora import Lora

    chosen = {"full": Full(), "lora": Lora(rank=2)}[tuner]
    model = vision().prepare(chosen).with_heads({"value": Head()}, 0)
    model.module.eval()
    batch = collate(model.encode(talk("<image> fox", "jumps", images["red"])), model.pad_id)
    expected = head_outputs(model.module, model.module, batch, model.heads["value"])
    assert len(expected) == batch.num_targets
    expected.sum().backward()
    assert all(each.grad.any() for each in model.heads["value"].parameters())
    with heads_apart(model.module):
        saved = model.save_tuned(chosen, tmp_path)
    write_heads(model.heads, saved)
    places = [saved]
    if tuner == "full":
        model.save(tmp_path / "whole")
        places.append(tmp_path / "whole")
    for place in places:
        again = VisionLanguage(path=str(place)).load(LoadRequest(plugins=load_plugins()))
        found = head_outputs(again.module, again.module, batch, again.heads["value"])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_refusals(vision: Load, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"model\.language_model: missing"):
        VisionLanguage(tower="ViT-B-32").load(LoadRequest(plugins=load_plugins()))
    with pytest.raises(LmflowError, match="is no vision-language model"):
        VisionLanguage(path=str(tmp_path)).load(LoadRequest(plugins=load_plugins()))
    vision().save(tmp_path / "saved")
    with pytest.raises(RecipeError, match=r"model\.tower: comes with the saved model"):
        VisionLanguage(path=str(tmp_path / "saved"), tower="ViT-B-32").load(LoadRequest(plugins=load_plugins()))
    (tmp_path / "saved" / "projector.safetensors").unlink()
    with pytest.raises(LmflowError, match="is damaged"):
        VisionLanguage(path=str(tmp_path / "saved")).load(LoadRequest(plugins=load_plugins()))


def test_without_open_clip_the_command_is_named(monkeypatch: pytest.MonkeyPatch):
    import sys

    from lmflow.plugins import load_plugins
    from lmflow.recipe.resolve import model_from_reference

    monkeypatch.setitem(sys.modules, "open_clip", None)
    expected = r"vision-language needs open_clip, which is not installed: pip install 'lmflow-multimodal\[clip\]'"
    with pytest.raises(RecipeError, match=expected):
        model_from_reference(load_plugins(), "vision-language")


def test_saved_configuration_is_plain_json(vision: Load, tmp_path: Path):
    vision().save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "vision_language.json").read_text())
    assert config["projector"] == "mlp"
    assert config["tower"]["preprocess_cfg"]["size"] in (16, [16, 16])


def test_a_prompt_of_marks_alone(vision: Load, images: dict[str, str]):
    model = vision()
    prompt = model.encode_prompt(Sample((Message("user", "<image>", (images["red"],)),), templated=False))
    assert isinstance(prompt, Prompt)
    assert list(prompt.ids) == [model.network.image_id] * 4


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_that_of_the_language_model(attention, model_directory: Path, tower_file: Path) -> None:
    from lmflow.builtin.attention import Eager, Sdpa

    asked = {"eager": Eager(), "sdpa": Sdpa()}[attention]
    component = VisionLanguage(language_model=str(model_directory), tower=str(tower_file), checkpoint="random")
    model = component.load(LoadRequest(attention=asked, plugins=load_plugins()))
    assert model.language.module.config._attn_implementation == attention
    assert model.attention is asked


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_language_model_is_quantised_and_no_other_part(kind, model_directory: Path, tower_file: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is the extra `quantization`")
    component = VisionLanguage(
        language_model=str(model_directory), tower=str(tower_file), checkpoint="random", quantization=kind
    )
    model = component.load(LoadRequest(plugins=load_plugins()))
    layers = bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt
    quantised = [name for name, layer in model.module.named_modules() if isinstance(layer, layers)]
    assert quantised
    assert all(name.startswith("language_model.") for name in quantised)
    with pytest.raises(ValueError, match="model vision-language does not support it"):
        VisionLanguage(language_model=str(model_directory), tower=str(tower_file), device_map="auto")
