"""`lmflow plan` as it is typed."""

from __future__ import annotations

import json

import pytest

from lmflow.planning import plan as planning
from lmflow.planning.machine_memory import MachineMemory
from lmflow.run import terminal


def test_the_embedded_default_is_estimated(lmflow):
    done = lmflow("plan", "--aligner", "raft", "--tuner", "lora")
    assert (done.code, done.err) == (0, "")
    heads = [line.split()[0] for line in done.out.splitlines() if not line.startswith(" ")]
    assert heads == ["data", "model", "steps", "memory", "fits"]
    assert "Python and libraries" in done.out


def test_as_json(lmflow):
    done = lmflow("plan", "--json", "--training.max_steps", "7")
    found = json.loads(done.out)
    assert found["steps"]["count"] == 7
    assert found["memory_total"] == sum(found["memory"].values())


def test_a_command_line_of_run_can_be_planned_as_it_is(lmflow, tmp_path):
    done = lmflow("plan", "--output", str(tmp_path / "run"), "--overwrite", "--quiet", "--training.max_steps", "3")
    assert done.code == 0
    assert "3 steps" in done.out
    assert not (tmp_path / "run").exists()


def test_what_libraries_print_is_not_among_the_results(lmflow, monkeypatch: pytest.MonkeyPatch, tmp_path):
    from lmflow.builtin.full import Full

    prepare = Full.prepare

    def chatter(self, model):
        print("[WARNING] something was set up")
        return prepare(self, model)

    monkeypatch.setattr(Full, "prepare", chatter)
    for command in (["plan"], ["run", "--output", str(tmp_path / "run")]):
        done = lmflow(*command, "--json", "--training.max_steps", "1")
        assert "[WARNING] something" in done.err
        assert isinstance(json.loads(done.out), dict)


def test_too_much_exits_with_1(lmflow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planning, "machine_memory", lambda: MachineMemory(1, 1, 1))
    done = lmflow("plan")
    assert done.code == 1
    assert "too much    1 B are available" in done.out


def test_mistakes_are_those_of_run(lmflow):
    done = lmflow("plan", "--training.learning_rat", "1", "--outptu", "x")
    assert done.code == 2
    assert "--outptu: unknown option" in done.err
    assert "did you mean training.learning_rate" in done.err
    missing = lmflow("plan", "--model.path", "./nowhere")
    assert missing.code == 2
    assert "nowhere does not exist" in missing.err


def test_help(lmflow):
    done = lmflow("plan", "--help")
    assert done.code == 0
    assert "--training.batch_size" in done.out


STAGES = "training: {max_steps: 2}\nstages:\n  sft: {tuner: lora}\n  full: {model: stage:sft}\n"


def test_stages_are_planned_one_by_one(lmflow, tmp_path):
    (tmp_path / "r.yaml").write_text(STAGES)
    done = lmflow("plan", str(tmp_path / "r.yaml"))
    assert done.code == 0
    sft, full = done.out.split("\n\n")
    assert sft.splitlines()[0].split() == ["stage", "sft"]
    assert full.splitlines()[0].split() == ["stage", "full"]
    assert "(100.0%)" in full, "the demo stands for what sft will give"
    found = json.loads(lmflow("plan", str(tmp_path / "r.yaml"), "--json").out)
    assert [each["steps"]["count"] for each in found["stages"].values()] == [2, 2]


def test_one_stage_too_large_is_too_much(lmflow, tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "r.yaml").write_text(STAGES)
    real = planning.make_plan
    monkeypatch.setattr(planning, "make_plan", lambda recipe, *rest: too_large(real(recipe, *rest), recipe))
    assert lmflow("plan", str(tmp_path / "r.yaml")).code == 1


def too_large(plan, recipe):
    """The plan, on a machine that has next to no memory where all parameters are trained."""
    from dataclasses import replace

    return replace(plan, available=1) if recipe.tuner.name == "full" else plan


@pytest.mark.parametrize(("word", "expected"), [("", "tokenised\n"), ("--json", ""), ("--quiet", "")])
def test_how_far_tokenising_is_is_told_of_much(word: str, expected: str, lmflow, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("lmflow.data.tally.CHUNK", 1)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 5)
    found = lmflow("plan", "--data.path", tmp_path / "a.jsonl", "--aligner", "sft", *([word] if word else []))
    assert found.err.endswith(expected)
    assert bool(found.err) == bool(expected)
