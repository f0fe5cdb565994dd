"""Whether the Hugging Face hub is there: asked once, since its own clients ask again for every file and wait each time."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

__all__ = ["asking_hub", "hub_answers", "quiet_hub"]

logger = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds


@cache
def hub_answers() -> bool:
    """Whether there is somebody at the hub's address; not asked, and taken to be so, in offline mode and behind a proxy."""
    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies() or place.hostname is None:
        return True
    address = place.hostname, place.port or (80 if place.scheme == "http" else 443)
    try:
        with socket.create_connection(address, _PATIENCE):
            return True
    except OSError:
        logger.debug("no connection to %s", constants.ENDPOINT, exc_info=True)
        return False


@contextmanager
def asking_hub() -> Iterator[None]:
    """What is fetched in here comes from the hub, or, where that does not answer, from its cache, as in offline mode."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not hub_answers()
    try:
        with quiet_hub():
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def quiet_hub() -> Iterator[None]:
    """No word of each attempt of huggingface_hub in here; the setting comes back."""
    from huggingface_hub.utils import logging as hub

    level = hub.get_verbosity()
    hub.set_verbosity_error()
    try:
        yield
    finally:
        hub.set_verbosity(level)
