"""The model hub: whether it can be asked at all, before its libraries spend the better part of a minute on trying."""

from __future__ import annotations

import os
from functools import cache
from threading import Thread

HUB = "https://huggingface.co"
TIMEOUT = 4.0
"""Seconds that the hub has to accept a connection, and then to answer."""
DEADLINE = 8.0
"""Seconds for all of it, looking up its name included."""


@cache
def hub_is_out_of_reach() -> bool:
    """Whether this machine is told not to use the hub, or the hub does not answer within a few seconds.

    Its libraries would try for minutes, once for each file. Whatever answer comes from there, or through a proxy, is
    one; that a proxy refuses is none.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "TRUE", "YES"}:
        return True
    answered: list[bool] = []
    # In a thread, as nothing bounds how long a name is looked up.
    asking = Thread(target=lambda: answered.append(_answers(os.environ.get("HF_ENDPOINT", HUB))), daemon=True)
    asking.start()
    asking.join(DEADLINE)
    return answered != [True]


def _answers(address: str) -> bool:
    from ssl import SSLError
    from urllib.error import HTTPError, URLError  # bring http and ssl, which every start would load
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(address, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, SSLError)  # it is there; what the libraries trust is their affair
    except (OSError, ValueError):
        return False
    return True


def is_kept_from_hub(name: str, file: str, revision: str | None = None) -> bool:
    """Whether `file` of the model called `name` was fetched from the hub before, in that revision or the newest."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except ValueError:  # no name that a model on the hub can have
        return False
