"""Runs that are killed, or that fill their disk, at random moments, then resumed, and held to runs that nothing disturbed.

    python benchmarks/faults.py run --kills 200 --full-disks 50 --work DIR     # writes results/faults.json, and the page
    python benchmarks/faults.py tables                                         # rewrites the table in docs/reliability.md

Each command works on a small random model. This process imports everything once and forks a child for each run, so that a run
takes seconds. A run is killed at a moment drawn uniformly over what it takes undisturbed, resumed, perhaps killed again, until it
is done. The disk is a tmpfs (root only), smaller than what the run needs by a random share, that then grows; without
root it is a limit on the size of a file, and the result says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "faults.json"
PAGE = HERE.parent / "docs" / "reliability.md"

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
TIMES = {"timings", "created", "peak_memory_bytes", "seconds", "command", "began", "prefill_tokens_per_second",
         "decode_tokens_per_second", "prefill_tokens_per_second_by_turn", "decode_tokens_per_second_by_turn"}  # fmt: skip
RECORDS = {"record.json", "request.json", "adapter_config.json"}
PATIENCE = 120.0
LAYERS = ("--drop", "2")
TEXT = ("--sequence-length", "32", "--num-sequences", "8", "--num-eval-sequences", "8")
OFTEN = ("--checkpoint-minutes", "0")
ELDER = ("--elder.joint-steps", "4", "--elder.steps", "8")
TUNE = ("--method", "gradpruner", "--gradpruner.scoring-steps", "3", "--epochs", "2", "--batch-size", "8")


class Place:
    """What all runs work on: paths."""

    def __init__(self, folder: Path) -> None:
        names = ("model", "text.txt", "task.jsonl", "compare.yaml")
        self.model, self.text, self.task, self.comparison = (str(folder / name) for name in names)

    def commands(self) -> dict[str, list[str]]:
        """What is killed, without --out; `secateur` is left out."""
        prune = ["prune", self.model, "--data", self.text, *LAYERS, *TEXT]
        tune = ["tune", self.model, "--data", self.task, *LAYERS, *TUNE]
        return {
            "prune": [*prune, *ELDER, *OFTEN, "--recover", "full"],
            "prune, LoRA": [*prune, *ELDER, *OFTEN, "--elder.train", "lora", "--recover", "lora"],
            "prune, no checkpoints": [*prune, *ELDER, "--recover", "distill"],
            "tune": [*tune, *OFTEN, "--train", "full"],
            "tune, LoRA": [*tune, *OFTEN, "--train", "lora"],
            "cut": ["cut", self.model, "--layers", "1,3", "--max-shard-size", "100KB"],
            "compare": ["compare", self.comparison],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--kills", type=int, default=200, help="at least so many runs are killed")
    run.add_argument("--full-disks", type=int, default=50, help="runs on a disk that fills up")
    run.add_argument("--work", type=Path, help="where to work; a temporary directory if not given")
    run.add_argument("--seed", type=int, default=0, help="of the commands, the signals and the moments")
    run.add_argument("--only", nargs="*", help="commands, as the table calls them")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "run":
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            found = Faults(Path(folder), options.seed, options.only).run(options.kills, options.full_disks)
        RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(found["failures"], indent=2))
    PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


# ---- a run -----------------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A command in a process of its own."""

    words: Sequence[str]
    errors: Path
    limit: int | None = None
    """Bytes of a file at most."""

    pid: int = 0
    code: int | None = None

    def start(self) -> Child:
        """Fork."""
        self.pid = os.fork()
        if not self.pid:
            self._become()
        return self

    def _become(self) -> None:
        """In the child: run the command and end."""
        code = 70
        try:
            handle = os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
            os.chdir(self.errors.parent)  # in no working directory of git, whose revision a record would hold
            from secateur.cli import main as secateur

            code = secateur([*self.words, "--quiet"])
        finally:
            os._exit(code)

    def done(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds: float = PATIENCE, look: Callable[[], None] = lambda: None) -> int:
        """The exit code, negative the signal that ended it."""
        end = time.monotonic() + seconds
        while not self.done():
            look()
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"{' '.join(self.words)} did not end within {seconds:.0f} s")
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    def said(self) -> list[str]:
        """Its lines on standard error."""
        return self.errors.read_text(encoding="utf-8", errors="replace").splitlines() if self.errors.exists() else []


