"""A dialogue: what the model is shown, what stays when an answer is stopped, and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import GenerateRequest, Inferencer
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.errors import DataError, LmflowError, RecipeError
from lmflow.inference.chat import COMMANDS, Dialogue, ExitChat, changed_sampling, hidden_note, run_command
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.recipe.sections.data import DataOptions


class Says(Inferencer):
    """Says the given pieces, and remembers the text of each prompt."""

    name = "says"
    pieces: tuple[str, ...] = ("one ", "two ", "three")

    def generate(self, request: GenerateRequest) -> Any:
        raise NotImplementedError

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        [prompt] = request.prompts
        SHOWN.append(request.model.tokenizer.decode(prompt.ids))
        for piece in self.pieces:
            if piece == "interrupt":
                raise KeyboardInterrupt
            yield piece


SHOWN: list[str] = []


@pytest.fixture
def dialogue(tiny_model: Any) -> Callable[..., Dialogue]:
    """Makes a dialogue with a model that says prepared pieces."""
    SHOWN.clear()
    return lambda *pieces, **more: Dialogue(tiny_model, Says(pieces=pieces or ("ok",)), Sampling(), **more)


def turns(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in dialogue.messages]


def test_the_model_is_shown_the_whole_dialogue(dialogue: Callable[..., Dialogue], tiny_model: Any) -> None:
    talk = dialogue("one ", "two", system="be brief")
    assert list(talk.answer("hello")) == ["one ", "two"]
    list(talk.answer("again"))
    assert turns(talk) == [("user", "hello"), ("assistant", "one two"), ("user", "again"), ("assistant", "one two")]
    expected = [{"role": role, "content": content} for role, content in [("system", "be brief"), *turns(talk)[:3]]]
    rendered = tiny_model.tokenizer.apply_chat_template(expected, tokenize=False, add_generation_prompt=True)
    assert SHOWN[1] == rendered
    talk.reset()
    list(talk.answer("anew"))
    assert "hello" not in SHOWN[2]
    assert "be brief" in SHOWN[2]


def test_answers_are_those_of_the_inferencer(tiny_model: Any) -> None:
    from lmflow.data.sample import Message, Sample

    sampling = Sampling(max_new_tokens=6, seed=4)
    talk = Dialogue(tiny_model, HuggingFace(), sampling)
    prompt = tiny_model.encode_prompt(Sample((Message("user", "the fox"),)))
    [[whole]] = HuggingFace().generate(GenerateRequest(tiny_model, [prompt], sampling))
    assert "".join(talk.answer("the fox")) == whole.text


def test_a_stopped_answer_stays_as_far_as_it_came(dialogue: Callable[..., Dialogue]) -> None:
    talk = dialogue("one ", "two ", "interrupt")
    with pytest.raises(KeyboardInterrupt):
        list(talk.answer("hello"))
    assert turns(talk) == [("user", "hello"), ("assistant", "one two ")]
    closed = dialogue("one ", "two ")
    pieces = closed.answer("hello")
    next(pieces)
    pieces.close()
    assert turns(closed) == [("user", "hello"), ("assistant", "one ")]


def test_a_question_without_an_answer_is_taken_back(dialogue: Callable[..., Dialogue]) -> None:
    talk = dialogue("interrupt")
    with pytest.raises(KeyboardInterrupt):
        list(talk.answer("hello"))
    assert turns(talk) == []
    with pytest.raises(DataError, match=r"the message: the prompt has .* tokens and the model's context is 256"):
        list(talk.answer("fox " * 300))
    assert turns(talk) == []
    silent = dialogue("")
    list(silent.answer("hello"))
    assert turns(silent) == [("user", "hello"), ("assistant", "")], "an empty answer is one"


def test_the_oldest_turns_are_left_out_when_the_context_is_full(dialogue: Callable[..., Dialogue]) -> None:
    talk = dialogue("the fox " * 10, system="be brief")
    notes = []
    for number in range(8):
        hidden = talk.hidden
        list(talk.answer(f"question {number}"))
        notes.append(hidden_note(talk, hidden))
    assert notes[0] is None
    assert talk.hidden > 0
    assert talk.hidden % 2 == 0
    assert notes[-1] == (
        "the dialogue no longer fits the model's context of 256 tokens: it is not shown the oldest "
        f"{talk.hidden} messages"
    )
    assert len(turns(talk)) == 16, "nothing is forgotten, only left out"
    assert SHOWN[-1].startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nquestion ")
    assert f"question {talk.hidden // 2}" in SHOWN[-1]
    assert f"question {talk.hidden // 2 - 1}" not in SHOWN[-1]


def test_room_for_the_answer_is_kept(dialogue: Callable[..., Dialogue], tiny_model: Any) -> None:
    talk = dialogue("the fox " * 12)
    for number in range(6):
        list(talk.answer(f"question {number}"))
        assert len(tiny_model.tokenizer(SHOWN[-1])["input_ids"]) + 256 // 4 <= 256


# Commands


def test_help_names_every_command(dialogue: Callable[..., Dialogue]) -> None:
    text = run_command(dialogue(), "/help")
    assert set(COMMANDS) == {"/help", "/reset", "/system", "/save", "/set", "/image", "/exit"}
    assert all(name in text for name in (*COMMANDS, "Ctrl-C", "Ctrl-D"))


def test_reset_and_system(dialogue: Callable[..., Dialogue]) -> None:
    talk = dialogue()
    list(talk.answer("hello"))
    assert run_command(talk, "/system") == "system text: none"
    run_command(talk, "/system be very brief")
    assert (talk.system, run_command(talk, "/system")) == ("be very brief", "system text: be very brief")
    assert len(turns(talk)) == 2
    run_command(talk, "/reset")
    assert (turns(talk), talk.system) == ([], "be very brief")
    run_command(talk, "/system none")
    assert talk.system is None


def test_set(dialogue: Callable[..., Dialogue]) -> None:
    talk = dialogue()
    assert run_command(talk, "/set sampling.temperature 0.3") == "sampling.temperature is 0.3"
    run_command(talk, "/set top_k=5")
    run_command(talk, r"/set stop \n\n")
    assert talk.sampling == Sampling(temperature=0.3, top_k=5, stop=("\n\n",))
    assert "sampling.temperature 0.3" in run_command(talk, "/set")
    cases = [
        ("sampling.temprature 1", "sampling.temprature: unknown option; did you mean sampling.temperature?"),
        ("temperature -1", "sampling.temperature: must be at least 0.0, got '-1'"),
        ("top_k x", "sampling.top_k: expected a whole number, got 'x'"),
        ("temperature", "sampling.temperature: needs a value"),
        ("n 2", "n: unknown option; there are temperature"),
        ("zzz 1", "zzz: unknown option; there are temperature"),
    ]
    for assignment, message in cases:
        with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
            changed_sampling(talk.sampling, assignment)
    assert talk.sampling.temperature == 0.3


def test_saved_dialogues_are_records(dialogue: Callable[..., Dialogue], tmp_path: Path) -> None:
    talk = dialogue("fine", system="be brief")
    list(talk.answer("how are you"))
    path = tmp_path / "d.json"
    assert run_command(talk, f"/save {path}") == f"2 messages saved to {path}"
    [sample] = read_samples(DataOptions(path=str(path)), Formats(FORMATS))
    assert [(m.role, m.content) for m in sample.messages] == [
        ("system", "be brief"),
        ("user", "how are you"),
        ("assistant", "fine"),
    ]
    run_command(talk, f"/save {path}")  # its own file may be replaced
    with pytest.raises(DataError, match="exists; choose another name"):
        run_command(dialogue(), f"/save {path}")
    with pytest.raises(DataError, match="cannot be written"):
        run_command(talk, f"/save {tmp_path / 'no' / 'd.json'}")
    with pytest.raises(DataError, match="needs the name of a file"):
        run_command(talk, "/save")


def test_images_go_with_the_next_message(dialogue: Callable[..., Dialogue], tmp_path: Path) -> None:
    talk = dialogue()
    image = tmp_path / "p.png"
    image.touch()
    with pytest.raises(DataError, match="there is no image nowhere"):
        run_command(talk, "/image nowhere.png")
    with pytest.raises(DataError, match="needs the path"):
        run_command(talk, "/image")
    run_command(talk, f"/image {image}")
    assert talk.images == [str(image)]
    with pytest.raises(DataError, match="the message: it has 1 image, and this model reads text alone"):
        list(talk.answer("what is this"))
    assert (turns(talk), talk.images) == ([], [])
    talk.images = [str(image)]
    with pytest.raises(DataError, match="it says <image> 2 times"):
        list(talk.answer("<image> or <image>"))


def test_an_image_is_saved_with_the_dialogue(dialogue: Callable[..., Dialogue], tmp_path: Path) -> None:
    from lmflow.data.sample import Message

    talk = dialogue()
    talk.messages = [Message("user", "<image>\nwhat", ("p.png",)), Message("assistant", "a dog")]
    talk.save(tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text())["images"] == ["p.png"]


def test_exit_and_unknown_commands(dialogue: Callable[..., Dialogue]) -> None:
    with pytest.raises(ExitChat):
        run_command(dialogue(), "/exit")
    with pytest.raises(LmflowError, match=r"no command is called /rset; did you mean /reset\?"):
        run_command(dialogue(), "/rset")
    with pytest.raises(LmflowError, match="no command is called /; see /help"):
        run_command(dialogue(), "/")
