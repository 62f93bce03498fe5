"""What the project's own files say of each other holds: workflows, hooks, guides, citations, the Makefile's help."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/lmflow/lmflow"
GUIDES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
PAPERS = ["2306.12420", "2304.06767", "2403.17919", "2306.15595", "2211.17192", "2106.09685"]
"""Targets that the guides name before the Makefile has them."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def targets() -> set[str]:
    """The targets that the Makefile declares as no files."""
    [declared] = re.findall(r"^\.PHONY: (.+)$", text("Makefile"), flags=re.MULTILINE)
    return set(declared.split())


def steps(workflow: Path) -> list[dict[str, Any]]:
    """All steps of all jobs."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_make_help_lists_every_target():
    printed = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    assert {name for name, _ in lines} >= targets()
    assert all(about for _, about in lines)


@pytest.mark.parametrize("name", [*GUIDES, ".ci/run", *(str(each.relative_to(ROOT)) for each in WORKFLOWS)])
def test_every_make_target_named_exists(name):
    before = r"^" if name == ".ci/run" else r"(?:^\$ |`|run: )"
    named = re.findall(rf"{before}make ([a-z][a-z-]+)(?=[ `\n]|$)", text(name), flags=re.MULTILINE)
    assert set(named) <= targets()


@pytest.mark.parametrize("name", GUIDES)
def test_links_between_files_lead_somewhere(name):
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", text(name)):
        assert (ROOT / path).exists(), path
    for path in re.findall(rf"{REPOSITORY}/(?:blob|tree)/main/([^)#]+)", text(name)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", GUIDES[1:])
def test_files_named_in_code_exist(name):
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|yml|toml|txt))`", text(name)):
        assert (ROOT / path).exists(), path


def test_ci_runs_what_the_readme_says_on_every_python_supported():
    [ci] = [each for each in WORKFLOWS if each.name == "ci.yml"]
    test = yaml.safe_load(ci.read_text(encoding="utf-8"))["jobs"]["test"]
    assert "bash .ci/run" in [step.get("run") for step in test["steps"]]
    versions = test["strategy"]["matrix"]["python"]
    required = tomllib.loads(text("pyproject.toml"))["project"]["requires-python"]
    assert required == f">={versions[0]}"
    assert f"python-{'%20%7C%20'.join(versions)}-" in text("README.md")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_have_no_rights_to_spare(workflow):
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"]), step["uses"]
        assert "${{ github.event" not in step.get("run", ""), "text of strangers in a shell's command"
        for script in re.findall(r"scripts/\w+\.py", step.get("run", "")):
            assert (ROOT / script).is_file()
    assert yaml.safe_load(workflow.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}


def test_publishing_needs_no_token():
    [release] = [each for each in WORKFLOWS if each.name == "release.yml"]
    publish = yaml.safe_load(release.read_text(encoding="utf-8"))["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in release.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_what_github_asks_for(form):
    about = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= about.keys()
    for field in about["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"].get("label") or field["type"] == "markdown"
    labels = [field["attributes"].get("label") for field in about["body"]]
    assert len(labels) == len(set(labels))


def test_hooks_before_a_commit_are_the_tools_of_make_lint():
    hooks = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    tools = {shlex.split(hook["entry"])[0] for hook in hooks} - {"make"}
    linted = text("Makefile").split("\nlint:")[1].split("\n\n")[0]
    assert tools == {tool.replace("$(BIN)", ".venv/bin") for tool in re.findall(r"\t(\S+)", linted)}


@pytest.mark.parametrize("name", ["README.md", "CITATION.cff"])
def test_the_papers_are_cited(name):
    assert (
        re.findall(r"https://arxiv\.org/abs/([\d.]+)$", text(name).replace(")", ""), flags=re.MULTILINE)[-6:] == PAPERS
    )


def test_the_changelog_has_the_sections_of_keep_a_changelog():
    unreleased = re.split(r"^## ", text("CHANGELOG.md"), flags=re.MULTILINE)[1]
    assert unreleased.startswith("Unreleased\n")
    sections = re.findall(r"^### (.+)$", unreleased, flags=re.MULTILINE)
    known = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    assert sections == [name for name in known if name in sections]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"])
def test_nobody_has_to_write_to_a_persons_address(name):
    assert not re.search(r"[\w.]+@[\w-]+\.[a-z]{2,}", text(name))
