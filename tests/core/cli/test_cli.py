"""The command line: help without heavy imports, all mistakes at once, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

LMFLOW = str(Path(sys.executable).with_name("lmflow"))
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "peft",
    "accelerate",
    "numpy",
    "huggingface_hub",
    "http.client",
    "ssl",
    "asyncio",
    "multiprocessing",
    "jinja2",
)
"""What takes longer to import than all that a start needs (benchmarks/startup.py has the time it takes)."""
OVERVIEW = ["--help"]
DRAWN = ("rich", "pygments")
"""What Typer draws its panels with, in the overview alone: importing it takes as long as the rest of the overview."""
LIGHT_COMMANDS = [
    OVERVIEW,
    ["--version"],
    ["plugins"],
    ["run", "--help"],
    ["run", "--tuner", "lora", "--aligner", "raft", "--help"],
    ["recipe", "show", "--tuner", "lora", "--aligner", "raft"],
    ["recipe", "explain"],
    ["recipe", "schema"],
]


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    import os

    env = {**os.environ, "COLUMNS": "140", "NO_COLOR": "1"}
    return subprocess.run([LMFLOW, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=env)


@pytest.mark.parametrize("arguments", LIGHT_COMMANDS, ids=" ".join)
def test_imports_nothing_heavy(arguments: list[str]):
    heavy = HEAVY if arguments == OVERVIEW else (*HEAVY, *DRAWN)
    code = (
        "import sys\nfrom lmflow.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_overview_loads_no_plugin(option: str):
    code = (
        "import sys\nfrom lmflow.cli import main\n"
        f"try: main([{option!r}])\nexcept SystemExit: pass\n"
        "assert not [n for n in sys.modules if n.startswith(('lmflow_', 'lmflow.plugins', 'pluggy', 'pydantic'))]"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_help_shows_the_options_of_the_chosen_components():
    text = call("run", "--tuner", "lora", "--aligner", "raft", "--help").stdout
    for expected in (
        "tuner lora",
        "--tuner.rank",
        "INTEGER",
        "Rank of each update.",
        "default: 8",
        "aligner raft",
        "--aligner.iterations",
        "--training.learning_rate",
        "--output",
        "--resume",
    ):
        assert expected in text, text
    assert "--aligner.samples" not in call("run", "--tuner", "lora", "--help").stdout


def test_help_takes_names_from_the_recipe_too(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("tuner: lora\n")
    assert "--tuner.rank" in call("run", "r.yaml", "--help", cwd=tmp_path).stdout


def test_all_mistakes_at_once():
    done = call(
        "run", "--tunr", "lora", "--tuner", "lora", "--tuner.rnak", "4", "--training.batch_size", "-1", "--outptu", "x"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    for expected in (
        "--tunr: unknown option; did you mean --tuner?",
        "--tuner.rnak: unknown option; did you mean tuner.rank?",
        "--training.batch_size: must be greater than 0, got '-1'",
        "--outptu: unknown option; did you mean --output?",
    ):
        assert expected in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_command():
    done = call("rnu")
    assert (done.returncode, done.stderr) == (2, "error: no command is called rnu; did you mean run?\n")


def test_without_arguments_the_help_is_shown():
    done = call()
    assert done.returncode == 0
    assert "run" in done.stdout


def test_explain_says_where_values_come_from(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("tuner: lora\ntraining: {batch_size: 4}\n")
    lines = call(
        "recipe", "explain", "r.yaml", "--aligner", "raft", "--tuner.rank", "2", cwd=tmp_path
    ).stdout.splitlines()
    origins = {line.split()[0]: " ".join(line.split()[2:]) for line in lines}
    assert origins["tuner.rank"] == "option --tuner.rank"
    assert origins["training.batch_size"] == "file r.yaml:2"
    assert origins["schedule.name"] == "plugin aligner raft"
    assert origins["tuner.alpha"] == "default"


def test_show_prints_what_run_would_write(tmp_path: Path):
    shown = call("recipe", "show", "--tuner", "lora", "--data.packing", "--no-tuner.dora").stdout
    assert "packing: true" in shown
    for words, value in ((("--data.packing", "auto"), "auto"), (("--no-data.packing",), "false"), ((), "auto")):
        assert f"packing: {value}" in call("recipe", "show", *words).stdout
    (tmp_path / "r.yaml").write_text(shown)
    assert call("recipe", "show", "r.yaml", cwd=tmp_path).stdout == shown


def test_plugins_lists_what_is_installed():
    text = call("plugins").stdout
    for expected in ("lmflow-core", "lmflow-lora", "raft", "Train low-rank updates"):
        assert expected in text
    listed = json.loads(call("plugins", "--json").stdout)
    assert {"lmflow-core", "lmflow-lora", "lmflow-raft"} <= {each["distribution"] for each in listed["plugins"]}
    assert "--tuner.rank" in call("plugins", "show", "lora").stdout
    assert call("plugins", "show", "nothing").returncode == 2


def test_unexpected_errors_are_short_and_debug_shows_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from lmflow import cli
    from lmflow.cli import app

    def fail(_: object) -> int:
        raise RuntimeError("surprise")

    monkeypatch.setattr(app, "run_app", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run"])
    assert stop.value.code == 1
    assert "error: RuntimeError: surprise" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="surprise"):
        cli.main(["run", "--debug"])


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (MemoryError(), 1, "micro_batch_size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate"),
            1,
            "micro_batch_size",
        ),
        (RuntimeError("can't start new thread"), 1, "not enough memory"),
        (OSError(12, "Cannot allocate memory"), 1, "not enough memory"),
        (OSError(28, "No space left", "x.bin"), 1, "disk is full: x.bin"),
        (OSError(122, "Disk quota exceeded", "x.bin"), 1, "disk is full: x.bin"),
        (OSError(36, "File name too long", "a" * 300), 1, f"error: {'a' * 100}…{'a' * 50}: File name too long\n"),
        (PermissionError(13, "Permission denied", "b.txt"), 1, "error: b.txt: Permission denied\n"),
        # Seen on a full tmpfs: safetensors tells of it in words alone.
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, "disk is full: a file"),
    ],
)
def test_memory_and_disk(error: Exception, code: int, expected: str, capsys: pytest.CaptureFixture[str]):
    from lmflow.cli import report_error

    assert report_error(error) == code
    assert expected in capsys.readouterr().err
