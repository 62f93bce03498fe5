"""Stages in one directory: in order, each a run; stopped, failed and killed anywhere they end the same."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from lmflow.distributed.outcome import Outcome
from lmflow.errors import DataError, Interrupted, LmflowError, RunDirectoryError
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.resolve import model_from_reference
from lmflow.recipe.settings import Origin, Setting
from lmflow.recipe.stages import StagedRecipe, resolve_recipe
from lmflow.run import pipeline
from lmflow.run.pipeline import run_stages
from lmflow.run.record import RunResult
from lmflow.testing.runs import write_records

Make = Callable[..., StagedRecipe]

RECIPE = """
model: {{name: pretrained, path: {model}}}
data: {{name: prompt, path: {place}/train.jsonl, validation: {place}/heldout.jsonl}}
training: {{device: cpu, precision: fp32, batch_size: 3}}
aligner: {{name: sft, max_new_tokens: 2, heldout_prompts: 2}}
stages:
  sft:
    tuner: {{name: lora, rank: 2}}
  more:
    model: stage:sft
    tuner: full
"""


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Path:
    place = tmp_path_factory.mktemp("recipe")
    rows = [{"prompt": f"Say {i}", "answer": f"{i} {i}"} for i in range(12)]
    write_records(place / "train.jsonl", rows[:9])
    write_records(place / "heldout.jsonl", rows[9:])
    (place / "r.yaml").write_text(RECIPE.format(model=model_directory, place=place))
    return place / "r.yaml"


@pytest.fixture(scope="module")
def make(plugins: Plugins, recipe: Path) -> Make:
    """Resolves the recipe; options are given with __ for dots."""

    def resolved(**options: Any) -> StagedRecipe:
        named = {name.replace("__", "."): value for name, value in options.items()}
        settings = [Setting(path, str(value), Origin("option", f"--{path}")) for path, value in named.items()]
        found = resolve_recipe(plugins, recipe, settings)
        assert isinstance(found, StagedRecipe)
        return found

    return resolved


@pytest.fixture(scope="module")
def finished(make: Make, plugins: Plugins, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run_stages(make(), plugins, output=tmp_path_factory.mktemp("finished") / "whole")


@pytest.fixture
def copy(finished: RunResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.directory, tmp_path / "copy"))


def record_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "run.json").read_text())
    return found


def weights(place: Path) -> dict[str, bytes]:
    """Every tensor that the stages ended with."""
    files = sorted([*place.glob("stages/*/adapter/*.safetensors"), *place.glob("stages/*/model/*.safetensors")])
    assert len(files) == 2
    return {
        f"{file.parts[-3]} {name}": tensor.numpy().tobytes()
        for file in files
        for name, tensor in load_file(file).items()
    }


def interrupting(name: str, *, only: str) -> Callable[..., Any]:
    """`lmflow.run.stages.NAME`, which a Ctrl-C stops in the stage `only`."""
    stages = import_module("lmflow.run.stages")
    real = getattr(stages, name)

    def stopped(work: Any, *arguments: Any) -> Any:
        if work.directory.path.name == only:
            raise Interrupted(signal.SIGINT)
        return real(work, *arguments)

    return stopped


def test_each_stage_is_a_run_and_the_whole_says_where_it_stands(finished: RunResult):
    place = finished.directory
    assert {each.name for each in place.iterdir()} == {".lock", "recipe.yaml", "report.html", "run.json", "stages"}
    assert {each.name for each in (place / "stages").iterdir()} == {"sft", "sft.yaml", "more", "more.yaml"}
    record = record_of(place)
    assert record == finished.record
    assert (record["status"], record["error"], record["result"]) == ("completed", None, "stages/more/model")
    assert list(record["stages"]) == ["sft", "more"]
    for name, result in (("sft", "adapter"), ("more", "model")):
        own = record_of(place / "stages" / name)
        stage = record["stages"][name]
        assert (stage["status"], stage["result"]) == ("completed", f"stages/{name}/{result}")
        assert stage["metrics"] == own["metrics"]
        assert (place / "stages" / name / "report.html").exists()
    assert record["metrics"] == record["stages"]["more"]["metrics"]
    assert record["precision"] == "fp32"
    assert finished.result.is_dir()


def test_a_stage_goes_on_from_the_result_of_the_one_before(finished: RunResult):
    sft, more = (finished.record["stages"][name]["metrics"] for name in ("sft", "more"))
    assert more["eval_loss_before"] == pytest.approx(sft["eval_loss_after"], abs=1e-5)
    written = (finished.directory / "stages" / "more" / "recipe.yaml").read_text()
    assert str(finished.directory.absolute() / "stages" / "sft" / "adapter") in written


def test_its_directory_means_the_last_result(finished: RunResult, plugins: Plugins):
    model = model_from_reference(plugins, str(finished.directory))
    assert model.path == str(finished.result)  # type: ignore[attr-defined]


def test_its_recipe_is_that_of_all_stages(finished: RunResult, plugins: Plugins):
    from lmflow.recipe.stages import dump_stages

    text = (finished.directory / "recipe.yaml").read_text()
    again = resolve_recipe(plugins, finished.directory / "recipe.yaml")
    assert isinstance(again, StagedRecipe)
    assert dump_stages(again) == text
    assert "name: stage:sft" in text


def test_its_report_leads_to_those_of_the_stages(finished: RunResult):
    page = (finished.directory / "report.html").read_text()
    assert '<a href="stages/more/report.html">' in page
    assert "2 of 2 completed" in page


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(copy: Path, make: Make, plugins: Plugins):
    before = (copy / "run.json").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"already holds a run \(completed\)"):
        run_stages(make(), plugins, output=copy)
    with pytest.raises(RunDirectoryError) as caught:
        run_stages(make(stages__more__training__seed=5), plugins, output=copy, resume=True)
    assert "stage more was begun with another recipe:\n  training.seed: 0 in the run, 5 now" in str(caught.value)
    assert (copy / "run.json").read_bytes() == before


def test_finished_stages_are_not_run_again(copy: Path, make: Make, plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("a finished stage was run again"))
    result = run_stages(make(), plugins, output=copy, resume=True)
    assert result.status == "completed"


class TestWhatMayChange:
    """Between a run of stages and its resumption."""

    @pytest.fixture
    def half(self, copy: Path) -> Path:
        """The first stage finished, the second not begun."""
        shutil.rmtree(copy / "stages" / "more")
        return copy

    def test_a_stage_that_has_not_begun(self, half: Path, make: Make, plugins: Plugins, finished: RunResult):
        result = run_stages(make(stages__more__training__seed=5), plugins, output=half, resume=True)
        assert result.status == "completed"
        assert "seed: 5" in (half / "stages" / "more" / "recipe.yaml").read_text()
        assert (half / "stages" / "sft" / "run.json").read_bytes() == (
            finished.directory / "stages" / "sft" / "run.json"
        ).read_bytes()

    def test_a_stage_that_failed_before_its_first_step(
        self, half: Path, make: Make, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: Any) -> None:
            raise LmflowError("no layer is called q")

        with monkeypatch.context() as patched:
            patched.setattr(import_module("lmflow.run.stages"), "self_test", fail)
            shutil.rmtree(half / "stages" / "sft")
            with pytest.raises(LmflowError, match="stage sft: no layer is called q"):
                run_stages(make(), plugins, output=half, resume=True)
        changed = make(stages__sft__tuner__rank=4)
        assert run_stages(changed, plugins, output=half, resume=True).status == "completed"
        assert "rank: 4" in (half / "stages" / "sft" / "recipe.yaml").read_text()

    def test_nothing_where_there_is_a_checkpoint_to_go_on_from(self, half: Path, make: Make, plugins: Plugins):
        (half / "stages" / "sft" / "run.json").unlink()
        with pytest.raises(RunDirectoryError, match="stage sft was begun with another recipe"):
            run_stages(make(stages__sft__tuner__rank=4), plugins, output=half, resume=True)

    def test_in_the_recipe_of_the_run_itself(self, copy: Path, plugins: Plugins):
        recipe = copy / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("rank: 2", "rank: 4"))
        staged = resolve_recipe(plugins, recipe)
        assert isinstance(staged, StagedRecipe)
        with pytest.raises(
            RunDirectoryError, match=r"stage sft was begun with another recipe:\n  tuner\.rank: 2 in the run"
        ):
            run_stages(staged, plugins, output=copy, resume=True)

    def test_how_many_processes_a_finished_stage_would_have(self, copy: Path, make: Make, plugins: Plugins):
        assert run_stages(make(launch__processes=2), plugins, output=copy, resume=True).status == "completed"

    def test_no_stage_that_began_with_a_result_that_is_made_anew(self, copy: Path, make: Make, plugins: Plugins):
        shutil.rmtree(copy / "stages" / "sft")
        with pytest.raises(RunDirectoryError, match=f"of sft that is not there any more. Delete {copy}/stages/more as"):
            run_stages(make(), plugins, output=copy, resume=True)

    def test_none_is_left_out(self, copy: Path, make: Make, plugins: Plugins):
        alone = StagedRecipe(make().stages[:1])
        with pytest.raises(
            RunDirectoryError, match=f"holds the stage more, which the recipe lacks.*{copy}/stages/more"
        ):
            run_stages(alone, plugins, output=copy, resume=True)

    def test_never_a_run_without_stages(self, copy: Path, make: Make, plugins: Plugins):
        with pytest.raises(RunDirectoryError, match="holds a run without stages"):
            run_stages(make(), plugins, output=copy / "stages" / "sft", resume=True)


def test_overwriting_begins_anew(copy: Path, make: Make, plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: (_ for _ in ()).throw(LmflowError("no")))
    with pytest.raises(LmflowError, match="stage sft: no"):
        run_stages(make(), plugins, output=copy, overwrite=True)
    assert {each.name for each in (copy / "stages").iterdir()} == {"sft.yaml"}


def test_stopped_in_a_stage_it_says_so_and_goes_on_to_the_same_weights(
    finished: RunResult, make: Make, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(import_module("lmflow.run.stages"), "prepare", interrupting("prepare", only="more"))
        with pytest.raises(Interrupted, match=f"--resume --output {tmp_path / 'out'}$"):
            run_stages(make(), plugins, output=tmp_path / "out")
    record = record_of(tmp_path / "out")
    assert (record["status"], "result" in record) == ("interrupted", False)
    assert [each["status"] for each in record["stages"].values()] == ["completed", "interrupted"]
    with pytest.raises(LmflowError, match=r"has no result yet \(status: interrupted\)"):
        model_from_reference(plugins, str(tmp_path / "out"))
    run_stages(make(), plugins, output=tmp_path / "out", resume=True)
    assert weights(tmp_path / "out") == weights(finished.directory)


def test_killed_between_stages_and_moved_it_goes_on_to_the_same_weights(
    finished: RunResult, copy: Path, make: Make, plugins: Plugins
):
    """As SIGKILL leaves it: the second stage has its directory and a recipe, and the whole is still running."""
    more = copy / "stages" / "more"
    for name in ("model", "checkpoints", "metrics.jsonl", "run.json", "report.html", "comparison.jsonl"):
        shutil.rmtree(more / name) if (more / name).is_dir() else (more / name).unlink()
    (copy / "run.json").write_text(json.dumps({**record_of(copy), "status": "running", "result": None}))
    result = run_stages(make(), plugins, output=copy, resume=True)
    assert weights(copy) == weights(finished.directory)
    assert str(copy / "stages" / "sft") in (more / "recipe.yaml").read_text(), "its recipe says where results lie now"
    assert result.record["started"] == finished.record["started"]


def test_a_failure_names_the_stage(make: Make, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> RunResult:
        raise LmflowError("no layer is called q")

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(LmflowError, match=r"^stage sft: no layer is called q\n.*--resume --output") as caught:
        run_stages(make(), plugins, output=tmp_path / "out")
    assert str(caught.value).endswith(f"go on with: lmflow run --resume --output {tmp_path / 'out'}")
    record = record_of(tmp_path / "out")
    assert (record["status"], record["error"]) == ("failed", "LmflowError: stage sft: no layer is called q")
    assert [each["status"] for each in record["stages"].values()] == ["pending", "pending"]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of stages that would have been run; what each leaves is made up, and a signal comes at its end."""
    done: list[str] = []

    def run(resolved: Any, plugins: Plugins, *, output: Path, resume: bool, display: Any) -> Any:
        done.append(output.name)
        (output / "model").mkdir(parents=True)
        (output / "model" / "config.json").write_text("{}")
        (output / "run.json").write_text(json.dumps({"status": "completed", "result": "model", "metrics": {}}))
        return SimpleNamespace(stop_signal=signal.SIGTERM)

    monkeypatch.setattr(pipeline, "run", run)
    return done


