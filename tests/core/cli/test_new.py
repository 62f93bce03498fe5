"""`lmflow new`: what it prints, and what it says of a kind or a name that it cannot use."""

from __future__ import annotations

import tomllib


def test_it_says_what_it_wrote_and_what_to_type_next(lmflow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = lmflow("new", "tuner", "my-tuner", "--author", "Ada", "--description", "Tunes nothing.")
    assert called.code == 0
    assert "  src/my_tuner/tuner.py\n" in called.out
    assert called.out.endswith(
        "Next:\n  pip install -e 'my-tuner[test]'\n  lmflow run --tuner my-tuner\n  pytest my-tuner\n"
    )
    project = tomllib.loads((tmp_path / "my-tuner" / "pyproject.toml").read_text())["project"]
    assert project["authors"] == [{"name": "Ada"}]
    assert project["description"] == "Tunes nothing."


def test_what_to_type_next_fits_the_place_and_the_kind(lmflow, tmp_path):
    called = lmflow("new", "data", "my-records", "--output", tmp_path / "a place")
    assert called.code == 0
    assert f"pip install -e '{tmp_path}/a place/my-records[test]'" in called.out
    assert "lmflow run --data my-records\n" in called.out


def test_what_it_cannot_do_is_one_message_without_a_traceback(lmflow, tmp_path):
    for kind, name, said in (
        ("tunner", "my-tuner", "did you mean tuner?"),
        ("tuner", "lora", "try my-lora"),
        ("tuner", "class", "try class-tuner"),
        ("command", "run", "lmflow run is a command of lmflow's own; try my-run"),
        ("command", "lmflow-plan", "try my-plan"),
    ):
        called = lmflow("new", kind, name, "--output", tmp_path / "out")
        assert called.code == 2
        assert said in called.err
        assert "Traceback" not in called.err
    assert not (tmp_path / "out").exists()
