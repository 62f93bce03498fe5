"""Which installer is called, with what, and what is looked at afterwards; test_installation.py of cli runs real ones."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lmflow.errors import PluginError
from lmflow.plugins import installation
from lmflow.plugins.installation import Installed, install, installer, local_or_named, made_by_uv, name_of, uninstall


def test_a_path_that_is_not_there_is_no_name(calls, tmp_path):
    for target in ("./gone", str(tmp_path / "gone"), "gone-1.0-py3-none-any.whl"):
        with pytest.raises(PluginError, match="there is no such directory"):
            install([target], [])
    assert calls == []


def test_uninstalling_calls_pip_without_a_question(calls):
    assert uninstall("lmflow-raft", ["-v"]).exit_code == 7
    assert calls == [[sys.executable, "-m", "pip", "uninstall", "--yes", "-v", "lmflow-raft"]]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("acme-a", "acme-a"),
        ("acme.a[extra]>=2", "acme.a"),
        ("acme @ git+https://host/x", "acme"),
        ("git+https://host/x", None),
        ("dist/acme_a-1.2-py3-none-any.whl", "acme_a"),
        ("dist/acme_a-1.2.tar.gz", "acme_a"),
    ],
)
def test_the_distribution_is_known_from_what_names_it(target, name):
    assert name_of(target) == name


def test_a_directory_s_name_is_its_project_s(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "acme-local"\n')
    assert name_of(str(tmp_path)) == "acme-local"
    assert local_or_named(str(tmp_path)) == str(tmp_path)
    (tmp_path / "pyproject.toml").write_text("not = [toml")
    assert name_of(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("has_pip", "uv", "by_uv", "expected"),
    [
        (True, None, False, [sys.executable, "-m", "pip", "install", "x"]),
        (True, "/bin/uv", False, [sys.executable, "-m", "pip", "install", "x"]),
        (True, "/bin/uv", True, ["/bin/uv", "pip", "install", "--python", sys.executable, "x"]),
        (False, "/bin/uv", False, ["/bin/uv", "pip", "install", "--python", sys.executable, "x"]),
    ],
)
def test_uv_serves_where_it_made_the_environment_or_pip_is_missing(monkeypatch, has_pip, uv, by_uv, expected):
    monkeypatch.setattr(installation, "find_spec", lambda _: object() if has_pip else None)
    monkeypatch.setattr(installation.shutil, "which", lambda _: uv)
    monkeypatch.setattr(installation, "made_by_uv", lambda: by_uv)
    assert installer("install", ["x"]) == expected


def test_without_any_installer_that_is_said(monkeypatch):
    monkeypatch.setattr(installation, "find_spec", lambda _: None)
    monkeypatch.setattr(installation.shutil, "which", lambda _: None)
    with pytest.raises(PluginError, match="has no pip, and uv is not found"):
        installer("install", ["x"])


def test_an_environment_of_uv_s_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert not made_by_uv()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")
    assert made_by_uv()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the installer succeed, and what is there afterwards be as told: versions, and the plugins described."""

    def tell(after: dict[str, str], plugins: list[dict[str, str]], before: dict[str, str] | None = None) -> None:
        states = iter([before or {}, after])
        monkeypatch.setattr(installation, "run", lambda command: 0)
        monkeypatch.setattr(installation, "versions", lambda: next(states, after))
        monkeypatch.setattr(installation, "describe", lambda: {"plugins": plugins})
        monkeypatch.setattr(installation, "installer", lambda verb, words: [verb, *words])

    return tell


def plugin(distribution: str, status: str = "loaded", reason: str = "") -> dict[str, str]:
    return {"distribution": distribution, "version": "1.2", "status": status, "reason": reason}


def test_what_was_installed_is_described(installed):
    installed({"acme-a": "1.2", "other": "1.0"}, [plugin("acme_a"), plugin("other")], before={"other": "1.0"})
    found = install(["acme-a"], ["--pre"])
    assert found.command == ["install", "--pre", "acme-a"]
    assert [each["distribution"] for each in found.plugins] == ["acme_a"]
    assert (found.exit_code, list(found.problems)) == (0, [])


def test_of_what_has_no_name_that_is_described_which_changed(installed):
    installed({"acme-a": "1.2", "other": "1.0"}, [plugin("acme-a"), plugin("other")], before={"other": "1.0"})
    found = install(["git+https://host/x"], [])
    assert [each["distribution"] for each in found.plugins] == ["acme-a"]


@pytest.mark.parametrize(
    ("target", "plugins", "problem"),
    [
        (
            "acme-a",
            [plugin("acme-a", "broken", "no hook x")],
            "acme-a 1.2 is broken: no hook x; see lmflow plugins show",
        ),
        ("acme-a", [], "acme-a is installed and is no plugin: it has no entry point in the group lmflow"),
        ("git+https://host/x", [], "nothing that was installed has an entry point in the group lmflow"),
    ],
)
def test_a_success_that_is_none_ends_with_one(target: str, plugins: list[dict[str, str]], problem: str, installed):
    installed({}, plugins)
    found = install([target], [])
    [line] = found.problems
    assert line.startswith(problem)
    assert (found.code, found.exit_code) == (0, 1)


def test_what_is_left_after_a_removal_is_said(installed):
    installed({"lmflow-raft": "1.0"}, [], before={"lmflow-raft": "1.0"})
    assert uninstall("lmflow-raft", []).problems == ["lmflow-raft is still installed"]
    installed({}, [], before={"lmflow-raft": "1.0"})
    assert uninstall("LMFLOW_raft", []).exit_code == 0


@pytest.mark.parametrize(("code", "problems", "expected"), [(0, [], 0), (0, ["x"], 1), (7, [], 7), (7, ["x"], 7)])
def test_exit_codes(code: int, problems: list[str], expected: int):
    assert Installed(["pip"], code, (), problems).exit_code == expected


def test_an_lmflow_that_no_longer_starts_is_said(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PluginError, match=r"installed, and lmflow does not start any more: exit code 1"):
        installation.describe()


def test_the_installer_s_output_goes_to_standard_error(capfd):
    assert installation.run([sys.executable, "-c", "print('out')"]) == 0
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("$ ")
    assert "out" in printed.err
