import logging
import socket

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import logging as hub_logging

from secateur.connection import asking_hub, hub_answers, quiet_hub
from secateur.errors import DataError, ModelError
from secateur.loading import load_config, local_checkpoint


@pytest.fixture
def listener():
    """A port of this machine that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def hub_at(monkeypatch):
    """Put the hub at an address, asked anew, online and without a proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def put(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        hub_answers.cache_clear()

    yield put
    hub_answers.cache_clear()


@pytest.fixture
def away(hub_at):
    """A hub that does not answer: nobody listens at its port any more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    hub_at(f"http://127.0.0.1:{port}")


def test_a_hub_that_listens_answers_and_one_that_does_not_is_away(hub_at, listener, away):
    assert not hub_answers()
    hub_at(f"http://127.0.0.1:{listener}")
    assert hub_answers()


@pytest.mark.usefixtures("away")
def test_the_hub_is_asked_once(monkeypatch):
    assert not hub_answers()
    monkeypatch.setattr(socket, "create_connection", None)  # a call would be a TypeError
    assert not hub_answers()


@pytest.mark.usefixtures("away")
def test_behind_a_proxy_and_in_offline_mode_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert hub_answers()
    monkeypatch.delenv("https_proxy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_answers.cache_clear()
    assert hub_answers()


@pytest.mark.usefixtures("away")
def test_without_the_hub_it_is_as_in_offline_mode_and_as_before_afterwards():
    def fail():
        with asking_hub():
            assert constants.is_offline_mode()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not constants.is_offline_mode()


def test_with_the_hub_it_is_online(hub_at, listener):
    hub_at(f"http://127.0.0.1:{listener}")
    with asking_hub():
        assert not constants.is_offline_mode()


def test_the_clients_words_are_left_out_and_come_back():
    before = hub_logging.get_verbosity()
    with quiet_hub():
        assert hub_logging.get_verbosity() == logging.ERROR
    assert hub_logging.get_verbosity() == before


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("read", [load_config, local_checkpoint])
def test_a_model_of_a_hub_that_does_not_answer_is_one_line_and_no_waiting(read, caplog):
    with pytest.raises(ModelError, match="someone/some-model; the hub does not answer, and it is not in its cache"):
        read("someone/some-model")
    assert "Retrying" not in caplog.text


@pytest.mark.usefixtures("away")
def test_a_data_set_of_a_hub_that_does_not_answer_is_one_line_and_no_waiting(caplog):
    from secateur.data.loader import load_hub

    with pytest.raises(DataError, match="cannot load 'theirs' from the Hub"):
        load_hub("theirs", ["train"], dataset="someone/some-data")
    assert "Retrying" not in caplog.text


@pytest.mark.parametrize("place", ["./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_said_so_without_asking_the_hub(place, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(ModelError, match=f"^there is no {place}; give a local checkpoint directory"):
        load_config(place)
