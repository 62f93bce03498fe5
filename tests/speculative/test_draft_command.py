"""`lmflow draft`: what is built, what is minimised, and the directory it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.cli.app import run_app
from lmflow.components import GenerateRequest
from lmflow.data.collate import collate
from lmflow.data.dataset import load_dataset
from lmflow.data.formats import Formats
from lmflow.data.sample import Message, Prompt, Sample
from lmflow.errors import DataError, LmflowError, RecipeError, RunDirectoryError
from lmflow.inference.types import Completion, Sampling
from lmflow.plugins import load_plugins
from lmflow.recipe.sections.data import DataOptions, Reading
from lmflow.testing.contexts import evaluate_context, quiet_log
from lmflow_speculative.distilling import as_sequences, build_draft, distillation_from, divergence
from lmflow_speculative.draft_command import (
    HELP,
    RECORD,
    DraftRequest,
    begin_draft,
    check_output,
    make_command,
    read_samples,
    usable_prompts,
    write,
)
from lmflow_speculative.options import DraftOptions
from lmflow_speculative.speculative import Speculative


def test_divergence_worked_by_hand():
    # KL((.5, .5) || (.25, .75)) = .5 ln 2 + .5 ln(2/3) = .1438; and of two equal rows 0.
    p, q = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log(), torch.tensor([[0.25, 0.75], [0.2, 0.8]]).log()
    assert divergence(p, q).item() == pytest.approx(0.143841, abs=1e-5)
    spare = torch.nn.functional.pad(q, (0, 3), value=-50.0)
    assert divergence(p, spare).item() == pytest.approx(0.143841, abs=1e-5)


def test_the_objective_looks_at_completions_alone(make_model):
    target, draft = make_model(), make_model(near=1)
    prompts = [Prompt([5, 6, 7]), Prompt([8])]
    drawn = [[Completion((9, 10), "", (0.0, 0.0), "length")], [Completion((11, 1), "", (0.0, 0.0), "eos")]]
    sequences = as_sequences(prompts, drawn)
    assert [list(each.loss_mask) for each in sequences] == [[False] * 3 + [True] * 2, [False, True, True]]
    batch = collate(sequences, 2)
    got = distillation_from(target)(draft.module, draft.module, batch)
    wanted = 0.0
    for ids, places in (([5, 6, 7, 9, 10], (2, 3)), ([8, 11, 1], (0, 1))):
        p, q = (model.module(torch.tensor([ids])).logits[0].log_softmax(-1) for model in (target, draft))
        wanted += sum((p[i].exp() * (p[i] - q[i])).sum().item() for i in places)
    assert got.total.item() == pytest.approx(wanted, rel=1e-3)
    assert distillation_from(target)(target.module, target.module, batch).total.item() == pytest.approx(0, abs=1e-5)


def test_a_new_draft_has_the_targets_tokenizer_context_and_embeddings(make_model):
    target = make_model()
    draft = build_draft(target, DraftOptions(), seed=0)
    assert draft.tokenizer is target.tokenizer
    assert draft.context_length == target.context_length
    assert draft.end_ids == target.end_ids
    assert draft.module.config.num_hidden_layers == 1
    assert torch.equal(draft.module.get_input_embeddings().weight, target.module.get_input_embeddings().weight)
    assert torch.equal(draft.module.get_output_embeddings().weight, target.module.get_output_embeddings().weight)
    small = build_draft(target, DraftOptions(hidden=64, layers=2), seed=0)
    assert (small.module.config.hidden_size, small.module.config.num_hidden_layers) == (64, 2)


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(
        "".join(
            f"the quick brown fox {word}\n" for word in ["jumps", "over", "the", "lazy", "dog", "and", "then", "stops"]
        )
    )
    return path


SMALL = ["--sampling.max_new_tokens", "12", "--sampling.n", "2", "--quiet"]


def test_it_writes_a_directory_that_transformers_loads(
    model_directory, prompt_file, tmp_path, capsys, tiny_model, prompts
):
    output = tmp_path / "draft"
    asked = ["draft", "--model", str(model_directory), "--data.path", str(prompt_file), "--output", str(output), *SMALL]
    assert run_app([*asked, "--training.max_steps", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = json.loads((output / "draft.json").read_text())
    assert printed == {"directory": str(output), **record}
    assert record["prompts"] == 7
    assert record["heldout_prompts"] == 1
    assert 0 <= record["acceptance_rate"] <= 1

    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = AutoModelForCausalLM.from_pretrained(output)
    assert module.config.model_type == "llama"
    assert sum(p.numel() for p in module.parameters()) == record["parameters"]
    assert AutoTokenizer.from_pretrained(output).get_vocab() == tiny_model.tokenizer.get_vocab()
    inferencer = Speculative(draft=str(output))
    with inferencer.opened(evaluate_context(tiny_model, [], plugins=load_plugins())):
        inferencer.generate(GenerateRequest(tiny_model, prompts[:2], Sampling(max_new_tokens=6)))
    assert inferencer.statistics.draft.count

    with pytest.raises(RunDirectoryError, match="holds a draft already"):
        run_app(asked)
    again = [*asked, "--overwrite", "--from", str(output), "--training.max_steps", "1"]
    assert run_app(again) == 0
    assert (output / "draft.json").is_file()


def test_training_raises_acceptance(tiny_model, model_directory, prompt_file, tmp_path, capsys):
    """A random target is hard to learn on unseen prompts, but the divergence on its samples falls."""
    losses = []
    for steps in ("1", "40"):
        output = tmp_path / steps
        asked = ["draft", "--model", str(model_directory), "--data.path", str(prompt_file), "--output", str(output)]
        run_app([*asked, *SMALL, "--training.max_steps", steps, "--json"])
        losses.append(json.loads(capsys.readouterr().out)["mean_divergence"])
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--output", "DIR"], RecipeError, r"--data\.path: needed"),
        (["--data.path", "FILE"], RecipeError, "--output: needed"),
        (["--data.path", "FILE", "--output", "DIR", "--from", "nonsense"], RecipeError, "--from: no model is called"),
        (["--data.path", "FILE", "--output", "DIR", "--sampling.max_new_tokens", "255"], DataError, "0 of 8 prompts"),
        (["--data.path", "FILE", "--output", "HOME"], RunDirectoryError, "holds something that is no draft"),
        (["--data.path", "FILE", "--output", "DIR", "--draft.hiden", "3"], RecipeError, "did you mean"),
        (["--data.path", "FILE", "--output", "DIR", "--draft.hidden", "33"], RecipeError, "multiple of 32"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(words, error, message, model_directory, prompt_file, tmp_path):
    places = {"DIR": str(tmp_path / "draft"), "FILE": str(prompt_file), "HOME": str(prompt_file.parent)}
    with pytest.raises(error, match=message):
        run_app(["draft", "--model", str(model_directory), "--quiet", *(places.get(word, word) for word in words)])
    assert not (tmp_path / "draft").exists()


def test_a_start_with_another_tokenizer_is_refused(model_directory, prompt_file, tmp_path):
    asked = ["draft", "--model", str(model_directory), "--data.path", str(prompt_file), "--output", str(tmp_path / "d")]
    with pytest.raises(LmflowError, match="different vocabularies"):
        run_app([*asked, "--from", "demo", *SMALL])


# The parts of the command


def request(output: Path, **flags: Any) -> DraftRequest:
    plain: dict[str, Any] = {"start": None, "raw": False, "overwrite": False, "quiet": True, "as_json": False}
    return DraftRequest(output, **{**plain, **flags})


def test_help_is_all_that_is_done(capsys):
    assert make_command(load_plugins(), ["--help"]) is None
    shown = capsys.readouterr().out
    for words, _ in HELP:
        assert words in shown
    assert "--draft.layers" in shown
    assert "--training.checkpoint_every" not in shown, "what means nothing here is not offered"


@pytest.mark.parametrize("option", ["--training.checkpoint_every", "--training.evaluate_every"])
def test_options_that_mean_nothing_are_refused(option, model_directory, prompt_file, tmp_path):
    words = ["--model", str(model_directory), "--data.path", str(prompt_file), "--output", str(tmp_path / "d")]
    with pytest.raises(RecipeError, match=rf"{option}: it means nothing to lmflow draft"):
        run_app(["draft", *words, option, "3"])


def test_where_a_draft_may_be_written(tmp_path):
    check_output(request(tmp_path / "new"))
    (tmp_path / "empty").mkdir()
    check_output(request(tmp_path / "empty"))
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / RECORD).write_text("{}")
    check_output(request(tmp_path / "draft", overwrite=True))
    with pytest.raises(RunDirectoryError, match="replace it with --overwrite"):
        check_output(request(tmp_path / "draft"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("precious")
    for place in ("thesis", "file"):
        with pytest.raises(RunDirectoryError, match="something that is no draft"):
            check_output(request(tmp_path / place, overwrite=True))


def test_it_is_written_completely_or_not_at_all(make_model, tmp_path, monkeypatch):
    draft = make_model()
    write(draft, tmp_path / "below" / "d", {"steps": 1})
    assert json.loads((tmp_path / "below" / "d" / RECORD).read_text()) == {"steps": 1}
    write(draft, tmp_path / "below" / "d", {"steps": 2})
    assert json.loads((tmp_path / "below" / "d" / RECORD).read_text()) == {"steps": 2}

    def fail(self, directory):
        (directory / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(draft), "save", fail)
    with pytest.raises(LmflowError, match=r"the draft could not be written: .*No space left"):
        write(draft, tmp_path / "below" / "d", {"steps": 3})
    assert json.loads((tmp_path / "below" / "d" / RECORD).read_text()) == {"steps": 2}
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["d"]


def samples(*texts: str) -> list[Sample]:
    return [Sample((Message("assistant", text),), templated=False) for text in texts]


def test_prompts_without_room_for_an_answer_are_left_out_and_told_of(make_model):
    target, log = make_model(), quiet_log()
    short = make_model(near=1, max_position_embeddings=20)
    asked = samples("the quick brown fox", "a model learns", "the lazy dog " * 12)
    sampling = Sampling(max_new_tokens=8)
    assert len(usable_prompts(target, target, asked, sampling, log)) == 3
    assert log.notes == []
    usable = usable_prompts(target, short, asked, sampling, log)
    assert len(usable) == 2
    assert all(len(prompt.ids) <= 12 for prompt in usable), "the shorter of both contexts counts"
    assert log.notes == ["1 of 3 prompts leave no room for an answer: left out"]


def test_two_prompts_are_needed(make_model):
    target = make_model()
    with pytest.raises(DataError, match=r"1 of 1 prompts have a token and leave room for 8 more in a context of 256"):
        usable_prompts(target, target, samples("the fox"), Sampling(max_new_tokens=8), quiet_log())


def read(seed: int = 0, *, raw: bool = False, name: str | None = None, **data: Any) -> list[Sample]:
    plugins = load_plugins()
    chosen = plugins.find("data", name)() if name else None
    return read_samples(Reading(**data), Formats(plugins.classes("data"), chosen), raw, seed)


def test_prompts_are_shuffled_by_the_seed(prompt_file):
    orders = [[each.messages[-1].content for each in read(seed, raw=True, path=str(prompt_file))] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(prompt_file.read_text().splitlines())


def test_embedded_data_gives_its_training_part():
    plugins = load_plugins()
    demo = plugins.find("data", "demo")()
    whole, _ = load_dataset(DataOptions(validation=0.0), Formats(plugins.classes("data"), demo), 0)
    found = [each.prompt_text for each in read(name="demo")]
    assert sorted(found) == sorted(each.prompt_text for each in whole.train)
    assert found != [each.prompt_text for each in whole.train], "in another order"


def test_a_mix_gives_each_place_by_weight(tmp_path):
    mix = {str(tmp_path / "a.jsonl"): 2.0, str(tmp_path / "b.jsonl"): 1.0}
    for place in mix:
        name = Path(place).stem
        Path(place).write_text("".join(json.dumps({"prompt": f"{name}{i}"}) + "\n" for i in range(3)))
    found = sorted(each.messages[-1].content for each in read(mix=mix))
    assert found == sorted([*(f"a{i}" for i in range(3)), *(f"a{i}" for i in range(3)), *(f"b{i}" for i in range(3))])


def test_a_draft_begins_anew_or_from_what_is_named(make_model, model_directory):
    plugins, target = load_plugins(), make_model()
    new = begin_draft(plugins, target, DraftOptions(), None, 0, "cpu")
    assert new.module.config.num_hidden_layers == 1
    named = begin_draft(plugins, target, DraftOptions(), str(model_directory), 0, "cpu")
    assert named.module.config.num_hidden_layers == 2
    assert named.source == str(model_directory)
    with pytest.raises(RecipeError) as caught:
        begin_draft(plugins, target, DraftOptions(), "dmo", 0, "cpu")
    [problem] = caught.value.problems
    assert problem.startswith("--from: no model is called dmo; did you mean demo?")
