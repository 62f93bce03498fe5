"""What all distributions have in common: version, licence, addresses, and a README that stands on its own."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lmflow

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/lmflow/lmflow"
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the licence's text as the Apache Software Foundation publishes it."""
INSTALLS_THE_OTHER = re.compile(r"""(pip install|uv add)[^\n`\\;&|]*?[\s'"]lmflow(?![\w.:/-])""")
"""A command that names the distribution `lmflow`, which belongs to another project."""


def test_the_licence_is_apaches_and_lies_in_each(folder):
    assert hashlib.sha256((folder / "LICENSE").read_bytes()).hexdigest() == APACHE


def test_the_version_has_one_source(folder, pyproject):
    assert "version" in pyproject["project"]["dynamic"]
    assert "version" not in pyproject["project"]
    source = folder / pyproject["tool"]["hatch"]["version"]["path"]
    assert source.resolve() == ROOT / "core" / "src" / "lmflow" / "versions.py"
    assert metadata.version(pyproject["project"]["name"]) == lmflow.__version__


def test_metadata_agree(pyproject):
    core = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text(encoding="utf-8"))
    for key in ("requires-python", "license", "license-files", "urls"):
        assert pyproject["project"][key] == core["project"][key], key
    assert all(url.startswith(REPOSITORY) for url in pyproject["project"]["urls"].values())


def test_requirements_of_each_other_are_met_by_what_is_here(pyproject):
    project = pyproject["project"]
    extras = [each for group in project.get("optional-dependencies", {}).values() for each in group]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if canonicalize_name(requirement.name).startswith("lmflow"):
            assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


def test_its_readme_links_to_files_that_exist(pyproject, folder, script):
    readme = pyproject["project"]["readme"]
    text = readme["text"] if isinstance(readme, dict) else (folder / readme).read_text(encoding="utf-8")
    assert not script("check_release").RELATIVE_LINK.findall(text)
    for path in re.findall(rf"{REPOSITORY}/(?:blob|tree)/main/([^)#]+)", text):
        assert (ROOT / path).exists(), path


def test_an_sdist_of_a_plugin_alone_builds_the_wheel(script, tmp_path):
    """What a packager does: the rest of the repository, where the version stands, is not there."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, "--sdist", str(ROOT / "plugins" / "lmflow-raft")], check=True, capture_output=True)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*build, "--wheel", str(unpacked)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    check = script("check_release")
    for archive in (check.open_sdist(sdist), check.open_wheel(wheel)):
        assert list(check.check_archive(archive, "lmflow-raft", lmflow.__version__)) == []


def test_nothing_advises_to_install_the_other_project_of_the_name():
    for command in ("pip install lmflow", "run `pip install -U 'lmflow[x]'`", 'uv add "lmflow>=0.1"'):
        assert INSTALLS_THE_OTHER.search(command)
    assert not INSTALLS_THE_OTHER.search("pip install lmflow-core && lmflow plugins")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if Path(name).suffix in {".py", ".md", ".toml", ".jinja", ".yml", ".json"} and name != here():
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not INSTALLS_THE_OTHER.search(text), name
            assert "lmflow[" not in text or name.endswith(".py"), name


def here() -> str:
    """This file, as git names it."""
    return str(Path(__file__).relative_to(ROOT))
