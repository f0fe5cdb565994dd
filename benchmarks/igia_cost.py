"""What watching the gradients costs: plain LoRA training, with `IGIACallback`, and in the published manner.

    python benchmarks/igia_cost.py MODEL [memory]   # writes results/igia_cost.json, or the memory in it anew;
                                                    # gradpruner.py tables writes the table

Times are of the same optimiser step in turn (plain, watched, published), so that noise hits all alike; peak memory is of one
process each. The published manner is written here from the formula: after each step the dense products ∇B·∇A of all weights
are pickled to disk. Factors at the shapes of Llama-3.1-8B are computed, and allocated.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "igia_cost.json"

BATCH, LENGTH, RANK, ROUNDS = 4, 256, 8, 8
STEPS = (10, 40)
LONG = 1024  # tokens of a row where memory is measured once more, as long as `secateur tune` takes them
MEMORY = ((STEPS[0], LENGTH), (STEPS[1], LENGTH), (STEPS[1], LONG))
LLAMA = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096),
         "gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}  # (m, n) of Llama-3.1-8B's layers  # fmt: skip
LLAMA_LAYERS = 32


class Training:
    """LoRA training of one model, a step at a time."""

    def __init__(self, source: str) -> None:
        import torch

        from secateur.decoder import Decoder
        from secateur.loading import autocast_dtype, load_model
        from secateur.training.lora import attach_lora

        decoder = Decoder(load_model(source, dtype="float32"))
        self.model = attach_lora(decoder, rank=RANK, alpha=32)
        self.layers = decoder.layers
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        self.precision = autocast_dtype("auto", decoder.device)
        self.device = decoder.device
        self.model.train()

    def step(self, seed: int, watch: Any = None, length: int = LENGTH) -> float:
        """Seconds of one optimiser step, with what `watch` does before the update."""
        import torch

        ids = torch.randint(100, 40_000, (BATCH, length), generator=torch.Generator().manual_seed(seed)).to(self.device)
        start = time.perf_counter()
        with torch.autocast(self.device.type, self.precision or torch.bfloat16, enabled=self.precision is not None):
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if watch is not None:
            watch()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def published(self, folder: str) -> Any:
        """The published manner: the dense product of every weight, all of them pickled after each step."""
        number = 0

        def save() -> None:
            nonlocal number
            number += 1
            products = {
                f"{layer}.{path}": (part.lora_B["default"].weight.grad @ part.lora_A["default"].weight.grad).cpu()
                for layer, module in enumerate(self.layers)
                for path, part in module.named_modules()
                if hasattr(part, "lora_A") and len(part.lora_A)
            }
            with Path(folder, f"{number % 2}.pkl").open("wb") as file:  # two in turn: the disk is not what is measured
                pickle.dump(products, file)

        return save


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    from secateur.report.record import versions
    from secateur.values import write_json

    source = sys.argv[1]
    if sys.argv[2:] == ["memory"]:
        report = json.loads(RESULT.read_text(encoding="utf-8"))
        write_json(RESULT, {**report, "versions": versions(), "memory": measure_memory(source)})
        return
    report: dict[str, Any] = {
        "versions": versions(), "batch": BATCH, "tokens": LENGTH, "rank": RANK, "rounds": ROUNDS,
        "time": measure_time(source), "memory": measure_memory(source), "llama": in_a_process(measure_llama),
    }  # fmt: skip
    write_json(RESULT, report)
    print(json.dumps({key: report[key] for key in ("time", "memory", "llama")}, indent=1))


def measure_time(source: str) -> dict[str, Any]:
    """Ratios to the plain step of the same round."""
    from secateur.training.igia import IGIA

    training = Training(source)
    igia = IGIA(training.model)
    with tempfile.TemporaryDirectory() as folder:
        ways = {"plain": None, "watched": igia.add_step, "published": training.published(folder)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS + 1):  # the first warms up
            for name, watch in ways.items():
                seconds[name].append(training.step(number, watch))
    ratios = {
        name: [one / plain for one, plain in zip(seconds[name][1:], seconds["plain"][1:], strict=True)]
        for name in ("watched", "published")
    }
    reading = []  # what the callback adds, alone: not hidden in the noise of a step
    for number in range(ROUNDS):

        def read() -> None:
            start = time.perf_counter()
            igia.add_step()
            reading.append(time.perf_counter() - start)

        training.step(number, read)
    return {
        "plain_seconds": statistics.median(seconds["plain"][1:]),
        "reading_seconds": statistics.median(reading),
        "reading_share": statistics.median(reading) / statistics.median(seconds["plain"][1:]),
        **{
            name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for name, values in ratios.items()
        },
    }


def measure_memory(source: str) -> dict[str, Any]:
    """Peak memory of a process that trains so many steps on rows of so many tokens, bytes."""
    return {
        named(way, steps, length): in_a_process(peak_of, source, way, steps, length)
        for steps, length in MEMORY
        for way in ("plain", "watched", "scores only")
    }


def named(way: str, steps: int, length: int) -> str:
    return f"{way}, {steps} steps" + (f", {length} tokens" if length != LENGTH else "")


def in_a_process(function: Any, *arguments: Any) -> Any:
    """Call it in a fresh process: memory that this one has given back, and not the system, would hide what it takes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_of(source: str, way: str, steps: int, length: int) -> int:
    from secateur.evaluation.memory import PeakMemory
    from secateur.training.igia import IGIA

    with PeakMemory() as peak:
        training = Training(source)
        watch = None if way == "plain" else IGIA(training.model, keep_factors=way == "watched").add_step
        many = (
            steps // 2
        )  # each of two real steps is read so often: the memory of `steps` steps, and then a step with it
        for number in range(3):
            training.step(
                number, (lambda: [watch() for _ in range(many)]) if watch is not None and number < 2 else None, length
            )
    return peak.bytes


