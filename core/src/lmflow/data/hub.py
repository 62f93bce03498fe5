"""The model hub: whether it can be asked at all, before its libraries spend the better part of a minute on trying."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

HUB = "https://huggingface.co"


@cache
def hub_is_out_of_reach() -> bool:
    """Whether this machine is told not to use the hub, or does not find it.

    Behind a proxy it is the proxy that finds it, so there it is taken to be in reach.
    """
    from urllib.request import getproxies  # brings http and ssl, which every start would load

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "TRUE", "YES"}:
        return True
    if "https" in getproxies():
        return False
    host = urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True
    return False


def is_kept_from_hub(name: str, file: str, revision: str | None = None) -> bool:
    """Whether `file` of the model called `name` was fetched from the hub before, in that revision or the newest."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except ValueError:  # no name that a model on the hub can have
        return False
