"""What a launcher leaves in the environment, and whether a run would mind."""

from __future__ import annotations

import pytest

from lmflow.doctor.launcher_checks import check_launcher


def launcher(**environment: str) -> list[tuple[str, str]]:
    return [(finding.status, finding.remedy) for finding in check_launcher(environment)]


COMPLETE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "1"}, {"WORLD_SIZE": "2"}, {"LOCAL_RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}],
)
def test_what_makes_no_difference_is_not_mentioned(environment: dict[str, str]):
    assert launcher(**environment) == []


def test_half_a_set_stops_every_run():
    [finding] = check_launcher({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
    assert (finding.status, finding.remedy) == ("error", "unset RANK WORLD_SIZE MASTER_ADDR")
    assert finding.message.startswith("WORLD_SIZE=2: set as in one of 2 processes, without MASTER_PORT: every run")


def test_what_is_no_number_stops_every_run():
    [finding] = check_launcher({"RANK": "first", "WORLD_SIZE": "1"})
    assert (finding.status, finding.remedy) == ("error", "unset RANK WORLD_SIZE")
    assert finding.message.startswith("RANK=first is no number")


def test_a_complete_set_without_its_launcher_waits_for_others():
    assert launcher(**COMPLETE) == [("warning", "unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT")]


def test_under_torchrun_all_is_well():
    [finding] = check_launcher({**COMPLETE, "TORCHELASTIC_RUN_ID": "1"})
    assert (finding.status, finding.message) == ("ok", "This is process 1 of 2, as torchrun says.")
