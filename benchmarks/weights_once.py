"""Is there a second copy of the weights while layers are scored? The most memory of a phase, in the bytes of the weights.

    python benchmarks/weights_once.py run --parameters 1.7e9 --precision fp32 --tokens 4 --batch 1
    python benchmarks/weights_once.py tables   # rewrites the table in docs/scaling.md

IGIA (`gradpruner`) and ELDeR's first stage in both its forms, each in a process of its own, on a random Llama in bfloat16 read
from disk; what Python and its libraries hold before that is taken off. `loaded` is after reading (pages of the file that nobody
has looked at yet do not count), `peak` the most while layers are chosen. Above 1 are activations, logits, adapters with their
moments, and on a small model the libraries' code. The first command writes
results/weights_once.json and takes 40 minutes of one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "weights_once.json"
PAGE = HERE.parent / "docs" / "scaling.md"

NUM_LAYERS, VOCABULARY, WINDOWS = 24, 8192, 4
SETTINGS: dict[str, dict[str, Any]] = {
    "gradpruner": {"scoring_steps": 3, "scoring_batch": 2},
    "elder": {"joint_steps": 2, "measured_start": False, "shortlist": 1},
    "elder-published": {"first_steps": 2, "round_steps": 1},
}
"""Few steps of few tokens: how often a step is made again does not change what it holds, and bfloat16 is slow on most CPUs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    parser.add_argument("--parameters", type=float, default=1e8, help="of the model, about")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="bf16", help="of the passes; fp32 is the weights' own"
    )
    parser.add_argument("--tokens", type=int, default=16, help="of a window; there are four")
    parser.add_argument("--batch", type=int, default=2, help="windows that are passed at once")
    parser.add_argument("--phase", nargs=2, metavar=("METHOD", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command == "tables":
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if options.phase:
        print(json.dumps(measured(*options.phase, options.precision, options.tokens, options.batch)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, options.parameters, options.tokens)
        words = [sys.executable, __file__, "run", "--precision", options.precision]
        words += ["--tokens", str(options.tokens), "--batch", str(options.batch)]
        rows = []
        for name in SETTINGS:
            done = subprocess.run([*words, "--phase", name, folder], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]))
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def made_anew(page: str) -> str:
    """The page with its table made from the result."""
    return with_tables(page, lambda name: table() if name == "weights-once" else None)


def table() -> str:
    """A row a method."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))
    body = [
        [
            f"`{row['method']}`",
            f"{row['parameters'] / 1e9:.2f} B",
            f"{row['weights_bytes'] / 1e9:.2f} GB",
            f"{row['peak']:.2f} ×",
        ]
        for row in rows
    ]
    return markdown(["method", "parameters", "weights", "most memory while it chooses, of the weights"], body)


def write_model(folder: str, parameters: float, tokens: int) -> None:
    """A Llama of 24 layers with about so many parameters, random, in bfloat16."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    width = max(64, round((parameters / (16 * NUM_LAYERS)) ** 0.5 / 64) * 64)  # of 16·width² weights a layer
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=tokens,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def measured(name: str, folder: str, precision: str, tokens: int, batch: int) -> dict[str, Any]:
    """The memory that a method's choice of layers takes, in this process."""
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder
    from secateur.evaluation.memory import PeakMemory
    from secateur.loading import load_model
    from secateur.methods import METHODS, Run

    method = METHODS[name](**SETTINGS[name])
    warm_up()
    before = held()
    model = load_model(folder)
    gc.collect()
    loaded = held()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    ids = torch.randint(3, VOCABULARY, (WINDOWS, tokens), generator=torch.Generator().manual_seed(0))
    run = Run(precision=torch.bfloat16 if precision == "bf16" else None)
    with PeakMemory(interval=0.01) as memory:
        method.plan(Decoder(model), TokenBatches(ids, batch, "random"), drop=2, run=run)
    return {
        "method": name,
        "precision": precision,
        "tokens": tokens,
        "batch": batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": weights,
        "loaded": round((loaded - before) / weights, 3),
        "peak": round((memory.bytes - before) / weights, 3),
    }


def warm_up() -> None:
    """Import what the phases import late, so that it does not count."""
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    from secateur.methods import METHODS  # noqa: F401


def held() -> int:
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()
