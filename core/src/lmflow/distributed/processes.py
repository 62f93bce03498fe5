"""The processes that carry out one run together, and what they can say to one another."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from lmflow.distributed.environment import LOOPBACK
from lmflow.distributed.messages import pack, unpack
from lmflow.errors import FailedElsewhere, Interrupted, LmflowError

Item = TypeVar("Item")
Made = TypeVar("Made")

MINUTES = 30.0
"""How long a process waits for the others before it gives up, unless it is told."""


_meeting_place: Any = None
"""The store in which the processes found each other."""


@dataclass(frozen=True)
class Processes:
    """One process by itself, which is a group too: every exchange gives back what was put in.

    Several processes are a `Processes`, of the same interface. All processes have to call a method, in the same
    order: what some of them call and others do not waits for ever.
    """

    rank: int = 0
    """This process's number, from 0."""
    size: int = 1
    """How many processes there are."""

    @property
    def is_rank0(self) -> bool:
        """Whether this is the process that writes and shows: rank 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 gave, in every process; those of the others are ignored."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in every process."""
        return [value]

    def sum(self, value: float) -> float:
        """The sum of all processes' values, in float64, the same to the bit in every process."""
        return value

    def max(self, value: float) -> float:
        """The largest of all processes' values."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.max(float(flag)) > 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`: one in `size` of them, so that parts of what is sorted are alike."""
        return items[self.rank :: self.size]

    def on_rank0(self, make: Callable[[], Made]) -> Made:
        """What `make` makes on rank 0, in every process; where it fails there, all fail."""
        return make()

    def once_per_node(self, make: Callable[[], Made]) -> Made:
        """What `make` makes in one process of each machine, in every process; where one fails, all fail.

        What is made is sent to the others. A machine that has no /proc makes it in every process.
        """
        return make()

    def map_sharded(self, make: Callable[[Sequence[Item]], Sequence[Made]], items: Sequence[Item]) -> list[Made]:
        """What `make` makes of `items`, one thing of each, in their order, while each process makes its share.

        It gives what `make(items)` would where what is made of an item does not depend on the other items. Where one
        process fails, or is interrupted, all do.
        """
        return list(make(items))


@dataclass(frozen=True)
class ProcessGroup(Processes):
    """The processes of torch's default process group. What they exchange here never passes a GPU."""

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.max(0.0)  # torch's own barrier needs a GPU for every process where there is one at all

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 gave, in every process; those of the others are ignored."""
        return self._sent(value, 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in every process."""
        return [self._sent(value, rank) for rank in range(self.size)]

    def sum(self, value: float) -> float:
        """The sum of all processes' values, in float64, the same to the bit in every process."""
        return self._reduced(value, "SUM")

    def max(self, value: float) -> float:
        """The largest of all processes' values."""
        return self._reduced(value, "MAX")

    def on_rank0(self, make: Callable[[], Made]) -> Made:
        """What `make` makes on rank 0, in every process; where it fails there, all fail."""
        made, failure = _tried(make) if self.is_rank0 else (None, None)
        sign, sent = self.broadcast((_as_sign(failure), made))
        _raise_all(failure, [sign])
        return made if self.is_rank0 else sent  # type: ignore[return-value]

    def once_per_node(self, make: Callable[[], Made]) -> Made:
        """What `make` makes in one process of each machine, in every process; where one fails, all fail."""
        machines = self.gather(this_machine() or f"process {self.rank}")
        makers = [machines.index(each) for each in machines]
        made, failure = _tried(make) if makers[self.rank] == self.rank else (None, None)
        _raise_all(failure, self.gather(_as_sign(failure)))
        for maker in sorted(set(makers)):
            if makers.count(maker) > 1:
                sent = self._sent(pack(made) if maker == self.rank else None, maker)
                if makers[self.rank] == maker != self.rank:
                    made = unpack(sent)
        self.barrier()  # the makers keep what they made at least until all have it
        return made  # type: ignore[return-value]  # it is what was made, or sent

    def map_sharded(self, make: Callable[[Sequence[Item]], Sequence[Made]], items: Sequence[Item]) -> list[Made]:
        """What `make` makes of `items`, one thing of each, in their order, while each process makes its share."""
        mine = self.shard(items)
        made, failure = _tried(lambda: list(make(mine)) if mine else [])
        parts = self.gather((_as_sign(failure), made))
        _raise_all(failure, [sign for sign, _ in parts])
        together: list[Any] = [None] * len(items)
        for rank, (_, part) in enumerate(parts):
            together[rank :: self.size] = part
        return together

    def _sent(self, value: Any, sender: int) -> Any:
        import torch
        from torch import distributed

        content = bytearray(pack(value)) if self.rank == sender else bytearray()
        length = torch.tensor(len(content))
        distributed.broadcast(length, src=sender)
        content = content or bytearray(int(length))
        distributed.broadcast(torch.frombuffer(content, dtype=torch.uint8), src=sender)
        return value if self.rank == sender else unpack(bytes(content))

    def _reduced(self, value: float, how: str) -> float:
        import torch
        from torch import distributed

        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total, getattr(distributed.ReduceOp, how))
        return float(total)


