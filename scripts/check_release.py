"""Checks what is about to be published: the sdists and wheels in a folder, and an environment they were installed in.

    python scripts/check_release.py dist [--installed .release] [--tag v0.1.0]

Prints a line per fault and exits with 1 if there is any. `make release` calls it, after `twine check --strict` has
checked the metadata and rendered the READMEs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
VERSION_FILE = ROOT / "core" / "src" / "lmflow" / "versions.py"
LICENSE = (ROOT / "LICENSE").read_text(encoding="utf-8")
RELATIVE_LINK = re.compile(r"\]\((?!https?://|#)([^)]+)\)")


@dataclass(frozen=True)
class Archive:
    """A sdist or a wheel: its file, and the texts of its license, its metadata and the names of all it holds."""

    file: Path
    names: tuple[str, ...]
    metadata: Message
    license: str | None


def version() -> str:
    """The version of all distributions."""
    found = re.search(r'^__version__ = "([^"]+)"', VERSION_FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not found:
        raise SystemExit(f'{VERSION_FILE}: no line __version__ = "…"')
    return found[1]


def distributions() -> dict[str, Path]:
    """The folder of each distribution of this repository, by its name."""
    folders = [ROOT, ROOT / "core", *sorted(ROOT.glob("plugins/*")), *sorted(ROOT.glob("lmflow_plugins_*"))]
    files = [folder / "pyproject.toml" for folder in folders if (folder / "pyproject.toml").is_file()]
    return {tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]: file.parent for file in files}


def open_wheel(file: Path) -> Archive:
    """What a wheel holds."""
    with zipfile.ZipFile(file) as archive:
        names = tuple(archive.namelist())
        [about] = [name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        license = about.replace("METADATA", "licenses/LICENSE")
        return Archive(
            file,
            names,
            Parser().parsestr(archive.read(about).decode()),
            archive.read(license).decode() if license in names else None,
        )


def open_sdist(file: Path) -> Archive:
    """What a sdist holds, without the folder that all of it is in."""
    with tarfile.open(file) as archive:
        files = {member.name.partition("/")[2]: member for member in archive.getmembers() if not member.isdir()}
        texts = {}
        for name in ("PKG-INFO", "LICENSE"):
            if name in files and files[name].isfile():  # a link would lead out of the archive
                content = archive.extractfile(files[name])
                texts[name] = content.read().decode() if content else ""
        return Archive(file, tuple(files), Parser().parsestr(texts["PKG-INFO"]), texts.get("LICENSE"))


def check_archive(archive: Archive, name: str, expected: str) -> Iterator[str]:
    """What is wrong with one sdist or wheel of the distribution `name`, whose version should be `expected`."""
    metadata = archive.metadata
    if (metadata["Name"], metadata["Version"]) != (name, expected):
        yield f"is {metadata['Name']} {metadata['Version']}, not {name} {expected}"
    if archive.license != LICENSE:
        yield "holds no LICENSE" if archive.license is None else "its LICENSE is not the repository's"
    if metadata["License-Expression"] != "Apache-2.0":
        yield f"License-Expression is {metadata['License-Expression']}"
    yield from check_readme(metadata)
    yield from (f"holds {each}" for each in archive.names if is_unwanted(each))
    package = name.replace("-", "_") if name != "lmflow-core" else "lmflow"
    typed = {f"{package}/py.typed", f"src/{package}/py.typed"}
    if name != "lmflow-all" and not typed & set(archive.names):
        yield f"holds no {package}/py.typed"


def check_readme(metadata: Message) -> Iterator[str]:
    """What is wrong with the text that the package index shows; twine renders it."""
    text = str(metadata.get_payload())
    if metadata["Description-Content-Type"] != "text/markdown" or not text.strip():
        yield "has no README in Markdown"
    yield from (
        f"its README links to {link}, which the package index cannot follow" for link in RELATIVE_LINK.findall(text)
    )


def is_unwanted(name: str) -> bool:
    """Whether a file is a test, or something that Python or an editor left behind; the plugin template has tests."""
    path = PurePosixPath(name)
    if "templates" in path.parts:
        return False
    left_behind = path.suffix in {".pyc", ".orig", ".swp"} or path.name == ".DS_Store"
    return left_behind or "tests" in path.parts or path.name.startswith("test_")


def check_folder(folder: Path, expected: str) -> Iterator[str]:
    """What is wrong with what lies in `folder`: a sdist and a wheel of each distribution, and nothing else."""
    left = {file.name: file for file in folder.iterdir()}
    for name in distributions():
        stem = f"{name.replace('-', '_')}-{expected}"
        for file_name, opened in ((f"{stem}.tar.gz", open_sdist), (f"{stem}-py3-none-any.whl", open_wheel)):
            if file := left.pop(file_name, None):
                yield from (f"{file_name}: {fault}" for fault in check_archive(opened(file), name, expected))
            else:
                yield f"{file_name} was not built"
    yield from (f"{file_name} does not belong to version {expected}" for file_name in left)


def check_installed(environment: Path, expected: str) -> Iterator[str]:
    """What is wrong with the command `lmflow` of an environment in which all wheels were installed."""
    command = str((environment / "bin" / "lmflow").absolute())
    shown = _run(environment, command, "--version").strip()
    if shown != f"lmflow {expected}":
        yield f"lmflow --version prints {shown}"
    plugins = {
        each["distribution"]: each for each in json.loads(_run(environment, command, "plugins", "--json"))["plugins"]
    }
    for name in distributions().keys() - {"lmflow-all"}:
        found = plugins.get(name, {"status": "absent", "version": None})
        if (found["status"], found["version"]) != ("loaded", expected):
            yield f"lmflow plugins: {name} {found['version']} is {found['status']}"


def _run(directory: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exits with {done.returncode}:\n{done.stderr}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where sdists and wheels are")
    parser.add_argument("--installed", type=Path, help="environment in which the wheels were installed")
    parser.add_argument("--tag", help="tag of the release, v and the version")
    given = parser.parse_args(arguments)
    expected = version()
    faults = list(check_folder(given.folder, expected))
    if given.tag and given.tag != f"v{expected}":
        faults.append(f"the tag is {given.tag}, and {VERSION_FILE.relative_to(ROOT)} says {expected}")
    if given.installed:
        faults += check_installed(given.installed, expected)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"{2 * len(distributions())} archives of version {expected} are ready to be published")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