@dataclass
class Faults:
    """All runs, and what came of them."""

    folder: Path
    seed: int
    only: list[str] | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311  moments to kill at
        self.place = Place(self.folder)
        prepare(self.place)
        self.commands = {
            name: words for name, words in self.place.commands().items() if not self.only or name in self.only
        }
        self.expected: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}

    def run(self, kills: int, full_disks: int) -> dict[str, Any]:
        """The whole matrix; what goes into the result file."""
        from secateur.report.record import versions

        for name in self.commands:
            out = self.folder / "kill" / "out"  # the size of an adapter's configuration depends on the path's length
            out.parent.mkdir(exist_ok=True)
            start = time.monotonic()
            child = self.started(name, out)
            assert child.wait() == 0, child.said()
            self.seconds[name], self.expected[name] = time.monotonic() - start, fingerprint(out)
            shutil.rmtree(out)
        killed = self.killed(kills)
        stand_in = os.geteuid() != 0
        full = self.full(full_disks, stand_in)
        return {
            "seed": self.seed, "versions": versions(), "kills": killed, "full_disks": full,
            "disk": "a limit on the size of a file" if stand_in else "tmpfs", "failures": self.failures,
        }  # fmt: skip

    def killed(self, kills: int) -> dict[str, dict[str, int]]:
        """Kill and resume until there were so many kills; counts a command."""
        counts = {name: dict.fromkeys([*SIGNALS, "runs", "equal"], 0) for name in self.commands}
        while sum(row[each] for row in counts.values() for each in SIGNALS) < kills:
            name = self.random.choice(list(self.commands))
            row, out = counts[name], self.folder / "kill" / "out"
            self.until_done(name, out, row)
            row["runs"] += 1
            row["equal"] += self.check(name, out)
            print(f"{name}: {row}", flush=True)
        return counts

    def until_done(self, name: str, out: Path, row: dict[str, int]) -> None:
        """Start, kill, look, go on; at most five times, and the first time for sure."""
        for attempt in range(6):
            child = self.started(name, out)
            which, moment = self.random.choice(list(SIGNALS)), self.random.uniform(0, self.seconds[name])
            kills, twice = attempt == 0 or (attempt < 5 and self.random.random() < 0.5), self.random.random() < 0.2
            if kills:
                time.sleep(moment)
                if not child.done():
                    for _ in range(1 + twice):
                        os.kill(child.pid, SIGNALS[which])
                    row[which] += 1
            code, what = child.wait(), f"{which} at {moment:.2f} s" if kills else "undisturbed"
            allowed = {0, *({"SIGKILL": (-9,), "SIGINT": (130,), "SIGTERM": (143,)}[which] if kills else ())}
            if code not in allowed or any("Traceback" in line for line in child.said()):
                self.fail(name, f"{what}: exit code {code}", child.said())
            if out.exists() and name != "compare" and fingerprint(out) != self.expected[name]:
                self.fail(name, f"{what}: something else than the result is at --out", child.said())
            if code == 0:
                return

    def started(self, name: str, out: Path, limit: int | None = None) -> Child:
        """A run, or one that goes on."""
        words = [*self.commands[name], "--out", str(out)]
        if out.with_name("out.work").joinpath("request.json").exists():
            words.append("--resume")
        elif out.exists() and name != "compare":
            words.append("--overwrite")  # killed after it had written all, and `cut` has nothing that says so
        return Child(words, self.folder / "errors.txt", limit).start()

    def full(self, runs: int, stand_in: bool) -> dict[str, dict[str, int]]:
        """Fill the disk, make room and go on; counts a command."""
        counts = {name: dict.fromkeys(["runs", "full", "one line", "equal"], 0) for name in self.commands}
        needs = {name: self.needed(name, stand_in) for name in self.commands} if runs else {}
        for number in range(runs):
            name = list(self.commands)[number % len(self.commands)]
            size, row = int(self.random.uniform(0.02, 0.98) * needs[name]), counts[name]
            with disk(self.folder / "disk", None if stand_in else size) as grow:
                out = self.folder / "disk" / "out"
                child = self.started(name, out, size if stand_in else None)
                code = child.wait()
                row["runs"] += 1
                if code:
                    row["full"] += 1
                    said = child.said()
                    row["one line"] += len(said) == 1 and said[0].startswith("error: ")
                    if code != 1 or len(said) != 1 or "full" not in said[0]:
                        self.fail(name, f"disk of {size} bytes: exit code {code}", said)
                    if out.exists() and name != "compare":
                        self.fail(name, f"disk of {size} bytes: something is at --out", said)
                grow()
                if code:
                    child = self.started(name, out)
                    if child.wait():
                        self.fail(name, f"disk of {size} bytes, then grown", child.said())
                row["equal"] += self.check(name, out)
            print(f"{name}, {size} of {needs[name]} bytes: {row}", flush=True)
        return counts

    def needed(self, name: str, stand_in: bool) -> int:
        """Bytes on the disk at most while a run lasts; of its largest file where files are limited."""
        with disk(self.folder / "disk", None if stand_in else 1 << 30) as _:
            out, most = self.folder / "disk" / "out", [0]

            def look() -> None:
                files = (path for path in (self.folder / "disk").rglob("*") if stand_in)
                used = max((size_of(path) for path in files), default=0) if stand_in else None
                most[0] = max(most[0], shutil.disk_usage(self.folder / "disk").used if used is None else used)

            self.started(name, out).wait(look=look)
        return most[0]

    def check(self, name: str, out: Path) -> bool:
        """Whether the result is that of the undisturbed run and nothing else is there; it is removed."""
        found = fingerprint(out)
        beside = sorted(path.name for path in out.parent.iterdir())
        different = sorted(
            file for file in found.keys() | self.expected[name] if found.get(file) != self.expected[name].get(file)
        )
        if different or beside != ["out"]:
            self.fail(name, f"not as undisturbed: {different}; beside it: {beside}", [])
        for path in out.parent.iterdir():
            shutil.rmtree(path)
        return not different and beside == ["out"]

    def fail(self, name: str, what: str, said: list[str]) -> None:
        """Write down what must not be."""
        self.failures.append(
            {"command": name, "what": what, "said": [line.replace(str(self.folder), "DIR") for line in said[-3:]]}
        )
        print(f"FAILED {self.failures[-1]}", flush=True)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextmanager
