"""What cutting file to file costs: time against `cp` of the same bytes, memory, and mergekit's slice of the same layers.

    python benchmarks/cut.py DIRECTORY [--gigabytes 8] [--mergekit PYTHON]   # writes results/cut.json; needs thrice the room
    python benchmarks/cut.py tables                                          # rewrites the table in docs/checkpoints.md

A Llama of random weights in bfloat16 is written to DIRECTORY in shards of 2 GB, and a quarter of its layers is cut from the
middle. Each round does every way once, one after the other: `cp` of the files that `cut` made, `secateur cut`, the same with
`--dry-run`, which is all but the copying, and mergekit's passthrough merge, run by the PYTHON of an environment of its own.
Before each way the source's pages are put out of the cache (`posix_fadvise`), so that all read from the disk, and after it the
new files are synchronised to the disk, within the time. What a way needs in memory is the largest resident size of its
process, sampled, with and without pages of files. What is written is deleted, DIRECTORY is left empty.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "cut.json"
PAGE = HERE.parent / "docs" / "checkpoints.md"

SHARD = 2 * 10**9
WIDTHS = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 8}
VOCABULARY = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIRECTORY|tables", help="an empty directory, or the word tables")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the synthetic checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", help="the python of an environment that has mergekit")
    options = parser.parse_args()
    if options.directory == "tables":
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        measure(Path(options.directory), options.gigabytes, options.rounds, options.mergekit)
        print(table())


def measure(root: Path, gigabytes: float, rounds: int, mergekit: str | None) -> None:
    """Do every way in turn, and write the result."""
    from secateur.report.record import versions
    from secateur.values import write_json

    root.mkdir(parents=True, exist_ok=True)
    dense = root / "dense"
    try:
        layers = write_checkpoint(dense, gigabytes)
        first = 3 * layers // 8
        dropped = range(first, first + layers // 4)
        ways = commands(root, dense, layers, dropped, mergekit)
        subprocess.run(ways["cut"][0], check=True, stdout=subprocess.DEVNULL)  # noqa: S603  (our own command)
        shutil.move(root / "out", root / "same")  # what cp copies
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way in list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]:
                command, source = ways[way]
                found[way].append(timed(command, source, root / "out"))
                print(number, way, found[way][-1], flush=True)
                if way == "mergekit" and number == 0:
                    same_tensors(root / "same", root / "out")
                shutil.rmtree(root / "out", ignore_errors=True)
        write_json(
            RESULT,
            {
                "layers": layers,
                "dropped": list(dropped),
                "dense_bytes": size_of(dense),
                "written_bytes": size_of(root / "same"),
                "shard_bytes": SHARD,
                "rounds": found,
                "threads": os.cpu_count(),
                "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
                "load": os.getloadavg()[0],
                "versions": versions() | ({"mergekit": version_of_mergekit(mergekit)} if mergekit else {}),
            },
        )
    finally:
        for name in ("dense", "same", "out", "mergekit.yaml"):
            path = root / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def commands(
    root: Path, dense: Path, layers: int, dropped: range, mergekit: str | None
) -> dict[str, tuple[list[str], Path]]:
    """The way → its command, and the directory that it reads."""
    out = str(root / "out")
    cut = [sys.executable, "-m", "secateur", "cut", str(dense), "--out", out, "--quiet", "--max-shard-size", "2GB",
           "--layers", f"{dropped[0]}-{dropped[-1]}"]  # fmt: skip
    ways = {
        "cp": (["cp", "-r", str(root / "same"), out], root / "same"),
        "cut": (cut, dense),
        "dry": ([*cut, "--dry-run"], dense),
    }
    if mergekit:
        kept = [[0, dropped[0]], [dropped[-1] + 1, layers]]
        slices = [{"sources": [{"model": str(dense), "layer_range": each}]} for each in kept]
        config = {"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}
        (root / "mergekit.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        script = "import sys; from mergekit.scripts.run_yaml import main; sys.exit(main())"
        options = [str(root / "mergekit.yaml"), out, "--out-shard-size", "1B", "--lazy-unpickle", "--no-copy-tokenizer"]
        ways["mergekit"] = ([mergekit, "-c", script, *options], dense)
    return ways


def timed(command: list[str], source: Path, out: Path) -> dict[str, float]:
    """Seconds until the new files are on the disk, and the largest memory of the process meanwhile."""
    forget(source)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    peak = {"resident_bytes": 0, "anonymous_bytes": 0}
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, done))
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    for path in out.iterdir() if out.exists() else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - start, **peak}


def watch(process: int, peak: dict[str, int], done: threading.Event) -> None:
    names = {"RssAnon:": "anonymous_bytes", "VmHWM:": "resident_bytes"}
    while not done.wait(0.02):
        try:
            lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for name, value, *_ in (line.split() for line in lines if line.startswith(tuple(names))):
            peak[names[name]] = max(peak[names[name]], 1024 * int(value))


def forget(folder: Path) -> None:
    """Put a directory's files out of the page cache; they must be on the disk for that."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """A Llama of random bytes, file by file; the value is its number of layers."""
    from transformers import LlamaConfig

    from secateur.values import write_json

    hidden, inner = WIDTHS["hidden_size"], WIDTHS["intermediate_size"]
    keys = hidden * WIDTHS["num_key_value_heads"] // WIDTHS["num_attention_heads"]
    shapes = {
        "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [keys, hidden], "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, hidden], "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }  # fmt: skip
    table = [VOCABULARY, hidden]
    beside = {"model.embed_tokens.weight": table, "model.norm.weight": [hidden], "lm_head.weight": table}
    in_layer = sum(map(num_bytes, shapes.values()))
    layers = max(4, round((gigabytes * 1e9 - sum(map(num_bytes, beside.values()))) / in_layer))
    tensors = beside | {
        f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in shapes.items()
    }
    folder.mkdir()
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, dtype="bfloat16", tie_word_embeddings=False, **WIDTHS,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    shards: list[dict[str, list[int]]] = [{}]
    for name, shape in tensors.items():
        if sum(map(num_bytes, shards[-1].values())) + num_bytes(shape) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    files = {f"model-{n:05}-of-{len(shards):05}.safetensors": shard for n, shard in enumerate(shards, 1)}
    for file, shard in files.items():
        write_shard(folder / file, shard)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {}, "weight_map": {name: file for file, shard in files.items() for name in shard}},
    )
    return layers