def test_a_signal_that_came_too_late_for_a_stage_stops_before_the_next(
    pretended: list[str], make: Make, plugins: Plugins, tmp_path: Path
):
    with pytest.raises(Interrupted) as caught:
        run_stages(make(), plugins, output=tmp_path / "out")
    assert (caught.value.signal_number, pretended) == (signal.SIGTERM, ["sft"])
    assert record_of(tmp_path / "out")["status"] == "interrupted"
    assert run_stages(make(), plugins, output=tmp_path / "out", resume=True).status == "completed"
    assert pretended == ["sft", "more"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_stages_stops_there(
    number: int, pretended: list[str], make: Make, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "release_memory", lambda: signal.raise_signal(number))
    monkeypatch.setattr(pipeline, "run_stage", lambda *_, **__: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        run_stages(make(), plugins, output=tmp_path / "out")
    assert caught.value.signal_number == number
    assert record_of(tmp_path / "out")["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stage_in_several_processes_has_them_for_itself(
    make: Make, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[Any, Path, Sequence[str], Any]] = []

    def run_in_workers(recipe: Any, output: Path, flags: Sequence[str], **shown: Any) -> tuple[Path, Outcome]:
        asked.append((recipe.launch.processes, output, flags, shown))
        return output, Outcome(7, ["error: process 1 of 2 was killed", "  by nobody"])

    monkeypatch.setattr(pipeline, "run_in_workers", run_in_workers)
    with pytest.raises(LmflowError, match=r"^stage sft: process 1 of 2 was killed\n  by nobody\n") as caught:
        run_stages(make(launch__processes=2), plugins, output=tmp_path / "out", flags=["--quiet"])
    assert caught.value.exit_code == 7
    place = tmp_path / "out" / "stages" / "sft"
    assert asked == [(2, place, ["--quiet"], {"show_all": False, "show_result": False})]


def test_several_machines_need_an_output(make: Make, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    of_hosts = make(launch__hosts=2, launch__address="a:1234")
    with pytest.raises(RunDirectoryError, match="need --output DIR, the same on each"):
        run_stages(of_hosts, plugins)
    assert not list(tmp_path.iterdir())


def test_data_that_is_not_there_is_told_before_any_stage_begins(make: Make, plugins: Plugins, tmp_path: Path):
    wrong = make(stages__more__data__validation=str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"^stage more: .*none\.jsonl does not exist"):
        run_stages(wrong, plugins, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_an_earlier_stage_writes_need_not_be_there(make: Make, tmp_path: Path):
    written = make(stages__more__data__path=str(tmp_path / "out" / "stages" / "sft" / "samples" / "1.jsonl"))
    pipeline.check_data(written, tmp_path / "out")
    with pytest.raises(DataError, match="stage more"):
        pipeline.check_data(written, None)
