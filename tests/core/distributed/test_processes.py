"""What processes can say to one another: one by itself, and two real ones."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lmflow.distributed.processes import Processes, _raise_all, current_processes
from lmflow.errors import FailedElsewhere, Interrupted, LmflowError

InTwo = Callable[..., Sequence["subprocess.CompletedProcess[str]"]]


def test_one_process_by_itself(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    group = current_processes()
    assert group == Processes(0, 1)
    assert group.is_rank0
    group.barrier()
    assert group.broadcast("x") == "x"
    assert group.gather("x") == ["x"]
    assert (group.sum(2.5), group.max(-1.0)) == (2.5, -1.0)
    assert (group.any(True), group.any(False)) == (True, False)
    assert group.shard([1, 2, 3]) == [1, 2, 3]
    assert group.on_rank0(lambda: 7) == group.once_per_node(lambda: 7) == 7
    assert group.map_sharded(lambda some: [2 * each for each in some], [1, 2, 3]) == [2, 4, 6]


def test_without_others_no_exchange_is_loaded():
    program = (
        "import sys; from lmflow.distributed.processes import current_processes; assert current_processes().size == 1; "
        "raise SystemExit('torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_parts_are_spread_and_complete():
    items = list(range(7))
    parts = [Processes(rank, 3).shard(items) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_failure_anywhere_is_one_everywhere():
    _raise_all(None, [None, None])
    with pytest.raises(ZeroDivisionError):
        _raise_all(ZeroDivisionError(), [0, None])
    with pytest.raises(FailedElsewhere):
        _raise_all(None, [0, None])
    with pytest.raises(Interrupted) as stopped:
        _raise_all(None, [None, 15])
    assert stopped.value.exit_code == 143
    with pytest.raises(FailedElsewhere):  # one was stopped, another failed
        _raise_all(None, [0, 15])


def test_nobody_comes(monkeypatch: pytest.MonkeyPatch, free_port: int):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    with pytest.raises(LmflowError, match=r"2 processes could not meet at 127\.0\.0\.1:\d+: .*--launch\.address"):
        current_processes("cpu", minutes=0.02)


TWO = """
import json, os, signal, sys
from pathlib import Path
from lmflow.data.cache.record_index import RecordIndex
from lmflow.data.record import Record
from lmflow.errors import Interrupted, LmflowError
from lmflow.run.log import RunLog
from lmflow.distributed.processes import current_processes, is_reported_by_rank0

group = current_processes("cpu")
assert current_processes() == group
rank, found = group.rank, {}
found["size"] = group.size
found["broadcast"] = group.broadcast({"from": rank})
found["gather"] = group.gather(f"rank {rank}")
found["sum"], found["max"] = group.sum(rank + 0.5), group.max(-rank)
found["any"] = [group.any(False), group.any(rank == 1), group.any(True)]
found["on_rank0"] = group.on_rank0(lambda: rank)
doubled = lambda some: [10 * each + rank for each in some]
found["map"] = [group.map_sharded(doubled, list(range(count))) for count in (5, 1, 0)]

def failing(error):
    def make(*_):
        if rank == where: raise error
        return ["fine"]
    return make

found["failures"] = []
for method, where in (("on_rank0", 0), ("once_per_node", 0), ("map_sharded", 1)):
    for error in (ValueError("mine"), Interrupted(15)):
        try:
            getattr(group, method)(failing(error), *([["a", "b"]] if method == "map_sharded" else []))
        except Exception as caught:
            found["failures"].append(type(caught).__name__)

made = []
def read():
    made.append(rank)
    index = RecordIndex()
    for i in range(3): index.append(Record({"i": i}, f"line {i}"))
    return index
index = group.once_per_node(read)
found["once"] = [made, [index[i].fields["i"] for i in range(len(index))]]

log = RunLog(None, lambda *_, **__: None, None, group)
with log.handle_signals():
    if rank == 1: signal.raise_signal(signal.SIGTERM)
    log.check_stop()  # not yet: the other has not heard of it
    log.step({"step": 1})
    try:
        log.check_stop()
    except Interrupted as stopped:
        found["stopped"] = stopped.signal_number
    log.stop_signal = None

    def sample(some):
        log.advance_or_stop()  # for itself, within a share
        return some
    try:
        group.map_sharded(sample, [1, 2])
    except Interrupted as stopped:
        found["stopped_sampling"] = stopped.signal_number
def listens():
    # The local addresses of all sockets on which this process listens, as Linux writes them.
    mine = {os.readlink(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{each}")}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            at, state, inode = (line.split()[index] for index in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in mine: yield at.partition(":")[0]
found["listens"] = sorted(set(listens())) if sys.platform == "linux" else []
found["said"] = is_reported_by_rank0("the same" if rank == 0 or sys.argv[2] == "alike" else "something else")
group.barrier()
Path(sys.argv[1] + str(rank)).write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("said", ["alike", "otherwise"])
def test_two_processes(tmp_path: Path, in_two_processes: InTwo, said: str):
    ended = in_two_processes(TWO, str(tmp_path / "found"), said)
    assert [each.returncode for each in ended] == [0, 0], ended
    first, second = (json.loads((tmp_path / f"found{rank}").read_text()) for rank in (0, 1))
    reached = [*first.pop("listens"), *second.pop("listens")]
    assert set(reached) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert reached or sys.platform != "linux"
    assert first.pop("once") == [[0], [0, 1, 2]]
    assert second.pop("once") == [[], [0, 1, 2]]
    assert (first.pop("said"), second.pop("said")) == (True, said == "alike")
    assert first.pop("failures") == [
        *("ValueError", "Interrupted"),
        *("ValueError", "Interrupted"),
        *("FailedElsewhere", "Interrupted"),
    ]
    assert second.pop("failures") == [
        *("FailedElsewhere", "Interrupted"),
        *("FailedElsewhere", "Interrupted"),
        *("ValueError", "Interrupted"),
    ]
    assert first == second
    assert first == {
        "size": 2,
        "broadcast": {"from": 0},
        "gather": ["rank 0", "rank 1"],
        "sum": 2.0,
        "max": 0.0,
        "any": [False, True, True],
        "on_rank0": 0,
        "map": [[0, 11, 20, 31, 40], [0], []],
        "stopped": 15,
        "stopped_sampling": 15,
    }