def measure_llama() -> dict[str, Any]:
    """Bytes in float32 at the shapes of Llama-3.1-8B: on paper, and as the factors of one layer take when allocated."""
    import psutil
    import torch

    steps = STEPS[-1]
    factors = 4 * steps * RANK * sum(m + n for m, n in LLAMA.values())
    dense = 4 * sum(m * n for m, n in LLAMA.values())
    before = psutil.Process().memory_info().rss
    held = [
        (torch.ones(m, RANK), torch.ones(RANK, n))
        for _ in range(LLAMA_LAYERS)
        for m, n in LLAMA.values()
        for _ in range(steps)
    ]
    allocated = psutil.Process().memory_info().rss - before
    del held
    return {
        "steps": steps, "factors_on_paper": LLAMA_LAYERS * factors, "factors_allocated": allocated,
        "dense_sum_on_paper": LLAMA_LAYERS * dense, "dense_every_step_on_paper": LLAMA_LAYERS * dense * steps,
    }  # fmt: skip


def table() -> str:
    if not RESULT.exists():
        return "not measured"
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    spent, memory, llama = report["time"], report["memory"], report["llama"]
    rows = [
        ["time of a step with the callback, of the plain step's", ratio(spent["watched"])],
        ["… the callback's own work, of the plain step's time", f"{100 * spent['reading_share']:.1f} %"],
        ["time of a step in the published manner, of the plain step's", ratio(spent["published"])],
    ]
    for steps, length in MEMORY:
        plain = memory.get(named("plain", steps, length))
        for way in ("watched", "scores only"):
            peak = memory.get(named(way, steps, length))
            if plain and peak:
                what = f"peak memory over {steps} steps of {BATCH} x {length} tokens, {way}, of the plain training's"
                rows.append([what, f"{peak / plain:.3f}"])
    rows += [
        [
            f"factors of {llama['steps']} steps at Llama-3.1-8B's shapes, on paper",
            f"{llama['factors_on_paper'] / 1e9:.2f} GB",
        ],
        ["… allocated", f"{llama['factors_allocated'] / 1e9:.2f} GB"],
        ["the dense sum of squares there, on paper", f"{llama['dense_sum_on_paper'] / 1e9:.1f} GB"],
        [
            "the dense products of every step there, as published, on disk",
            f"{llama['dense_every_step_on_paper'] / 1e9:,.0f} GB",
        ],
    ]
    return markdown(["what", "measured"], rows)


def ratio(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['least']:.2f} to {values['most']:.2f})"


if __name__ == "__main__":
    main()
