"""`lmflow.load_model`: what it takes, and what the model answers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

import lmflow


def test_it_says_shortly_what_it_is(model, model_directory):
    count = sum(each.numel() for each in model.model.module.parameters())
    assert repr(model) == f"<LoadedModel {model_directory}: {count:,} parameters, float32 on cpu>"


def test_one_prompt_or_several_one_completion_or_several(model):
    options = {"max_new_tokens": 4, "seed": 3}
    one = model.generate("say one", **options)
    assert isinstance(one, lmflow.Completion)
    assert model.generate(["say one", "say two"], **options)[0].ids == one.ids
    several = model.generate("say one", n=3, **options)
    assert several[0].ids == one.ids
    assert len(several) == 3
    nested = model.generate(["say one", "say two"], n=2, **options)
    assert [len(each) for each in nested] == [2, 2]
    assert [each.ids for each in nested[0]] == [each.ids for each in several[:2]]
    assert model.generate([]) == []


def test_it_answers_what_the_command_answers(model, model_directory):
    from lmflow.inference.hf import HuggingFace
    from lmflow.inference.prompts import Framing, encode_prompt, prompt_sample

    prompt = encode_prompt(model.model, prompt_sample("say one", Framing("be brief")))
    sampling = lmflow.Sampling(temperature=0, max_new_tokens=6)
    [[expected]] = HuggingFace().generate(lmflow.GenerateRequest(model.model, [prompt], sampling))
    assert model.generate("say one", system="be brief", temperature=0, max_new_tokens=6) == expected


def test_raw_continues_the_text(model):
    raw = model.generate("say one", raw=True, temperature=0, max_new_tokens=3)
    prompt = model.model.tokenizer("say one", add_special_tokens=True, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model.model.module(prompt).logits[0, -1]
    logits[list(model.model.suppressed_ids)] = -torch.inf
    assert raw.ids[0] == int(logits.argmax())


def test_a_dialogue_is_answered_whole_or_piece_by_piece(model):
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "say one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "and two"},
    ]
    whole = model.chat(turns, max_new_tokens=8, seed=1)
    assert "".join(model.chat(turns, stream=True, max_new_tokens=8, seed=1)) == whole
    assert model.chat("say one", temperature=0) == model.chat([{"role": "user", "content": "say one"}], temperature=0)


def test_between_pieces_standard_output_is_the_callers(model, capsys):
    for _ in model.chat("say one", stream=True, max_new_tokens=3, temperature=0):
        print("mine")
    assert set(capsys.readouterr().out.split()) <= {"mine"}


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "messages: there is none"),
        ([{"role": "user"}], "content"),
        ([{"role": "usr", "content": "a"}], "role"),
        (["a"], "messages"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the last one is the assistant's"),
        ("", "the prompt is empty"),
    ],
    ids=str,
)
def test_messages_that_are_none(model, messages, error):
    with pytest.raises(lmflow.DataError, match=error):
        model.chat(messages)


def test_options_that_are_none_are_named_with_the_nearest(model):
    with pytest.raises(lmflow.RecipeError, match=r"sampling\.temprature: unknown option; did you mean sampling\.temp"):
        model.generate("a", temprature=1)
    with pytest.raises(lmflow.RecipeError, match=r"sampling\.temperature: must be at least 0.0, got -1"):
        model.chat("a", temperature=-1)
    with pytest.raises(lmflow.DataError, match="images: they belong to a single prompt"):
        model.generate(["a", "b"], images=["c.png"])


def test_a_stop_string_may_stand_alone(model):
    text = model.generate("say one", temperature=0, max_new_tokens=8).text
    if text:
        assert text[-1] not in model.generate("say one", temperature=0, max_new_tokens=8, stop=text[-1]).text


class Recording(lmflow.Inferencer):
    """Note when it is opened and closed."""

    name = "recording"
    events: ClassVar[list[str]] = []

    def generate(self, request):
        """Nothing for every prompt."""
        return [[lmflow.Completion((), "said", (), "length")] for _ in request.prompts]

    def open(self, context):
        """Note it."""
        self.events.append(f"open {context.model.kind}")

    def close(self):
        """Note it."""
        self.events.append("close")


def test_the_inferencer_is_opened_and_closed_once(model_directory):
    Recording.events.clear()
    with lmflow.load_model(model_directory, inferencer=Recording) as model:
        assert model.generate("a").text == model.chat("a") == "said"
        assert list(model.chat("a", stream=True)) == ["said"]
    model.close()
    assert Recording.events == ["open causal", "close"]
    assert "closed" in repr(model)
    with pytest.raises(lmflow.LmflowError, match="is closed"):
        model.generate("a")


def test_what_is_saved_is_loaded_again(model, tmp_path: Path):
    place = model.save(tmp_path / "saved")
    again = lmflow.load_model(place, device="cpu")
    options = {"temperature": 0, "max_new_tokens": 5}
    assert again.generate("say one", **options) == model.generate("say one", **options)
    with pytest.raises(lmflow.LmflowError, match="is not empty"):
        model.save(place)


def test_a_run_an_adapter_and_a_section_name_a_model(carried_out, model_directory):
    result = carried_out(tuner={"name": "lora", "rank": 2})
    options = {"temperature": 0, "max_new_tokens": 5}
    texts = {
        lmflow.load_model(each, device="cpu").generate("say one", **options).ids
        for each in (result, result.directory, str(result.result))
    }
    assert len(texts) == 1
    section = lmflow.load_model({"name": "pretrained", "path": model_directory}, device="cpu", attention="eager")
    assert section.model.module.config._attn_implementation == "eager"


def test_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(lmflow.RecipeError) as caught:
        lmflow.load_model("dmeo", attention="edgar", device="gpu")  # type: ignore[arg-type]
    text = str(caught.value)
    assert "model.name: no model is called dmeo; did you mean demo?" in text
    assert "attention.name: no attention is called edgar; did you mean eager?" in text
    assert "compute.device: must be one of" in text


def test_nothing_is_printed_unless_asked_for(model_directory, capfd):
    lmflow.load_model(model_directory, device="cpu").generate("a", max_new_tokens=2)
    assert capfd.readouterr() == ("", "")
    lmflow.load_model(model_directory, device="cpu", display=True)
    assert "loading model" in capfd.readouterr().err
