"""Ways in which a checkpoint, a plan or a data file can be broken, each a function that breaks a good one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], object]


def without(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def holding(name: str, content: bytes) -> Damage:
    return lambda directory: (directory / name).write_bytes(content)


def cut_short(name: str, share: float) -> Damage:
    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(len(content) * share)])

    return damage


def saying(name: str, **fields: Any) -> Damage:
    """A JSON file with other values; `...` takes a field out."""

    def damage(directory: Path) -> None:
        body = json.loads((directory / name).read_text()) | fields
        (directory / name).write_text(json.dumps({key: value for key, value in body.items() if value is not ...}))

    return damage


def folder_for(name: str) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return damage


def indexed(shard: str) -> Damage:
    """An index in place of the one file."""

    def damage(directory: Path) -> None:
        (directory / WEIGHTS).rename(directory.with_name("moved.safetensors"))
        index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"

OF_CONFIG: dict[str, Damage] = {
    "no config": without(CONFIG),
    "empty config": holding(CONFIG, b""),
    "config of nulls": holding(CONFIG, b"\0" * 64),
    "config is a list": holding(CONFIG, b"[]"),
    "config is no JSON": holding(CONFIG, b"{'num_hidden_layers': 6}"),
    "config is a folder": folder_for(CONFIG),
    "config cut short": cut_short(CONFIG, 0.5),
    "no model_type": saying(CONFIG, model_type=...),
    "unknown model_type": saying(CONFIG, model_type="no_such_model"),
    "model_type of an encoder": saying(CONFIG, model_type="bert", architectures=["BertForMaskedLM"]),
    "no layers": saying(CONFIG, num_hidden_layers=0),
    "fewer than no layers": saying(CONFIG, num_hidden_layers=-1),
    "layers in words": saying(CONFIG, num_hidden_layers="six"),
    "more layers than there are": saying(CONFIG, num_hidden_layers=7),
    "another width": saying(CONFIG, hidden_size=64),
    "width in words": saying(CONFIG, hidden_size="wide"),
    "heads that do not divide": saying(CONFIG, num_attention_heads=5),
    "another vocabulary": saying(CONFIG, vocab_size=256),
    "unknown activation": saying(CONFIG, hidden_act="no_such_activation"),
}

NEEDS_WEIGHTS = ("more layers than there are", "another width", "another vocabulary")
"""Configurations with nothing wrong but that the weights are others."""

OF_WEIGHTS: dict[str, Damage] = {
    "no weights": without(WEIGHTS),
    "empty weights": holding(WEIGHTS, b""),
    "weights of seven bytes": holding(WEIGHTS, b"1234567"),
    "weights of text": holding(WEIGHTS, b"these are no weights, but a text of a few words" * 9),
    "header longer than the file": holding(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"),
    "header is no JSON": holding(WEIGHTS, struct.pack("<Q", 8) + b"notjson!"),
    "header is a list": holding(WEIGHTS, struct.pack("<Q", 2) + b"[]"),
    "header without tensors": holding(WEIGHTS, struct.pack("<Q", 2) + b"{}"),
    "weights cut short in the header": cut_short(WEIGHTS, 0.01),
    "weights cut short": cut_short(WEIGHTS, 0.7),
    "a pickle in place of weights": holding(WEIGHTS, b"\x80\x04K\x01."),
    "an index with no file behind it": indexed("elsewhere.safetensors"),
    "an index that leads outside": indexed("../elsewhere.safetensors"),
}

OF_TOKENIZER: dict[str, Damage] = {
    "no tokenizer": lambda directory: [file.unlink() for file in directory.glob("tokenizer*")],
    "empty tokenizer": holding(TOKENIZER, b""),
    "tokenizer is no JSON": holding(TOKENIZER, b"{"),
    "tokenizer is a list": holding(TOKENIZER, b"[]"),
    "tokenizer without a model": saying(TOKENIZER, model=...),
}

PLANS: dict[str, bytes | None] = {
    "no plan": None,
    "empty": b"",
    "no JSON": b"layers: 3",
    "a list": b"[1, 2]",
    "no UTF-8": b"\xff\xfe\x00",
    **{
        name: json.dumps(
            {
                key: value
                for key, value in {
                    "num_layers": 6, "order": [1, 3], "dropped": [1, 3], "scores": None, "method": "x", "options": {},
                    "merges": {}, "provenance": {}, **fields,
                }.items()
                if value is not ...
            }
        ).encode()
        for name, fields in {
            "no order": {"order": ...},
            "no number of layers": {"num_layers": ...},
            "another depth": {"num_layers": 7},
            "no layer goes": {"order": []},
            "every layer goes": {"order": [0, 1, 2, 3, 4, 5]},
            "a layer that is not there": {"order": [1, 6]},
            "a layer below 0": {"order": [-1]},
            "a layer twice": {"order": [1, 1]},
            "layers in words": {"order": ["one"]},
            "order is a number": {"order": 3},
            "too few scores": {"scores": [0.1]},
            "scores in words": {"scores": ["a"] * 6},
            "merges into nothing": {"merges": {"1": None}},
            "options are a list": {"options": [1]},
        }.items()
    },
}  # fmt: skip

TASKS: dict[str, bytes | None] = {
    "no file": None,
    "empty": b"",
    "blank lines": b"\n\n\n",
    "no JSON": b"text,label\n",
    "JSON cut short": b'{"text": "a", "label": 0}\n{"text": "b", "la',
    "no UTF-8": b'{"text": "\xff\xfe", "label": 0}\n',
    "numbers": b"1\n2\n3\n",
    "lists": b"[1]\n[2]\n",
    "unknown columns": b'{"weight": 3}\n{"weight": 4}\n',
    "one label": b"".join(b'{"text": "a %d", "label_text": "same"}\n' % number for number in range(40)),
    "a label that is no option": b'{"question": "a", "choices": ["x", "y"], "label": 2}\n' * 40,
    "a label below 0": b'{"question": "a", "choices": ["x", "y"], "label": -1}\n' * 40,
    "one option": b'{"question": "a", "choices": ["x"], "label": 0}\n' * 40,
    "options that are no text": b'{"question": "a", "choices": [1, 2], "label": 0}\n' * 40,
    "messages without an answer": b'{"messages": [{"role": "user", "content": "a"}]}\n' * 40,
    "messages without a role": b'{"messages": [{"content": "a"}]}\n' * 40,
    "an empty completion": b'{"prompt": "a", "completion": ""}\n' * 40,
    "a completion that is a number": b'{"prompt": "a", "completion": 3}\n' * 40,
    "one example": b'{"prompt": "a", "completion": "b"}\n',
    "the same example": b'{"prompt": "a", "completion": "b"}\n' * 40,
}

TEXTS: dict[str, bytes | None] = {
    "no file": None,
    "empty": b"",
    "spaces": b" \n\n \n\n ",
    "too little": b"A few words.",
    "no UTF-8": b"\xff\xfe\xfd" * 500,
    "zeros": b"\0" * 5000,
}

SETTINGS: dict[str, bytes | None] = {
    "no file": None,
    "no YAML": b"drop: [1, 2",
    "a list": b"- drop\n- 2\n",
    "text": b"drop",
    "unknown option": b"dorp: 2\n",
    "unknown setting of a method": b"sleb:\n  sequence: 3\n",
    "a number for a method": b"sleb: 3\n",
    "a word for a number": b"num_sequences: many\n",
    "no UTF-8": b"\xff\xfe\x00\x01",
    "a tag that makes objects": b"data: !!python/object/apply:os.getcwd []\n",
}
