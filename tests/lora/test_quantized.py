"""LoRA on quantised weights: trained, resumed to the bit, loaded as it was trained, and merged into the plain base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.builtin.merge import Merge
from lmflow.components import LoadRequest, Quantization
from lmflow.errors import LmflowError, RecipeError, TrainingError
from lmflow.models.pretrained import Pretrained
from lmflow.planning.plan import load_skeleton, make_plan
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.recipe import ResolvedRecipe
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow.run.export import export
from lmflow.run.run import run
from lmflow.testing.runs import interrupt, stored_recipe
from lmflow_lora.adapter import Adapter
from lmflow_lora.lora import Lora

pytest.importorskip("bitsandbytes", reason="bitsandbytes is the extra `quantization` of lmflow-core")
IDS = torch.arange(3, 20).unsqueeze(0)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_llama: Any, make_tokenizer: Any) -> Path:
    """A tiny Llama whose layers have whole blocks of 64 weights."""
    directory, tokenizer = tmp_path_factory.mktemp("models") / "base", make_tokenizer()
    make_llama(len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, base: Path, plugins: Plugins) -> Any:
    """Makes the recipe of a short LoRA run on the base, quantised as asked."""
    records = tmp_path_factory.mktemp("data") / "records.jsonl"
    lines = [{"messages": turns(f"the quick brown fox {i}", f"jumps over the lazy dog {i}")} for i in range(12)]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def make(kind: str, **more: str) -> ResolvedRecipe:
        values = {
            "model": str(base),
            "model.quantization": kind,
            "tuner": "lora",
            "data.path": str(records),
            "training.max_steps": "6",
            "training.batch_size": "4",
            "training.learning_rate": "1e-2",
            "training.checkpoint_every": "2",
        } | {key.replace("__", "."): value for key, value in more.items()}
        return resolve(
            plugins, options=[Setting(key, each, Origin("option", f"--{key}")) for key, each in values.items()]
        )

    return make


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IDS).logits.float()


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, recipe, plugins, tmp_path):
    whole = run(recipe(kind), plugins, output=tmp_path / "whole", estimate=False)
    interrupt(recipe(kind), plugins, tmp_path / "pieces", after=3)
    resumed = run(stored_recipe(plugins, tmp_path / "pieces"), plugins, output=tmp_path / "pieces", resume=True)
    ours, theirs = weights_of(whole.directory), weights_of(resumed.directory)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [json.loads(line)["loss"] for line in (whole.directory / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert all(map(math.isfinite, losses))
    assert all(weight.abs().max() > 1e-3 for name, weight in ours.items() if "lora_B" in name)  # they began as zeros
    plain = Pretrained(path=recipe(kind).recipe.model.path).skeleton(LoadRequest()).module
    trainable = whole.record["metrics"]["trainable_parameters"]
    assert whole.record["metrics"]["parameters"] - trainable == sum(p.numel() for p in plain.parameters())
    check_result(whole.directory, kind, plugins, tmp_path)


def check_result(directory: Path, kind: str, plugins: Plugins, tmp_path: Path) -> None:
    """The adapter on the quantised base is what was trained; merged, it is the adapter on the plain base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = directory / "adapter"
    source = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert "quantization_config" not in json.loads((adapter / "base_config.json").read_text())
    served = Adapter(path=str(adapter), quantization=kind).load(LoadRequest())
    quantised = Pretrained(path=source, quantization=kind).load(LoadRequest()).module
    torch.testing.assert_close(
        logits(served.module), logits(PeftModel.from_pretrained(quantised, adapter)), rtol=0, atol=0
    )
    merged = export(Merge(dtype="float32"), plugins, str(directory), tmp_path / "merged")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), adapter)
    alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert getattr(alone.config, "quantization_config", None) is None
    torch.testing.assert_close(logits(alone), logits(plain), rtol=0, atol=1e-4)
    with pytest.raises(RecipeError, match="cannot be trained further; merge it first"):
        Lora().prepare(served.module)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_gradients_are_those_of_the_rounded_weights(kind, base):
    """Finite, and for 4 bits equal to those of a plain model that holds the unpacked weights."""
    import bitsandbytes as bnb

    module = Pretrained(path=str(base), quantization=kind).load(LoadRequest()).module
    plain = Pretrained(path=str(base)).load(LoadRequest()).module
    for name, layer in module.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            unpacked = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.get_submodule(name).weight.data = unpacked
    found = []
    for each in (module, plain):
        torch.manual_seed(0)
        tuned = Lora().prepare(each)
        tuned.train()
        tuned(IDS, labels=IDS).loss.backward()
        found.append({n: p.grad for n, p in tuned.named_parameters() if p.requires_grad})
    assert all(torch.isfinite(gradient).all() for gradient in found[0].values())
    assert any(gradient.abs().max() > 0 for gradient in found[0].values())
    tolerance = {"rtol": 0.1, "atol": 5e-3} if kind == "int8" else {"rtol": 1e-4, "atol": 1e-6}
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], **tolerance)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_plan_counts_quantised_weights(kind, recipe, plugins):
    """Within 15% of what the tensors of the loaded model take."""
    from lmflow.data.dataset import load_dataset
    from lmflow.data.formats import formats_of

    resolved = recipe(kind).recipe
    data, _ = load_dataset(resolved.data, formats_of(resolved, plugins), 0)
    plan = make_plan(resolved, load_skeleton(resolved, plugins), data, plugins)
    real = resolved.tuner.prepare(resolved.model.load(LoadRequest()).module)
    taken = sum(p.nbytes for p in [*real.parameters(), *real.buffers()])
    for parameter in real.parameters():
        state = getattr(parameter, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            taken += sum(v.nbytes for v in vars(each).values() if isinstance(v, torch.Tensor)) if each else 0
        taken += parameter.SCB.nbytes if getattr(parameter, "SCB", None) is not None else 0
    assert plan.memory is not None
    assert plan.memory.weights == pytest.approx(taken, rel=0.15)
    plain = recipe("none").recipe
    wider = make_plan(plain, load_skeleton(plain, plugins), data, plugins)
    assert plan.memory.weights < 0.75 * wider.memory.weights
    assert (plan.parameters, plan.trainable_parameters) == (wider.parameters, wider.trainable_parameters)


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_starts_that_take_the_weights_apart_are_refused(initialisation, base):
    module = Pretrained(path=str(base)).load(LoadRequest(quantization=Quantization("nf4"))).module
    with pytest.raises(RecipeError, match=f"tuner.initialisation: {initialisation} takes the model's weights apart"):
        Lora(initialisation=initialisation).prepare(module)


def test_an_adapter_whose_base_is_stored_quantised_is_not_merged(base, make_tokenizer, tmp_path):
    from lmflow.models.language_model import LanguageModel

    module = Pretrained(path=str(base)).load(LoadRequest()).module
    saved = Lora().save(LanguageModel(Lora().prepare(module), make_tokenizer(), str(base)), tmp_path)
    config = json.loads((saved / "base_config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (saved / "base_config.json").write_text(json.dumps(config))
    with pytest.raises(LmflowError, match=r"stored quantised \(awq\).*\n?.*--model.base"):
        Adapter(path=str(saved)).load(LoadRequest())


def test_full_tuning_of_a_model_that_is_stored_quantised_is_refused(base, recipe, plugins, tmp_path, monkeypatch):
    """It is not quantised by an option, so it is seen only once it is loaded."""
    from lmflow.models import quantization

    monkeypatch.setattr(quantization, "stored_quantization", lambda config: "gptq")
    resolved = recipe("none", tuner="full", model=str(base))
    with pytest.raises(TrainingError, match="is stored quantised, and tuner full changes the weights"):
        run(resolved, plugins, output=tmp_path / "run", estimate=False)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_reaches_the_base_of_an_adapter(attention, base, make_tokenizer, plugins, tmp_path):
    from lmflow.builtin.attention import Eager, Sdpa
    from lmflow.models.language_model import LanguageModel

    module = Pretrained(path=str(base)).load(LoadRequest()).module
    saved = Lora().save(LanguageModel(Lora().prepare(module), make_tokenizer(), str(base)), tmp_path)
    asked = {"eager": Eager(), "sdpa": Sdpa()}[attention]
    for quantised in (None, Quantization("nf4")):
        request = LoadRequest(attention=asked, quantization=quantised)
        for model in (Adapter(path=str(saved)).load(request), Adapter(path=str(saved)).skeleton(request)):
            assert model.module.config._attn_implementation == attention
