"""The check that a change of the source adds a line to the changelog, in a repository of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_changelog.py"
BEFORE = "# Changelog\n\n## Unreleased\n\n### Added\n\n- The first thing.\n\n## 0.1.0\n\n### Added\n\n- An old thing.\n"
AFTER = BEFORE.replace("- The first thing.\n", "- The first thing.\n- The second thing.\n")
SOURCE = "core/src/lmflow/run.py"
NONE = "\n\nWhat nobody notices.\n\nChangelog: none\n"


@dataclass(frozen=True)
class Repository:
    """A git repository with a branch `main` and, checked out, a branch `change` that left it."""

    path: Path
    home: Path

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=self.path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    def commit(self, files: Mapping[str, str], trailer: str = "") -> None:
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", f"A change{trailer}")

    def check(self, base: str = "main") -> tuple[int, str]:
        """Exit code and standard error of the script."""
        command = [sys.executable, str(SCRIPT), base]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "repository").mkdir()
    made = Repository(tmp_path / "repository", tmp_path)
    made.git("init", "--quiet", "--initial-branch", "main")
    made.commit({"CHANGELOG.md": BEFORE, SOURCE: "x = 1\n", "docs/a.md": "a\n", "plugins/lmflow-lora/README.md": "a\n"})
    made.git("checkout", "--quiet", "-b", "change")
    return made


@pytest.mark.parametrize(
    "name",
    [SOURCE, "plugins/lmflow-lora/src/lmflow_lora/new.py", "lmflow_plugins_longctx/pyproject.toml", "core/src/ä.py"],
)
def test_a_change_without_a_line_fails_and_says_which(repository, name):
    repository.commit({name: "x = 2\n"})
    code, message = repository.check()
    assert code == 1
    assert f"  {name}\n" in message
    assert "Changelog: none" in message


def test_a_line_in_any_commit_of_the_change_is_enough(repository):
    repository.commit({SOURCE: "x = 2\n"})
    repository.commit({"CHANGELOG.md": AFTER})
    assert repository.check() == (0, "")


@pytest.mark.parametrize(
    "text",
    [
        BEFORE.replace("- An old thing.\n", "- An old thing.\n- Another in a release.\n"),
        BEFORE.replace("### Added\n\n- The first", "### Added\n\n### Changed\n\n- The first"),
        BEFORE.replace("- The first thing.\n", "- The first thing.\n- An old thing.\n"),
        BEFORE.replace("- The first thing.\n", ""),
    ],
    ids=["released section", "heading", "moved", "removed"],
)
def test_what_is_no_new_line_of_the_unreleased_section(repository, text):
    repository.commit({SOURCE: "x = 2\n", "CHANGELOG.md": text})
    assert repository.check()[0] == 1


@pytest.mark.parametrize("name", ["docs/a.md", "tests/core/test_run.py", "Makefile", "plugins/lmflow-lora/README.md"])
def test_what_users_do_not_get_needs_no_line(repository, name):
    repository.commit({name: "b\n"})
    assert repository.check() == (0, "")


def test_a_trailer_opts_its_own_commit_out_and_no_other(repository):
    repository.commit({SOURCE: "x = 2\n"}, NONE)
    assert repository.check() == (0, "")
    repository.commit({"core/src/lmflow/other.py": "y = 1\n"})
    code, message = repository.check()
    assert code == 1
    assert "other.py" in message
    assert "run.py" not in message


def test_the_words_of_the_trailer_within_a_sentence_are_none(repository):
    repository.commit({SOURCE: "x = 2\n"}, "\n\nOne could write Changelog: none here.\n\nBut no.\n")
    assert repository.check()[0] == 1


def test_what_was_undone_needs_no_line(repository):
    repository.commit({SOURCE: "x = 2\n"})
    repository.commit({SOURCE: "x = 1\n"})
    assert repository.check() == (0, "")


def test_what_others_merged_meanwhile_is_not_counted(repository):
    repository.git("checkout", "--quiet", "main")
    repository.commit({"core/src/lmflow/theirs.py": "z = 1\n"})
    repository.git("checkout", "--quiet", "change")
    repository.commit({"docs/a.md": "b\n"})
    assert repository.check() == (0, "")
    repository.git("merge", "--quiet", "main")
    assert repository.check() == (0, "")


def test_a_line_of_others_is_none_of_ours(repository):
    repository.git("checkout", "--quiet", "main")
    repository.commit({"CHANGELOG.md": AFTER})
    repository.git("checkout", "--quiet", "change")
    repository.commit({SOURCE: "x = 2\n"})
    repository.git("merge", "--quiet", "--no-edit", "main")
    assert repository.check()[0] == 1


def test_an_unknown_base_is_an_error_with_gits_message(repository):
    code, message = repository.check("nothing")
    assert code == 1
    assert "nothing" in message


def test_without_a_base_it_says_how_it_is_called(repository):
    assert "check_changelog.py BASE" in repository.check("--help")[1]