def write_shard(path: Path, shapes: dict[str, list[int]]) -> None:
    """By the letter of the format; finite bfloat16 values, another run of them in each tensor."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + num_bytes(shape)]}
        end += num_bytes(shape)
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    block = bytes(byte & 0x3F if place % 2 else byte for place, byte in enumerate(os.urandom(2**20)))
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for number, shape in enumerate(shapes.values()):
            start = 2 * (977 * number % 2**18)
            left = num_bytes(shape)
            while left:
                piece = block[start : start + left]
                file.write(piece)
                left, start = left - len(piece), 0


def num_bytes(shape: list[int]) -> int:
    size = 2
    for each in shape:
        size *= each
    return size


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def same_tensors(one: Path, other: Path) -> None:
    """That both ways made the same model: every tensor of it, bit for bit."""
    from secateur.surgery.matching import same_tensor
    from secateur.surgery.source import read_weights

    (a, _), (b, _) = read_weights(one), read_weights(other)
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:3]
    assert all(same_tensor(a[name], b[name]) for name in a)


def version_of_mergekit(python: str) -> str:
    script = "from importlib.metadata import version; print(version('mergekit'))"
    done = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)  # noqa: S603
    return done.stdout.strip()


def made_anew(page: str) -> str:
    """The page with its table made from the result."""
    return with_tables(page, lambda name: table() if name == "cut" else None)


def table() -> str:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    rounds, written = result["rounds"], result["written_bytes"]
    of_cp = statistics.median(each["seconds"] for each in rounds["cp"])
    copying = [{"seconds": a["seconds"] - b["seconds"]} for a, b in zip(rounds["cut"], rounds["dry"], strict=True)]
    rows = []
    for way, name in NAMES.items():
        times = copying if way == "copying" else rounds.get(way, [])
        if not times:
            continue
        seconds = [each["seconds"] for each in times]
        median = statistics.median(seconds)
        peaks = [f"{max(each[kind] for each in times) / 1e6:.0f}" if kind in times[0] else "" for kind in MEMORY]
        speeds = ["", ""] if way == "dry" else [f"{written / median / 1e6:.0f}", f"{of_cp / median:.2f}"]
        label = name.format(**result["versions"])
        rows.append([label, f"{median:.1f} ({min(seconds):.1f} to {max(seconds):.1f})", *speeds, *peaks])
    busy = ", before all other programs (`chrt -r 5`), as there were some" if result["real_time"] else ""
    return (
        f"{len(result['dropped'])} of {result['layers']} layers of a Llama of {result['dense_bytes'] / 1e9:.2f} GB in shards of "
        f"2 GB, {written / 1e9:.2f} GB written; {len(rounds['cp'])} rounds, the ways in turn; {result['threads']} cores, load "
        f"{result['load']:.1f}{busy}.\n\n" + markdown(HEAD, rows)
    )


MEMORY = ("resident_bytes", "anonymous_bytes")
HEAD = ["way", "seconds: median (least to most)", "MB/s", "speed, of cp", "peak memory, MB", "of it not of files, MB"]
NAMES = {
    "cp": "`cp -r` of the new files",
    "cut": "`secateur cut`",
    "dry": "of it imports and checks (`--dry-run`)",
    "copying": "of it copying",
    "mergekit": "mergekit {mergekit}, passthrough",
}


if __name__ == "__main__":
    main()