def disk(folder: Path, size: int | None) -> Any:
    """A directory on a file system of so many bytes, which the value makes larger; on the one that is there if None."""
    folder.mkdir()
    if size is not None:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)  # noqa: S603
    try:
        yield lambda: size is None or subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)  # noqa: S603, S607
    finally:
        if size is not None:
            subprocess.run(["umount", str(folder)], check=True)  # noqa: S603, S607
        shutil.rmtree(folder)


def fingerprint(out: Path) -> dict[str, Any]:
    """What must be equal of a result: the bytes of its files, and of records what is no time."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = file.relative_to(out).as_posix()
        if file.suffix in (".log", ".lock", ".svg", ".md", ".html"):  # times and names of directories
            found[name] = "there"
        elif file.name in RECORDS or file.parent.name in ("cells", "plans", "dense"):
            found[name] = timeless(json.loads(file.read_text(encoding="utf-8")))
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def timeless(value: Any) -> Any:
    """Without times, and without the name of the run's directory."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in TIMES | {"base_model_name_or_path"}}
    return [timeless(item) for item in value] if isinstance(value, list) else value


# ---- what runs work on -------------------------------------------------------------------------------------------------------


def prepare(place: Place) -> None:
    """The model, the texts and the comparison; and every import, which the children then share."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    import peft  # noqa: F401
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import secateur.compare.run
    import secateur.pipeline
    import secateur.tuning  # noqa: F401

    torch.set_num_threads(1)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
        )
    ).save_pretrained(place.model)  # fmt: skip
    letters = [
        chr(code) if 32 < code < 127 else chr(256 + code) for code in range(127)
    ]  # as byte-level BPE spells bytes
    vocabulary = {"<unk>": 0} | {letter: code + 1 for code, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=256).save_pretrained(  # noqa: S106
        place.model
    )
    lines = [f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(300)]
    Path(place.text).write_text("".join(lines), encoding="utf-8")
    rows = [{"text": f"{a} and {b}", "label_text": ("even", "odd")[(a + b) % 2]} for a in range(10) for b in range(3)]
    Path(place.task).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    comparison = {
        "models": [place.model], "drops": [1, 2], "recovery": [{"kind": "none"}, {"kind": "full"}],
        "text": {"data": place.text, "sequence_length": 32, "num_sequences": 8, "num_eval_sequences": 4},
        "methods": ["magnitude", {"method": "elder", "settings": {"joint_steps": 2, "steps": 2, "shortlist": 2}}],
    }  # fmt: skip
    Path(place.comparison).write_text(json.dumps(comparison), encoding="utf-8")  # JSON is YAML


# ---- the table ---------------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its tables made from the result."""
    return with_tables(page, table)


def table(name: str) -> str:
    """A row a command."""
    if not RESULT.exists():
        return "Not measured yet."
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    if name == "kills":
        head = ["command", *SIGNALS, "runs", "equal to the undisturbed run"]
        rows = [[f"`secateur {command}`", *row.values()] for command, row in found["kills"].items()]
    else:
        head = ["command", "runs", "disk full on the way", "said in one line", "equal to the undisturbed run"]
        rows = [[f"`secateur {command}`", *row.values()] for command, row in found["full_disks"].items()]
    total = ["all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))]
    return markdown(head, [[str(cell) for cell in row] for row in [*rows, total]])


if __name__ == "__main__":
    main()
