"""Does another engine compute of a model what transformers computes of it?

    python benchmarks/engines.py expect MODEL EXPECTED.npz                      # where secateur is installed
    python benchmarks/engines.py hold ENGINE MODEL EXPECTED.npz [RESULT.json]   # where the engine is installed
    python benchmarks/engines.py tables                                         # rewrites the table in docs/engines.md

MODEL is a checkpoint directory, or a GGUF file, which transformers dequantises. `expect` writes the log-probabilities of
every next token of a short text; `hold` compares those of the engine. ENGINE is one of `llama-cpp-python` and `xllamacpp`
(both llama.cpp, for GGUF files), `optimum` (exports to ONNX and runs ONNX Runtime), `mlx` (on a CPU as well) and
`transformers` (another version of it). Each engine needs an environment of its own, and this script needs numpy alone there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "engines"
PAGE = HERE.parent / "docs" / "engines.md"

TEXT = """A gardener who prunes a tree in winter looks first for the branches that cross, and then for those that grow
towards the middle, where no light comes. What is cut away was alive, and the tree had paid for it with sugar and water;
yet in spring the remaining buds are the stronger for it. The rule of thumb is to take no more than a quarter at once,
to cut just above a bud that points outwards, and to wait a year before judging the result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    expect = commands.add_parser("expect")
    hold = commands.add_parser("hold")
    hold.add_argument("engine", choices=ENGINES)
    for command in (expect, hold):
        command.add_argument("model", type=Path)
        command.add_argument("expected", type=Path)
    hold.add_argument("result", type=Path, nargs="?")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "expect":
        ids, log_probabilities = of_transformers(options.model, None)
        np.savez(options.expected, ids=ids, log_probabilities=log_probabilities)
    elif options.command == "hold":
        held(options.engine, options.model, options.expected, options.result)
    else:
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def held(engine: str, model: Path, expected: Path, result: Path | None) -> None:
    """Compare, print, and keep the figures."""
    stored = np.load(expected)
    ids, ours = stored["ids"], stored["log_probabilities"]
    _, theirs = ENGINES[engine](model, ids)
    figures = {
        "engine": engine,
        "versions": {name: version(name) for name in PACKAGES[engine]},
        "model": model.name,
        "tokens": len(ids) - 1,
        "perplexity": perplexity(ids, theirs),
        "perplexity_transformers": perplexity(ids, ours),
        "same_best_token": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "divergence": float((np.exp(ours) * (ours - theirs)).sum(1).mean()),
        "max_difference": float(np.abs(np.exp(ours) - np.exp(theirs)).max()),
    }
    print(json.dumps(figures))
    if result:
        result.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def perplexity(ids: np.ndarray, log_probabilities: np.ndarray) -> float:
    return math.exp(-float(log_probabilities[np.arange(len(ids) - 1), ids[1:]].mean()))


# ---- engines: the token ids, and the log-probabilities (tokens - 1, vocabulary) of the next one --------------------------


def of_transformers(model: Path, ids: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": model}
    if model.is_file():
        source = {"pretrained_model_name_or_path": model.parent, "gguf_file": model.name}
    if ids is None:
        ids = np.array(AutoTokenizer.from_pretrained(**source)(TEXT).input_ids)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    with torch.no_grad():
        return ids, normalised(loaded(torch.tensor(ids)[None]).logits[0, :-1].float().numpy())


def of_llama_cpp_python(model: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from llama_cpp import Llama

    loaded = Llama(str(model), n_ctx=len(ids) + 8, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False)
    own = loaded.tokenize(TEXT.encode(), add_bos=False)
    assert own == ids.tolist(), "the tokenizers differ"
    loaded.eval(own)
    return ids, normalised(np.array(loaded.scores[: len(ids) - 1], dtype=np.float32))


def of_xllamacpp(model: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The server gives the probabilities after a prompt, so there is one request a token."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 512, 1, 1
    server = xllamacpp.Server(settings)
    rows = []
    for end in range(1, len(ids)):
        prompt = ids[:end].tolist()
        answer = server.handle_completions(
            {"prompt": prompt, "max_tokens": 1, "logprobs": 1_000_000, "temperature": 1.0}
        )
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert sorted(token["id"] for token in found) == list(range(len(found))), "not the whole vocabulary"
        rows.append([token["logprob"] for token in sorted(found, key=lambda token: token["id"])])
    return ids, normalised(np.array(rows))


def of_optimum(model: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        ORTModelForCausalLM.from_pretrained(model, export=True, use_cache=True).save_pretrained(folder)
        loaded = ORTModelForCausalLM.from_pretrained(folder)
        tokens = torch.tensor(ids)[None]
        logits = loaded(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, :-1]
    return ids, normalised(logits.float().numpy())


def of_mlx(model: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import mlx.core as mx
    from mlx_lm import load

    loaded, _ = load(str(model))
    return ids, normalised(np.array(loaded(mx.array(ids)[None])[0, :-1].astype(mx.float32)))


def normalised(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


ENGINES = {
    "transformers": of_transformers,
    "llama-cpp-python": of_llama_cpp_python,
    "xllamacpp": of_xllamacpp,
    "optimum": of_optimum,
    "mlx": of_mlx,
}
PACKAGES = {
    "transformers": ["transformers", "torch"],
    "llama-cpp-python": ["llama-cpp-python"],
    "xllamacpp": ["xllamacpp"],
    "optimum": ["optimum-onnx", "onnxruntime", "transformers", "torch"],
    "mlx": ["mlx", "mlx-lm"],
}


def made_anew(page: str) -> str:
    """The page with its table made from the result files."""
    sys.path.insert(0, str(HERE))
    from cells import markdown, with_tables

    rows = []
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        rows.append(
            [
                found["model"],
                ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
                f"{found['perplexity_transformers']:.4f}",
                f"{found['perplexity']:.4f}",
                f"{found['same_best_token']:.1%}",
                f"{found['divergence']:.1e}",
                f"{found['max_difference']:.1e}",
            ]
        )
    header = ["model", "engine", "perplexity here", "there", "same best token", "KL divergence", "largest difference"]
    table = markdown(header, rows, words=2)
    return with_tables(page, lambda _: table)


if __name__ == "__main__":
    main()
