"""What belongs to the whole process and a run depends on, kept while code of others runs."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

Restore = Callable[[], None]


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Leave the working directory, random numbers, and torch's modes as they were, whatever happens within.

    A metric drawn at random, or gradients switched off for a moment, would otherwise change the weights a run ends
    with. Of libraries only those that are loaded already are looked at: nothing is imported.
    """
    restorers = [_directory(), _random_numbers(), *_numpy(), *_torch()]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _directory() -> Restore:
    try:
        before = os.getcwd()
    except FileNotFoundError:  # deleted under the run, which then has only absolute paths
        return lambda: None

    def restore() -> None:
        with suppress(FileNotFoundError):
            os.chdir(before)

    return restore


def _random_numbers() -> Restore:
    state = random.getstate()
    return lambda: random.setstate(state)


def _numpy() -> Iterator[Restore]:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state = numpy.random.get_state()
        yield lambda: numpy.random.set_state(state)


def _torch() -> Iterator[Restore]:
    torch = sys.modules.get("torch")
    if torch is None:
        return
    numbers = torch.get_rng_state()
    yield lambda: torch.set_rng_state(numbers)
    yield from _torch_modes(torch)
    if torch.cuda.is_initialized():
        devices = torch.cuda.get_rng_state_all()
        yield lambda: torch.cuda.set_rng_state_all(devices)


def _torch_modes(torch: Any) -> Iterator[Restore]:
    """What is set for all of torch, set back only where it was changed: to set some of it costs time ever after."""
    for read, write in (
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
        *((partial(torch.is_autocast_enabled, at), partial(torch.set_autocast_enabled, at)) for at in ("cpu", "cuda")),
    ):
        yield partial(_set_back, read, write, read())


def _set_back(read: Callable[[], Any], write: Callable[[Any], object], before: Any) -> None:
    if read() != before:
        write(before)
