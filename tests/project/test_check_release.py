"""The check before a release notices each thing that can be wrong with an archive."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

METADATA = (
    "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: Apache-2.0\n"
    "Description-Content-Type: text/markdown\n\n{readme}\n"
)


@pytest.fixture
def check(script) -> ModuleType:
    """The script."""
    return script("check_release")


@pytest.fixture
def wheel(tmp_path: Path, check: ModuleType):
    """Writes a wheel of lmflow-raft 1.2, which is right but for what is given; a file given as None is left out."""

    def write(name="lmflow-raft", version="1.2", readme="About it.", **files: str | None):
        about = "lmflow_raft-1.2.dist-info"
        held = {
            f"{about}/METADATA": METADATA.format(name=name, version=version, readme=readme),
            f"{about}/licenses/LICENSE": check.LICENSE,
            "lmflow_raft/py.typed": "",
            **files,
        }
        with zipfile.ZipFile(tmp_path / "lmflow_raft-1.2-py3-none-any.whl", "w") as archive:
            for path, text in held.items():
                if text is not None:
                    archive.writestr(path, text)
        return check.open_wheel(tmp_path / "lmflow_raft-1.2-py3-none-any.whl")

    return write


def test_a_wheel_that_is_right(check, wheel):
    template = {"lmflow_raft/templates/plugin/tests/test_it.py": ""}
    assert list(check.check_archive(wheel(**template), "lmflow-raft", "1.2")) == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"version": "1.1"}, "is lmflow-raft 1.1, not lmflow-raft 1.2"),
        ({"name": "other"}, "is other 1.2, not lmflow-raft 1.2"),
        ({"lmflow_raft-1.2.dist-info/licenses/LICENSE": None}, "holds no LICENSE"),
        ({"lmflow_raft-1.2.dist-info/licenses/LICENSE": "MIT"}, "its LICENSE is not the repository's"),
        ({"lmflow_raft/py.typed": None}, "holds no lmflow_raft/py.typed"),
        ({"tests/test_raft.py": ""}, "holds tests/test_raft.py"),
        ({"lmflow_raft/__pycache__/raft.pyc": ""}, "holds lmflow_raft/__pycache__/raft.pyc"),
        ({"readme": "[how](../docs/a.md)"}, "its README links to ../docs/a.md, which the package index cannot follow"),
        ({"readme": ""}, "has no README in Markdown"),
    ],
)
def test_each_fault_of_a_wheel(check, wheel, wrong, fault):
    assert list(check.check_archive(wheel(**wrong), "lmflow-raft", "1.2")) == [fault]


def test_an_sdist_whose_licence_is_a_link(check, tmp_path):
    about = METADATA.format(name="lmflow-raft", version="1.2", readme="About it.").encode()
    link = tarfile.TarInfo("lmflow_raft-1.2/LICENSE")
    link.type, link.linkname = tarfile.SYMTYPE, "../../LICENSE"
    with tarfile.open(tmp_path / "raft.tar.gz", "w:gz") as archive:
        archive.addfile(link)
        for path, content in (("PKG-INFO", about), ("src/lmflow_raft/py.typed", b"")):
            member = tarfile.TarInfo(f"lmflow_raft-1.2/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    faults = list(check.check_archive(check.open_sdist(tmp_path / "raft.tar.gz"), "lmflow-raft", "1.2"))
    assert faults == ["holds no LICENSE"]


def test_a_folder_must_hold_both_archives_of_all_and_nothing_else(check, wheel, monkeypatch, tmp_path):
    wheel()
    (tmp_path / "lmflow_raft-1.1.tar.gz").touch()
    monkeypatch.setattr(check, "distributions", lambda: {"lmflow-raft": tmp_path})
    assert list(check.check_folder(tmp_path, "1.2")) == [
        "lmflow_raft-1.2.tar.gz was not built",
        "lmflow_raft-1.1.tar.gz does not belong to version 1.2",
    ]


def test_every_distribution_is_known(check):
    assert {"lmflow-all", "lmflow-core", "lmflow-raft", "lmflow-longctx"} <= check.distributions().keys()


def test_what_is_installed_must_load_in_the_right_version(check, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    plugins = [
        {"distribution": "lmflow-core", "status": "loaded", "version": "1.2"},
        {"distribution": "lmflow-raft", "status": "broken", "version": "1.1"},
    ]
    command = tmp_path / "bin" / "lmflow"
    command.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo lmflow 1.1 || echo '{json.dumps({'plugins': plugins})}'\n"
    )
    command.chmod(0o755)
    names = ["lmflow-all", "lmflow-core", "lmflow-raft", "lmflow-lora"]
    monkeypatch.setattr(check, "distributions", lambda: dict.fromkeys(names, tmp_path))
    assert set(check.check_installed(tmp_path, "1.2")) == {
        "lmflow --version prints lmflow 1.1",
        "lmflow plugins: lmflow-raft 1.1 is broken",
        "lmflow plugins: lmflow-lora None is absent",
    }


def test_a_tag_of_another_version_is_a_fault(check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "distributions", dict)
    assert check.main([str(tmp_path), "--tag", f"v{check.version()}"]) == 0
    assert check.main([str(tmp_path), "--tag", "v99.0"]) == 1
    assert "the tag is v99.0, and core/src/lmflow/versions.py says" in capsys.readouterr().err
