"""The lora tuner against PEFT used directly, and its adapters in plain PEFT."""

import copy
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from lmflow.components import LoadRequest
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.language_model import LanguageModel
from lmflow_lora.adapter import Adapter
from lmflow_lora.lora import Lora

BLOCK_LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
IDS = torch.tensor([[5, 9, 13, 21, 8]])


def trainable(module: torch.nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def shift(module: torch.nn.Module, seed: int = 0) -> None:
    """Move the adapter as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IDS).logits


def test_identity_at_the_start(make_llama):
    """With B = 0 the adapter changes nothing."""
    base = make_llama()
    before = logits(base)
    assert torch.equal(logits(Lora().prepare(base)), before)


def test_auto_targets_every_linear_layer_of_the_blocks(make_llama):
    module = Lora().prepare(make_llama())
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name in trainable(module) if "lora_A" in name}
    assert sorted(adapted) == BLOCK_LAYERS
    assert len([n for n in trainable(module) if "lora_A" in n]) == 2 * len(BLOCK_LAYERS)


def test_auto_on_gpt2_takes_conv1d():
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    module = Lora().prepare(AutoModelForCausalLM.from_config(config))
    adapted = {name.split(".lora_A")[0].split(".h.0.")[-1] for name in trainable(module) if "lora_A" in name}
    assert adapted == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 4, "alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        {"rslora": True},
        {"dora": True},
        {"initialisation": "gaussian"},
        {"initialisation": "orthogonal"},
    ],
)
def test_equals_peft_used_directly(options: dict[str, Any], make_llama):
    lora = Lora(**options)
    torch.manual_seed(3)
    ours = lora.prepare(make_llama(seed=1))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=BLOCK_LAYERS if lora.target_modules == "auto" else lora.target_modules,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.initialisation == "default" else lora.initialisation,
    )
    torch.manual_seed(3)
    base = make_llama(seed=1)
    torch.manual_seed(3)
    ours = lora.prepare(make_llama(seed=1))
    torch.manual_seed(3)
    make_llama(seed=1)
    reference = get_peft_model(base, config)
    assert trainable(ours) == trainable(reference)
    reference.load_state_dict(ours.state_dict())
    shift(ours)
    shift(reference)
    torch.testing.assert_close(logits(ours), logits(reference), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"rslora": True, "rank": 4}, {"dora": True}, {"initialisation": "pissa"}])
def test_plain_peft_loads_the_adapter_and_merging_keeps_the_logits(options, model_directory, make_tokenizer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    original = logits(base)
    lora = Lora(**options)
    model = LanguageModel(lora.prepare(base), make_tokenizer(), str(model_directory))
    torch.testing.assert_close(logits(model.module), original, rtol=0, atol=1e-5)
    shift(model.module)
    expected = logits(model.module)
    assert not torch.allclose(expected, original, atol=1e-3)
    saved = lora.save(model, tmp_path)
    assert saved == tmp_path / "adapter"
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(saved)), expected, rtol=0, atol=1e-4)
    fresh = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(fresh, saved)), expected, rtol=0, atol=1e-4)
    merged = Adapter(path=str(saved)).load(LoadRequest())
    torch.testing.assert_close(logits(merged.module), expected, rtol=0, atol=1e-4)
    assert not any("lora" in name for name, _ in merged.module.named_parameters())
    assert merged.tokenizer.chat_template == model.tokenizer.chat_template


def test_an_adapter_upon_an_adapter_loses_neither(model_directory, make_tokenizer, tmp_path):
    """The second one's base are weights that lie nowhere, so the result is a whole model."""
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    first = LanguageModel(Lora().prepare(base), make_tokenizer(), str(model_directory))
    shift(first.module)
    adapter = Lora().save(first, tmp_path / "first")
    second = Adapter(path=str(adapter)).load(LoadRequest())
    second = second.with_module(Lora().prepare(second.module))
    shift(second.module)
    expected = logits(second.module)
    saved = Lora().save(second, tmp_path / "second")
    assert saved == tmp_path / "second" / "model"
    plain = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(second.module), expected, rtol=0, atol=0)


def test_expression_and_names_from_the_command_line(make_llama):
    chosen = Lora(target_modules=r".*layers\.1\..*q_proj").prepare(make_llama())
    assert all("layers.1" in name and "q_proj" in name for name in trainable(chosen))
    assert Lora(target_modules="q_proj,v_proj").target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("wanted", [["q_prj"], r".*\.qkv"])
def test_a_target_that_matches_nothing_names_the_layers(wanted, make_llama):
    with pytest.raises(RecipeError, match=r"no linear layer matches '.*'; there are .*down_proj.*q_proj"):
        Lora(target_modules=wanted).prepare(make_llama())


def test_missing_base_is_explained(model_directory, make_tokenizer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_directory)
    gone = copy.deepcopy(base)
    gone.config._name_or_path = gone.name_or_path = str(tmp_path / "moved")
    lora = Lora()
    saved = lora.save(LanguageModel(lora.prepare(gone), make_tokenizer(), gone.name_or_path), tmp_path)
    with pytest.raises(LmflowError, match=r"cannot be loaded from .*moved.*\n.*--model.base"):
        Adapter(path=str(saved)).load(LoadRequest())
    assert Adapter(path=str(saved), base=str(model_directory)).load(LoadRequest())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_model.safetensors", "cut off", r"adapter_model\.safetensors is damaged"),
        ("adapter_config.json", "[]", r"its adapter_config\.json cannot be read"),
        ("adapter_config.json", "{", r"it cannot be loaded"),
        ("tokenizer.json", "{}", r"its tokenizer cannot be read"),
    ],
)
def test_a_damaged_file_is_named(name, content, message, tiny_model, model_directory, tmp_path):
    lora = Lora()
    base = AutoModelForCausalLM.from_pretrained(model_directory)
    saved = lora.save(LanguageModel(lora.prepare(base), tiny_model.tokenizer, str(model_directory)), tmp_path)
    (saved / name).write_text(content)
    with pytest.raises(LmflowError, match=rf"^model\.path {saved}: {message}") as caught:
        Adapter(path=str(saved)).load(LoadRequest())
    assert len(str(caught.value).splitlines()) == 1


def test_the_base_is_rebuilt_as_the_adapter_knew_it(model_directory, make_tokenizer, tmp_path):
    """A configuration changed before training (here by hand, in a run by a context) comes back with the adapter."""
    config = AutoConfig.from_pretrained(model_directory)
    config.rope_parameters["rope_theta"] = 500.0
    config.max_position_embeddings = 1024
    base = AutoModelForCausalLM.from_pretrained(model_directory, config=config, dtype=torch.float32)
    lora = Lora()
    model = LanguageModel(lora.prepare(base), make_tokenizer(), str(model_directory))
    shift(model.module)
    saved = lora.save(model, tmp_path)
    merged = Adapter(path=str(saved)).load(LoadRequest())
    torch.testing.assert_close(logits(merged.module), logits(model.module), rtol=0, atol=1e-4)
    assert merged.context_length == 1024
    (saved / "base_config.json").unlink()  # an adapter from elsewhere: the base is as it is stored
    assert Adapter(path=str(saved)).load(LoadRequest()).context_length == 256
