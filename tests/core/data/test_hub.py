"""The hub is asked only where it can be found, so that a mistyped name costs no minute of retries."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from lmflow.components import LoadRequest
from lmflow.data.containers import iterate_hub
from lmflow.data.hub import hub_is_out_of_reach, is_kept_from_hub
from lmflow.errors import DataError, RecipeError
from lmflow.models.pretrained import Pretrained
from lmflow.models.source import ModelSource, check_path

Network = Callable[[bool], list[str]]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Makes a network in which names are found or not; returns the names that were asked for."""
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def make(works: bool) -> list[str]:
        asked: list[str] = []

        def find(host: str, *_: object, **__: object) -> list[object]:
            asked.append(str(host))
            if not works:
                raise socket.gaierror(-2, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.server_port))]

        monkeypatch.setattr(socket, "getaddrinfo", find)
        hub_is_out_of_reach.cache_clear()
        return asked

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://hub.example:{server.server_port}/models")
        yield make
        server.shutdown()
    hub_is_out_of_reach.cache_clear()


class Refuses(BaseHTTPRequestHandler):
    """A hub that answers, though not with a model."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("works", [True, False])
def test_the_network_is_asked_once(works: bool, network: Network) -> None:
    asked = network(works)
    assert hub_is_out_of_reach() is not works
    assert hub_is_out_of_reach() is not works
    assert asked == ["hub.example"]


def test_a_hub_that_accepts_and_says_nothing_is_out_of_reach(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmflow.data.hub.TIMEOUT", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        hub_is_out_of_reach.cache_clear()
        assert hub_is_out_of_reach()


def test_a_name_that_is_looked_up_forever_has_a_deadline(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network(True)
    over = Event()
    monkeypatch.setattr("lmflow.data.hub.DEADLINE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait() and [])
    assert hub_is_out_of_reach()
    over.set()


def test_a_proxy_that_refuses_is_no_answer(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network(False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert hub_is_out_of_reach()


def test_what_the_environment_says_is_enough(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = network(True)
    assert hub_is_out_of_reach()
    assert not asked


def test_a_mistyped_model_is_one_message(network: Network) -> None:
    network(False)
    with pytest.raises(RecipeError, match=r"model.path: no-such/model does not exist here, and the model hub is out"):
        check_path("no-such/model")


def test_a_mistyped_data_set_is_one_message(network: Network) -> None:
    network(False)
    with pytest.raises(DataError, match="no-such/data does not exist here, and the hub is out of reach"):
        list(iterate_hub("no-such/data"))


def test_a_place_on_this_machine_asks_nobody(network: Network, model_directory: Path) -> None:
    asked = network(False)
    assert Pretrained(path=str(model_directory)).skeleton(LoadRequest()).end_ids
    assert not asked


def test_what_was_fetched_before_is_used(network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    network(False)
    assert is_kept_from_hub("owner/model", "config.json")
    assert not is_kept_from_hub("owner/other", "config.json")
    assert not is_kept_from_hub("owner/no such name", "config.json")
    check_path("owner/model")
    check_path("owner/model", "abc")
    with pytest.raises(RecipeError, match="out of reach"):
        check_path("owner/model", "another")
    assert ModelSource("owner/model").settings["local_files_only"]
