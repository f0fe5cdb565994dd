"""The methods. One paper, one file; this registry is the only list of them."""

from __future__ import annotations

import difflib

from secateur.errors import RequestError
from secateur.methods.angular import Angular
from secateur.methods.base import Cost, Method, Run
from secateur.methods.elder import Elder, ElderPublished
from secateur.methods.gradpruner import GradPruner
from secateur.methods.laco import Laco
from secateur.methods.magnitude import Magnitude
from secateur.methods.random_ import Random
from secateur.methods.replaceme import ReplaceMe
from secateur.methods.shortened import ShortenedPPL, ShortenedTaylor
from secateur.methods.shortgpt import ShortGPT
from secateur.methods.sleb import Sleb
from secateur.methods.tail import Tail

__all__ = ["METHODS", "Cost", "Method", "Run", "method_named"]

METHODS: dict[str, type[Method]] = {
    "elder": Elder,
    "elder-published": ElderPublished,
    "gradpruner": GradPruner,
    "shortgpt": ShortGPT,
    "angular": Angular,
    "sleb": Sleb,
    "shortened-ppl": ShortenedPPL,
    "shortened-taylor": ShortenedTaylor,
    "laco": Laco,
    "replaceme": ReplaceMe,
    "tail": Tail,
    "magnitude": Magnitude,
    "random": Random,
}


def method_named(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        RequestError: if there is none; the message suggests the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(METHODS)}"
    raise RequestError(f"unknown method '{name}'; {hint}")
