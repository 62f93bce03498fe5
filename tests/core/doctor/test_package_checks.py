"""Packages that do not fit, are missing, or are installed twice: real folders of metadata."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

import pytest

from lmflow.doctor.finding import Finding
from lmflow.doctor.package_checks import check_duplicates, check_requirements, index, requirement_closure
from lmflow.plugins import load_plugins


class Site:
    """A folder of installed distributions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def install(self, name: str, version: str = "1.0", *requires: str, python: str = ">=3.8") -> Path:
        folder = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        needed = "".join(f"Requires-Dist: {each}\n" for each in requires)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n{needed}"
        (folder / "METADATA").write_text(text)
        return folder

    def examine(self, *roots: str) -> list[Finding]:
        return list(check_requirements(roots, index(distributions(path=[str(self.path)]))))

    def duplicates(self, *names: str, beside: tuple[Path, ...] = ()) -> list[Finding]:
        found = distributions(path=[str(self.path), *map(str, beside)])
        return list(check_duplicates(names, list(found)))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_this_installation_is_well():
    installed = index(distributions())
    [finding] = check_requirements(["lmflow-core", *load_plugins().distributions()], installed)
    assert finding.status == "ok"
    assert "torch" in finding.message
    assert list(check_duplicates(requirement_closure(["lmflow-core"], installed), list(distributions()))) == []


def test_what_is_asked_for_and_there_is_no_fault(site: Site):
    site.install("acme", "1.0", "maths>=2,<3", "Kernels_Of.Acme")
    site.install("maths", "2.5+cpu")
    site.install("kernels-of-acme", "0.1")
    assert [finding.status for finding in site.examine("acme")] == ["ok"]


def test_a_missing_requirement(site: Site):
    site.install("acme", "1.0", "maths>=2")
    [finding] = site.examine("acme")
    assert finding.status == "error"
    assert finding.message == "acme 1.0 needs maths>=2, which is not installed."
    assert finding.remedy.endswith(" 'maths>=2'")


def test_a_version_that_does_not_fit_is_mended_by_one_that_suits_all(site: Site):
    site.install("acme", "1.0", "maths<3", "other")
    site.install("other", "2.0", "maths>=2,!=2.7")
    site.install("maths", "3.1")
    [finding] = site.examine("acme")
    assert finding.status == "error"
    assert finding.message.startswith("acme 1.0 needs maths<3, but maths 3.1 is installed")
    assert finding.remedy.endswith(" 'maths!=2.7,<3,>=2'")


def test_a_misfit_further_down_works_perhaps(site: Site):
    site.install("acme", "1.0", "middle")
    site.install("middle", "1.0", "deep<2")
    site.install("deep", "2.0")
    [finding] = site.examine("acme")
    assert (finding.status, finding.message.partition(",")[0]) == ("warning", "middle 1.0 needs deep<2")


def test_something_missing_further_down_does_not(site: Site):
    site.install("acme", "1.0", "middle")
    site.install("middle", "1.0", "deep")
    [finding] = site.examine("acme")
    assert (finding.status, finding.message) == ("error", "middle 1.0 needs deep, which is not installed.")


def test_extras_and_markers_count_only_where_they_hold(site: Site):
    site.install("acme", "1.0", "plain", "old ; python_version < '3'", "rich[fancy]", 'never ; extra == "more"')
    site.install("plain")
    site.install("rich", "1.0", 'colours>=2 ; extra == "fancy"', 'images ; extra == "other"')
    [finding] = site.examine("acme")
    assert finding.message == "rich 1.0 needs colours>=2, which is not installed."


def test_requirements_that_go_in_circles_end(site: Site):
    site.install("acme", "1.0", "maths[fast]")
    site.install("maths", "1.0", "acme", 'maths ; extra == "fast"')
    assert [finding.status for finding in site.examine("acme")] == ["ok"]


def test_a_prerelease_counts_as_its_version(site: Site):
    site.install("acme", "1.0", "maths>=2")
    site.install("maths", "2.1.0.dev20260101")
    assert [finding.status for finding in site.examine("acme")] == ["ok"]


def test_a_package_for_another_python(site: Site):
    site.install("acme", "1.0", "maths")
    site.install("maths", "1.0", python="<3.8")
    [finding] = site.examine("acme")
    assert finding.status == "error"
    assert finding.message.startswith("maths 1.0 needs Python <3.8, and this is 3.")


def test_two_versions_in_one_folder_are_a_mixture(site: Site):
    one, other = site.install("acme", "1.0"), site.install("acme", "2.0")
    [finding] = site.duplicates("acme")
    assert finding.status == "error"
    assert f"acme is installed twice in {site.path}" in finding.message
    remove, again = finding.remedy.splitlines()
    assert remove.startswith("rm -r ")
    assert {str(one), str(other)} == set(remove.split()[2:])
    assert again.endswith("--force-reinstall --no-deps acme")


def test_two_folders_may_drift_apart(site: Site, tmp_path: Path):
    site.install("acme", "1.0")
    beside = Site(tmp_path / "beside").install("Acme", "2.0")
    [finding] = site.duplicates("acme", beside=(beside.parent,))
    assert finding.status == "warning"
    assert finding.message.startswith(f"acme is installed twice: 1.0 in {site.path}, which is imported, and 2.0 in ")
    assert finding.remedy == f"rm -r {beside}"


def test_what_a_package_carries_for_itself_is_no_duplicate(site: Site):
    site.install("acme")
    carried = Site(site.path / "setuptools" / "_vendor")
    carried.install("acme")
    (site.path / "setuptools" / "__init__.py").touch()
    assert site.duplicates("acme", beside=(carried.path,)) == []


def test_one_folder_listed_twice_and_an_editable_one_s_remains_are_no_duplicates(site: Site):
    site.install("acme", "1.0")
    (site.path / "acme.egg-info").mkdir()
    (site.path / "acme.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    assert site.duplicates("acme", beside=(site.path,)) == []


def test_what_nobody_asks_for_may_be_there_twice(site: Site):
    site.install("acme", "1.0")
    site.install("acme", "2.0")
    assert site.duplicates("maths") == []


def test_an_interrupted_installation_leaves_an_empty_folder(site: Site):
    site.install("acme", "1.0", "maths")
    site.install("maths", "1.0")
    left = site.path / "maths-0.9.dist-info"
    left.mkdir()
    assert [finding.status for finding in site.examine("acme")] == ["ok"]
    [finding] = site.duplicates("acme", "maths")
    assert finding.status == "warning"
    assert "left by an interrupted installation of maths" in finding.message
    assert finding.remedy == f"rm -r {left}"
