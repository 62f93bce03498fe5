"""Disks without room or rights, and what a container allows: folders as Linux shows them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.doctor.finding import Finding
from lmflow.doctor.machine_checks import Place, check_disk, check_memory, places
from lmflow.planning.machine_memory import memory_limit

PLENTY = SimpleNamespace(f_bavail=10**7, f_frsize=4096, f_files=10**7, f_favail=10**6)


def measured(**changes: int) -> Any:
    return lambda _: SimpleNamespace(**{**vars(PLENTY), **changes})


def place(path: Path, **options: Any) -> Place:
    return Place("runs", path, "lmflow run --output DIRECTORY", "error", **options)


def test_the_places_follow_the_environment(tmp_path: Path):
    environment = {"HF_HOME": "/data/hf", "XDG_CACHE_HOME": "/data/cache", "TMPDIR": "/data/tmp"}
    assert [str(each.path) for each in places(environment, Path("runs"))] == [
        "runs",
        "/data/hf",
        "/data/cache/lmflow",
        "/data/tmp",
    ]
    home = Path.home() / ".cache"
    assert [each.path for each in places({}, tmp_path)][:3] == [tmp_path, home / "huggingface", home / "lmflow"]


def test_a_roomy_disk_is_well_and_keeps_nothing(tmp_path: Path):
    [finding] = check_disk([place(tmp_path / "runs"), Place("caches", tmp_path, "")], measured())
    assert (finding.status, finding.message) == ("ok", "Free: 41.0 GB for runs and caches.")
    assert list(tmp_path.iterdir()) == []


def test_what_is_free_here_is_measured(tmp_path: Path):
    space = os.statvfs(tmp_path)
    statuses = [finding.status for finding in check_disk([place(tmp_path)])]
    assert ("warning" in statuses) == (space.f_bavail * space.f_frsize < 5e9 or 0 < space.f_favail < 10_000)


def test_a_disk_with_little_room(tmp_path: Path):
    [finding] = check_disk([place(tmp_path), Place("caches", tmp_path, "export HF_HOME=X")], measured(f_bavail=10**6))
    assert finding.status == "warning"
    assert finding.message.startswith("Only 4.1 GB are free on the disk of")
    assert "for runs and caches" in finding.message
    assert finding.remedy.splitlines() == ["lmflow run --output DIRECTORY", "export HF_HOME=X"]


def test_a_disk_with_few_files_left(tmp_path: Path):
    [finding] = check_disk([place(tmp_path)], measured(f_favail=20))
    assert (finding.status, finding.message[:30]) == ("warning", "Only 20 more files can be crea")


def test_a_file_system_without_a_limit_of_files_is_well(tmp_path: Path):
    assert [finding.status for finding in check_disk([place(tmp_path)], measured(f_files=0, f_favail=0))] == ["ok"]


def test_places_on_different_disks_are_judged_apart(tmp_path: Path, monkeypatch):
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk here")
    free = {tmp_path: measured(f_bavail=1)(None), Path("/dev/shm"): PLENTY}
    warning, well = check_disk([place(tmp_path), Place("caches", Path("/dev/shm"), "")], lambda path: free[path])
    assert (warning.status, "for runs:" in warning.message) == ("warning", True)
    assert (well.status, well.message) == ("ok", "Free: 41.0 GB for caches.")


def test_where_nothing_can_be_written():
    """No file can be made below /proc, not even by the administrator."""
    if not Path("/proc").is_dir():
        pytest.skip("Linux only")
    [finding] = check_disk([place(Path("/proc/runs"))])
    assert finding.status == "error"
    assert finding.message.startswith("Nothing can be written to /proc/runs, for runs: ")
    assert finding.remedy == "lmflow run --output DIRECTORY"


def test_a_file_in_the_way(tmp_path: Path):
    (tmp_path / "runs").touch()
    [finding] = check_disk([place(tmp_path / "runs" / "one")])
    assert (finding.status, "not a directory" in finding.message) == ("error", True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk(tmp_path: Path, monkeypatch):
    """/dev/full takes nothing, and says so as a full disk does."""
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: io.FileIO("/dev/full", "w"))
    [finding] = check_disk([place(tmp_path)])
    assert finding.message.endswith("the disk is full.")


def test_a_directory_for_temporary_files_is_not_made(tmp_path: Path):
    [finding] = check_disk([Place("temporary files", tmp_path / "none", "export TMPDIR=DIRECTORY", made=False)])
    assert (finding.status, finding.message.endswith("it does not exist.")) == ("warning", True)


# Memory


def world(path: Path, membership: str) -> list[Finding]:
    """What is found where /proc says this."""
    (path / "proc" / "self").mkdir(parents=True)
    (path / "proc" / "meminfo").write_text("MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable: 8000000 kB\n")
    (path / "proc" / "self" / "cgroup").write_text(membership)
    return list(check_memory(path / "proc", path / "groups"))


def write_limit(path: Path, name: str, value: str) -> None:
    file = path / "groups" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value)


def test_memory_without_a_limit(tmp_path: Path):
    write_limit(tmp_path, "user/memory.max", "max\n")
    [finding] = world(tmp_path, "0::/user\n")
    assert (finding.status, finding.message) == ("ok", "16.4 GB, 8.2 GB of it available.")


@pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("0::/user/job\n", "user/job/memory.max"),
        ("0::/user/job\n", "user/memory.max"),  # of the group around it
        ("4:cpu,memory:/job\n0::/\n", "memory/job/memory.limit_in_bytes"),
        ("4:memory:/path/on/the/host\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_a_container_s_limit_is_found(tmp_path: Path, membership: str, file: str):
    write_limit(tmp_path, file, "4000000000\n")
    [finding] = world(tmp_path, membership)
    assert finding.message.endswith("; this container may have 4.0 GB.")


def test_the_smallest_limit_counts(tmp_path: Path):
    write_limit(tmp_path, "user/memory.max", "3000\n")
    write_limit(tmp_path, "user/job/memory.max", "4000\n")
    world(tmp_path, "0::/user/job\n")
    assert memory_limit(tmp_path / "proc", tmp_path / "groups") == 3000


def test_where_linux_is_not_nothing_is_said(tmp_path: Path):
    assert list(check_memory(tmp_path / "proc", tmp_path / "groups")) == []


def test_this_machine_has_memory():
    if not Path("/proc/meminfo").is_file():
        pytest.skip("Linux only")
    [finding] = check_memory()
    assert "GB of it available" in finding.message