def this_machine() -> str | None:
    """A name that processes of one machine share, who can open one another's files; None where they cannot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _tried(make: Callable[[], Made]) -> tuple[Made | None, Exception | None]:
    """What `make` makes, or how it failed."""
    try:
        return make(), None
    except Exception as error:
        return None, error


def _as_sign(failure: Exception | None) -> int | None:
    """What the other processes are told of a failure: None of none, the signal of an interrupt, 0 of all else."""
    if failure is None:
        return None
    return failure.signal_number if isinstance(failure, Interrupted) else 0


def _raise_all(mine: Exception | None, signs: Sequence[int | None]) -> None:
    """Raise this process's failure, or else what it is told of another's."""
    if mine is not None:
        raise mine
    told = [sign for sign in signs if sign is not None]
    if told:
        raise Interrupted(max(told)) if all(told) else FailedElsewhere("another process of the run failed")


def current_processes(device: str | None = None, *, minutes: float = MINUTES) -> Processes:
    """The group this process belongs to; it is formed at the first call where RANK and WORLD_SIZE say there are others.

    `device` is what the run computes on ("cpu", "cuda"; if None, a GPU where there is one). Numbers and objects go
    from process to process over gloo, what lies on a GPU over NCCL. Without others torch.distributed is not imported.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2 or "RANK" not in os.environ:
        return Processes()
    import torch
    from torch import distributed

    global _meeting_place
    if not distributed.is_initialized():
        on_gpu = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        wait = timedelta(minutes=minutes)
        try:
            _meeting_place, rank, size = meet(wait)
            distributed.init_process_group(backend, store=_meeting_place, rank=rank, world_size=size, timeout=wait)
        except RuntimeError as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = str(error).splitlines()[0].rstrip(".")
            raise LmflowError(
                f"{size} processes could not meet at {place}: {reason}. Each of them has to be started, and to reach "
                "that address (--launch.address, MASTER_ADDR and MASTER_PORT)."
            ) from error
        atexit.register(leave_processes)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size())


def meet(wait: timedelta) -> tuple[Any, int, int]:
    """Where the processes find one another, this one's rank, and how many they are.

    Those that `lmflow run` starts on one machine meet where no other machine can reach them; torch's own rendezvous
    listens on every network.
    """
    host, size, rank = (os.environ[name] for name in ("MASTER_ADDR", "WORLD_SIZE", "RANK"))
    if host != LOOPBACK or os.environ.get("LOCAL_WORLD_SIZE") != size or "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.rendezvous import rendezvous

        found: tuple[Any, int, int] = next(rendezvous("env://", timeout=wait))
        return found
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented there

    if sys.platform == "linux":
        for library in ("GLOO", "NCCL"):  # what they exchange stays on this machine as well
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    port, listener = int(os.environ["MASTER_PORT"]), None
    if int(rank) == 0:
        made = socket.create_server((LOOPBACK, port), backlog=int(size))
        port, listener = made.getsockname()[1], made.detach()  # the store closes it
    store = TCPStore(LOOPBACK, port, int(size), int(rank) == 0, wait, master_listen_fd=listener)
    return store, int(rank), int(size)


def leave_processes() -> None:
    """Take leave of the others, if there are any."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def has_joined() -> bool:
    """Whether this process has formed a group with others, be it that it left it since."""
    return _meeting_place is not None


def is_reported_by_rank0(text: str, *, seconds: float = 3.0) -> bool:
    """Whether rank 0 ends with the same words: what all processes found wrong is to be told once.

    It is asked by a process that ends because of an error, and may be all that is left of the group.
    """
    if not has_joined():
        return False
    from torch import distributed

    try:
        if distributed.get_rank() == 0:
            _meeting_place.set("last words", text)
            return True
        _meeting_place.wait(["last words"], timedelta(seconds=seconds))
        return bool(_meeting_place.get("last words").decode() == text)
    except (RuntimeError, ValueError):
        return False
