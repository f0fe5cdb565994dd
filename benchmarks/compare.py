"""Every method on one protocol: the tables of docs/comparison.md, made from the cells that `secateur compare` has left.

    MODEL=… DATA=… secateur compare benchmarks/comparison.yaml --out benchmarks/results/comparison
    MODEL=… DATA=… secateur compare benchmarks/comparison_c4.yaml --out benchmarks/results/comparison_c4
    benchmarks/gpu/run.sh compare              # fills benchmarks/results/comparison_full_length, on a GPU
    python benchmarks/compare.py dense MODEL DATA     # the dense model trained on as many tokens as the others
    python benchmarks/compare.py tables        # rewrite the tables of docs and the README from the results

How to run the first in pieces stands in comparison.yaml. Of the folders `compare.json`, `cells/` and `plots/` are kept in the
repository; the rest can be made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import with_tables  # noqa: E402  (a script beside this one)
from secateur.compare.results import Results, Row  # noqa: E402
from secateur.compare.run import make_tables  # noqa: E402
from secateur.compare.tables import markdown, perplexity_text, table  # noqa: E402
from secateur.report.comparison import MISSING  # noqa: E402

RESULTS = HERE / "results"
FOLDERS = {"": "comparison", "c4-": "comparison_c4", "full-": "comparison_full_length"}
"""What the name of a table begins with → the folder of its results."""
DOCS = HERE.parent / "docs"
PAGES = (DOCS / "comparison.md", HERE.parent / "README.md", *sorted((DOCS / "methods").glob("*.md")))
DENSE = {
    "": (RESULTS / "comparison_dense.json", {"num_sequences": 128, "num_eval_sequences": 128}),
    "full-": (
        RESULTS / "comparison_full_length_dense.json",
        {"sequence_length": 2048, "num_sequences": 112, "num_eval_sequences": 1000},
    ),
}
"""What the name of a table begins with → the dense model's result, and the windows it is trained and measured on."""
IN_README = ("elder", "sleb", "shortgpt", "replaceme", "random")
BESIDE = ("elder", "random")
"""On a method's own page: the best, and the floor."""
TABLES = ("drops", "recovery", "tasks")
PLOTS = "../benchmarks/results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tables")
    dense = commands.add_parser("dense")
    dense.add_argument("model")
    dense.add_argument("data", type=Path, help="a folder with wikitext2/train_1mb.txt and wikitext2/test.txt")
    dense.add_argument("--full-length", action="store_true", help="as gpu/full_length.yaml, on a GPU")
    options = parser.parse_args()
    if options.command == "dense":
        train_dense(options.model, options.data, "full-" if options.full_length else "")
    for folder in FOLDERS.values():
        if (RESULTS / folder / "compare.json").exists():
            make_tables(RESULTS / folder)
    for page in PAGES:
        page.write_text(made_anew(page.read_text(encoding="utf-8")), encoding="utf-8")


def train_dense(source: str, data: Path, prefix: str) -> None:
    """What training on the text does to the model that keeps all its layers, as `full` does to the others."""
    from secateur.decoder import Decoder
    from secateur.loading import load_model, load_tokenizer
    from secateur.progress import Silent
    from secateur.report.record import versions
    from secateur.request import TextSettings
    from secateur.stages import quality
    from secateur.training.recovery import Recovery, recover_
    from secateur.values import write_json

    result, lengths = DENSE[prefix]
    text = TextSettings(
        data=str(data / "wikitext2" / "train_1mb.txt"), eval_data=str(data / "wikitext2" / "test.txt"), **lengths
    )
    windows, held_out = text.load(load_tokenizer(source), 0)
    decoder = Decoder(load_model(source, dtype="float32"))
    tokens = windows.num_sequences * windows.sequence_length
    trained = recover_(decoder, windows, settings=Recovery(recover="full", recover_tokens=tokens))
    measured = quality(decoder.model, held_out, Silent(), "measuring")
    write_json(result, {
        "model": Path(source).resolve().name, "tokens": trained["tokens"], "rate": trained["rate"], **measured,
        "versions": versions(),
    })  # fmt: skip


def made_anew(page: str) -> str:
    """The page with its tables made from the results."""
    return with_tables(page, made)


def made(name: str) -> str | None:
    """A table, or the plots; what there are no results for yet is said to be missing. None for those of another script."""
    if name.startswith("of-"):
        return of_a_method(name.removeprefix("of-"))
    if name == "calibration":
        return calibration(rows_of(FOLDERS[""]), rows_of(FOLDERS["c4-"]))
    if name.endswith("dense-trained"):
        return dense_trained(name.removesuffix("dense-trained"))
    if name == "some-drops":
        return table("drops", [row for row in rows_of(FOLDERS[""]) if row.method in IN_README])
    prefix = max((prefix for prefix in FOLDERS if name.startswith(prefix)), key=len)
    folder, name = FOLDERS[prefix], name.removeprefix(prefix)
    rows = rows_of(folder)
    if name == "progress":
        return f"{sum(row.result is not None for row in rows)} of {len(rows)} cells are done."
    found = plots_of(folder) if name == "plots" else table(name, rows) if name in TABLES else None
    return "No cell is done yet." if found == "" else found


def of_a_method(method: str) -> str:
    """A method beside the best and the floor: without a recovery by the number of layers, and with one."""
    rows = [row for row in rows_of(FOLDERS[""]) if row.method in (method, *BESIDE)]
    return "\n\n".join(table(name, rows) for name in ("drops", "recovery"))


def plots_of(folder: str) -> str:
    """The plots of a comparison, one below the other."""
    plots = sorted((RESULTS / folder / "plots").glob("*.svg"))
    return "\n\n".join(f"![{plot.stem}]({PLOTS}/{folder}/plots/{plot.name})" for plot in plots)


def dense_trained(prefix: str) -> str:
    """What training alone does, in a sentence."""
    result, _ = DENSE[prefix]
    if not result.exists():
        return "Not measured yet."
    found = json.loads(result.read_text(encoding="utf-8"))
    option = " --full-length" if prefix else ""
    return (
        f"The dense model itself, all its weights trained on as many tokens ({found['tokens']:,}, rate "
        f"{found['rate']:g}): **{found['perplexity']:.2f}** (`python benchmarks/compare.py dense MODEL DATA{option}`)."
    )


def rows_of(folder: str) -> list[Row]:
    """The cells of a comparison; none if it was never begun."""
    return Results(RESULTS / folder).rows() if (RESULTS / folder / "compare.json").exists() else []


def calibration(wikitext: list[Row], c4: list[Row]) -> str:
    """The same cells calibrated on either text: perplexity, and how many of the layers that go are the same."""
    results = {(row.method, row.drop, row.recovery, row.seed): row.result for row in wikitext}
    body = []
    for row in c4:
        here, there = results.get((row.method, row.drop, row.recovery, row.seed)), row.result
        perplexities = [
            perplexity_text(found["metrics"]["pruned"]["perplexity"]) if found else MISSING for found in (here, there)
        ]
        common = len({*here["dropped"]} & {*there["dropped"]}) if here and there else None
        body.append([f"`{row.method}`", *perplexities, MISSING if common is None else f"{common} of {row.drop}"])
    return markdown(["calibrated on", "WikiText-2", "C4", "layers in common"], body) if body else "No cell is done yet."


if __name__ == "__main__":
    main()
