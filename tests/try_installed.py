"""Prune a tiny random model with the secateur that is installed: `python tests/try_installed.py`, in any environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = [chr(code) for code in range(33, 127)] + [
    chr(288),
    chr(266),
]  # and the blank and the newline, as ByteLevel spells them


def save_tiny_model(folder: Path) -> None:
    """Six layers of random weights, and a tokenizer of single letters."""
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(LETTERS), max_position_embeddings=256, **sizes)).save_pretrained(folder)


def secateur(*words: str) -> None:
    """Run a command; an error ends this script."""
    sys.stdout.write(f"secateur {' '.join(words)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "secateur", *words], check=True)


def main() -> None:
    """Try what needs no network and no extra."""
    with tempfile.TemporaryDirectory() as place:
        model, text, out, cut = (str(Path(place, name)) for name in ("model", "text.txt", "out", "cut"))
        save_tiny_model(Path(model))
        Path(text).write_text(
            "".join(f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(400)), "utf-8"
        )
        windows = ["--data", text, "--sequence-length", "64", "--num-sequences", "8", "--num-eval-sequences", "8"]
        secateur("--version")
        secateur("--help")
        secateur("doctor", "--no-network")
        secateur("prune", model, *windows, "--drop", "2", "--out", out)
        secateur("prune", model, "--config", "quick-look", *windows, "--out", str(Path(place, "looked-at")))
        secateur("cut", model, "--layers", "1,3", "--out", cut)
        secateur("check", model, cut)
        secateur("report", out, "--out", str(Path(place, "report.html")))


if __name__ == "__main__":
    main()
