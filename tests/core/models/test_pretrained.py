"""Models that Transformers loads: found, loaded as asked, built without weights, and each fault in one message."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmflow.builtin.attention import Eager, Sdpa
from lmflow.components import Attention, Context, LoadRequest, Quantization
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.pretrained import (
    Pretrained,
    assemble,
    check_attention,
    explained_attention,
    place,
)
from lmflow.models.reading import explained_failure
from lmflow.models.source import asks_hub, check_path
from lmflow.testing.tiny import tiny_module


@pytest.fixture
def copied(model_directory: Path, tmp_path: Path) -> Path:
    """The tiny model in a directory that a test may damage."""
    return shutil.copytree(model_directory, tmp_path / "model")


def load(directory: Path, request: LoadRequest | None = None) -> Any:
    return Pretrained(path=str(directory)).load(request or LoadRequest())


def skeleton(directory: Path, request: LoadRequest | None = None) -> Any:
    return Pretrained(path=str(directory)).skeleton(request or LoadRequest())


# What is found


def test_a_directory_with_a_configuration_is_recognised(model_directory: Path, tmp_path: Path):
    assert Pretrained.recognises(str(model_directory))
    assert not Pretrained.recognises(str(tmp_path))
    assert not Pretrained.recognises(str(model_directory / "config.json"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/name", True),
        ("owner/name.with-dots_2", True),
        ("name", False),
        ("./owner/name", False),
        ("../name", False),
        ("/owner/name", False),
        ("~/name", False),
        ("a/b/c", False),
    ],
)
def test_names_on_the_hub_look_like_owner_and_name(path: str, expected: bool):
    assert asks_hub(path) is expected


def test_what_lies_here_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not asks_hub("owner/name")


def test_places_without_a_model(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_path(str(copied))
    monkeypatch.setenv("HOME", str(tmp_path))
    check_path("~/model")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", r"model\.path: .*empty is a directory without config\.json, so it holds no model"),
        (tmp_path / "modle", rf"model\.path: .*modle does not exist; did you mean {copied}\?"),
        (tmp_path / "quite" / "elsewhere", r"model\.path: .*elsewhere does not exist$"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_path(str(path))
        for method in (load, skeleton):
            with pytest.raises(RecipeError, match=message):
                method(path)


# Loading


def test_weights_have_the_dtype_of_the_request(model_directory: Path):
    for dtype in (torch.float32, torch.bfloat16):
        model = load(model_directory, LoadRequest(dtype=str(dtype).removeprefix("torch.")))
        assert {parameter.dtype for parameter in model.module.parameters()} == {dtype}
        assert not model.module.training
        assert model.source == str(model_directory)


def test_weights_in_several_files_are_the_same_weights(
    model_directory: Path, logits: Callable[[Any], torch.Tensor], tmp_path: Path
):
    whole = load(model_directory)
    whole.module.save_pretrained(tmp_path, max_shard_size="40KB")
    whole.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load(tmp_path)), logits(whole))


def test_a_skeleton_is_the_model_without_its_weights(model_directory: Path):
    whole, bare = load(model_directory), skeleton(model_directory)
    shapes = [{name: tuple(each.shape) for name, each in one.module.named_parameters()} for one in (whole, bare)]
    assert shapes[0] == shapes[1]
    assert {parameter.device.type for parameter in bare.module.parameters()} == {"meta"}
    assert (bare.end_ids, bare.context_length) == (whole.end_ids, whole.context_length)
    assert bare.tokenizer.get_vocab() == whole.tokenizer.get_vocab()


def test_ends_of_the_generation_configuration_are_ends_of_a_skeleton_too(copied: Path):
    file = copied / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [1, 7]}))
    assert set(load(copied).end_ids) == set(skeleton(copied).end_ids) == {1, 7}
    file.unlink()
    assert set(skeleton(copied).end_ids) == {1}, "not every model has one"


class Longer(Context):
    """Twice as many positions."""

    name = "longer"

    def configure(self, config: Any) -> None:
        """In place."""
        config.max_position_embeddings *= 2


def test_a_context_changes_the_configuration_the_model_is_built_with(model_directory: Path):
    for method in (load, skeleton):
        assert method(model_directory, LoadRequest(context=Longer())).context_length == 512
        assert method(model_directory).context_length == 256


def test_revision_and_trust_are_those_of_all_parts(model_directory: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {}
    for kind in (AutoTokenizer, AutoConfig, AutoModelForCausalLM):

        def note(*places: Any, original: Any = kind.from_pretrained, kind: Any = kind, **settings: Any) -> Any:
            found = {name: settings.pop(name, None) for name in ("revision", "trust_remote_code")}
            given.setdefault(kind.__name__, found)  # the tokenizer asks for the configuration once more
            return original(*places, **settings)

        monkeypatch.setattr(kind, "from_pretrained", note)
    Pretrained(path=str(model_directory), revision="v2", trust_remote_code=True).load(LoadRequest())
    expected = {"revision": "v2", "trust_remote_code": True}
    assert given == dict.fromkeys(("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM"), expected)


def test_what_is_placed_already_stays(monkeypatch: pytest.MonkeyPatch):
    moved: list[str] = []
    module = SimpleNamespace(to=lambda device: moved.append(device) or "moved")
    assert place(module, LoadRequest(device="cpu")) == "moved"
    for request in (LoadRequest(quantization=Quantization("nf4")), LoadRequest(device_map="auto")):
        assert place(module, request) is module
    assert moved == ["cpu"]


def test_a_tokenizer_without_a_template_gets_one(make_tokenizer: Callable[..., Any]):
    model = assemble(tiny_module().train(), make_tokenizer(chat_template=None), "here", LoadRequest(attention=Eager()))
    assert model.tokenizer.chat_template
    assert (model.module.training, model.attention) == (False, Eager())


def test_a_model_that_could_never_end_is_refused(make_tokenizer: Callable[..., Any]):
    module, tokenizer = tiny_module(eos_token_id=None), make_tokenizer()
    tokenizer.eos_token = tokenizer.chat_template = None
    module.generation_config.eos_token_id = None
    with pytest.raises(LmflowError, match="here: neither tokenizer nor generation configuration names an end-of-text"):
        assemble(module, tokenizer, "here", LoadRequest())


# Faults


@pytest.mark.parametrize("damage", ["cut off", "empty", "something else"])
def test_a_damaged_file_of_weights_is_named(damage: str, copied: Path):
    file = copied / "model.safetensors"
    content = {"cut off": file.read_bytes()[:-9], "empty": b"", "something else": b"<html>not found</html>"}[damage]
    file.write_bytes(content)
    message = rf"^model\.path {re.escape(str(copied))}: model\.safetensors is damaged: .+ Copy it again"
    with pytest.raises(LmflowError, match=message) as caught:
        load(copied)
    assert len(str(caught.value).splitlines()) == 1


def test_of_several_files_of_weights_the_damaged_one_is_named(model_directory: Path, tmp_path: Path):
    whole = load(model_directory)
    whole.module.save_pretrained(tmp_path, max_shard_size="40KB")
    whole.tokenizer.save_pretrained(tmp_path)
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(LmflowError, match=rf"{last.name} is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "not a valid JSON file"),
        ("config.json", "{}", "Unrecognized model"),
        ("config.json", "[]", "Unrecognized model"),
        ("config.json", '{"model_type": "no-such-type"}', "no-such-type"),
        ("tokenizer.json", "{", "Expecting property name"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_message(name: str, content: str, message: str, copied: Path):
    (copied / name).write_text(content)
    for method in (load, skeleton):
        with pytest.raises(LmflowError, match=rf"(?s)^model\.path .*: it cannot be loaded: .*{message}") as caught:
            method(copied)
        assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("tokenizer.json", "{}", "tokenizer"),
        ("tokenizer_config.json", "[]", "tokenizer"),
    ],
)
def test_a_file_that_holds_something_else_is_one_message(name: str, content: str, part: str, copied: Path):
    (copied / name).write_text(content)
    for method in (load, skeleton):
        with pytest.raises(
            LmflowError, match=rf"^model\.path .*: its {part} cannot be read: [A-Z]\w+Error: "
        ) as caught:
            method(copied)
        assert len(str(caught.value).splitlines()) == 1


def test_a_model_without_weights_has_a_skeleton_and_cannot_be_loaded(copied: Path):
    (copied / "model.safetensors").unlink()
    with pytest.raises(LmflowError, match=r"it cannot be loaded: .*no file named model\.safetensors"):
        load(copied)
    assert skeleton(copied).end_ids


def test_mistakes_of_ours_are_not_put_down_to_the_model():
    with pytest.raises(KeyError), explained_failure("here"):
        raise KeyError("a bug")
    with pytest.raises(LmflowError, match=r"^as it is$"), explained_failure("here"):
        raise LmflowError("as it is")


# Attention


class Unknown(Attention):
    """One that Transformers has not."""

    name = "unknown"

    def implementation(self, config: Any, device: str) -> str:
        """No such thing."""
        return "no_such_attention"


@pytest.mark.parametrize("attention", [Eager(), Sdpa()])
def test_the_model_computes_attention_as_asked(attention, model_directory: Path):
    request = LoadRequest(attention=attention)
    for model in (
        Pretrained(path=str(model_directory)).load(request),
        Pretrained(path=str(model_directory)).skeleton(request),
    ):
        assert model.module.config._attn_implementation == attention.name
        assert model.attention is attention


def test_one_message_names_the_model_type(model_directory: Path):
    for method in ("load", "skeleton"):
        with pytest.raises(
            LmflowError, match="--attention unknown: a model of type llama cannot be built with it"
        ) as caught:
            getattr(Pretrained(path=str(model_directory)), method)(LoadRequest(attention=Unknown()))
        assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_has_no_such_attention_is_named(tmp_path: Path, make_tokenizer):
    """BLOOM computes its attention itself, with ALiBi."""
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = make_tokenizer()
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(LmflowError, match="--attention sdpa: a model of type bloom cannot be built with it"):
        Pretrained(path=str(tmp_path)).load(LoadRequest(attention=Sdpa()))
    assert Pretrained(path=str(tmp_path)).load(LoadRequest(attention=Eager())).attention == Eager()


def test_where_no_attention_is_asked_for_nothing_is_said_of_it():
    with explained_attention(SimpleNamespace(), LoadRequest()) as settings:
        assert settings == {}
    with pytest.raises(ValueError, match="attention is broken"), explained_attention(None, LoadRequest()):
        raise ValueError("attention is broken")


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (ValueError("no such Attention"), True),
        (ImportError("FlashAttention2 is not installed\nmore about it"), True),
        (ValueError("no weights"), False),
        (RuntimeError("attention"), False),
    ],
    ids=str,
)
def test_only_what_speaks_of_attention_is_put_down_to_it(error: Exception, explained: bool):
    building = explained_attention(SimpleNamespace(model_type="llama"), LoadRequest(attention=Eager()))
    with pytest.raises(LmflowError if explained else type(error)) as caught, building:
        raise error
    if explained:
        first = str(error).splitlines()[0]
        assert str(caught.value).startswith(
            f"--attention eager: a model of type llama cannot be built with it: {first} "
        )


def test_a_model_built_with_another_attention_is_refused():
    module = tiny_module(attn_implementation="eager")
    check_attention(module, {"attn_implementation": "eager"}, LoadRequest(attention=Eager()))
    check_attention(module, {}, LoadRequest())
    with pytest.raises(LmflowError, match=r"--attention sdpa: .* Transformers built it with eager instead of sdpa"):
        check_attention(module, {"attn_implementation": "sdpa"}, LoadRequest(attention=Sdpa()))
