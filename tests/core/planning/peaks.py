"""What a piece of work takes, as torch's profiler sees bytes come and go, beside which estimates are held."""

from collections.abc import Callable
from typing import Any

from torch.profiler import profile

from lmflow.planning.footprint import Footprint


def live_peak(work: Callable[[], Any]) -> int:
    """The most bytes that `work` held at once beside what was there."""
    work()  # what is made once and kept
    with profile(profile_memory=True) as seen:
        work()
    events: Any = seen.profiler
    changes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def without_weights(found: Footprint) -> int:
    """What is compared with that."""
    return found.gradients + found.activations + found.logits
