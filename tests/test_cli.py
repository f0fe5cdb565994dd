"""The command line: one line for every wrong request, one object with --json, and nothing half-written ever."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import DistilBertConfig, DistilBertModel, T5Config, T5ForConditionalGeneration

from secateur import cli, demo, pipeline, stages, task_workbench, tuning
from secateur.cli import main
from secateur.cli.words import parse_amount, parse_layers, with_underscores
from secateur.errors import RequestError, TrainingDivergedError, WriteError
from secateur.estimation.hardware import CARDS
from secateur.methods import METHODS
from secateur.surgery.files import cut_checkpoint

QUICK = ["--elder.joint-steps=3", "--elder.first-steps=2", "--elder.round-steps=1", "--elder.steps=2"]
SIZE = ["--sequence-length=32", "--num-sequences=8", "--num-eval-sequences=4"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(600)))
    return str(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def _quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {**pipeline.prune.__kwdefaults__, "speed": False, "prompts": ("a",)}
    monkeypatch.setattr(pipeline.prune, "__kwdefaults__", defaults)


def one_line(captured: Any) -> str:
    """What a refused request must look like; the line."""
    assert captured.out == ""
    lines = captured.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert lines == errors, captured.err
    assert "Traceback" not in captured.err
    return errors[0]


# ---- wrong requests --------------------------------------------------------------------------------------------------------

# words after MODEL, DATA and OUT are filled in → what the line must name, what to do
WRONG: dict[str, tuple[str, str]] = {
    "prnue MODEL": ("unknown command 'prnue'", "did you mean 'prune'"),
    "--hlep": ("unknown option '--hlep'", "did you mean '--help'?"),
    "--quiet prune MODEL": ("unknown option '--quiet'", "name the command before its options"),
    "xyz": ("unknown command 'xyz'", "choose one of demo, score, prune, tune, cut, check, carry, push, eval, bench, compare"),
    "prune": ("missing MODEL, --data, --out", "see secateur prune --help"),
    "prune MODEL --data DATA --drop 2": ("missing --out", "--help"),
    "prune MODEL --data DATA --out OUT --drop 2 --method eldr": ("unknown method 'eldr'", "did you mean 'elder'"),
    "prune MODEL --data DATA --out OUT --drop 2 --method zzzz": ("unknown method 'zzzz'", "choose one of elder"),
    "prune MODEL --data DATA --out OUT --drop 2 --sequence-lenght 3": ("--sequence", "did you mean --sequence-length?"),
    "prune MODEL --data DATA --out OUT --drop 2 --elder.lambda1 3": ("--elder.lambda1", "did you mean --elder.lambda-1?"),
    "prune MODEL --data DATA --out OUT --drop 6": ("cannot drop 6 of 6 layers", "choose 1..5"),
    # Said before the weights are read, which are damaged.
    "prune CORRUPT --data DATA --out OUT --drop 6": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "prune CORRUPT --data DATA --out OUT --layers 4,9": ("9", "0..5"),
    "score CORRUPT --data DATA --drop 6": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "prune MODEL --data DATA --out OUT --drop 0": ("cannot drop 0 of 6 layers", "choose 1..5"),
    "prune MODEL --data DATA --out OUT --drop -1": ("cannot drop -1 of 6 layers", "choose 1..5"),
    "prune MODEL --data DATA --out OUT --drop abc": ("'abc'", "a count such as 8 or a share such as 25%"),
    "prune MODEL --data DATA --out OUT --drop 150%": ("'150%'", "less than 100%"),
    "prune MODEL --data DATA --out OUT --drop 0%": ("'0%'", "more than 0%"),
    "prune MODEL --data DATA --out OUT --drop nan": ("'nan'", "less than 100%"),
    "prune MODEL --data DATA --out OUT --drop 2 --layers 1": ("--drop and --layers each say", "give one of them"),
    "prune MODEL --data DATA --out OUT": ("nothing says how much goes", "give --drop 20%, --target-params 80% or --layers"),
    "prune MODEL --data DATA --out OUT --max-ppl-increase 10": ("not '10'", "a share such as 10%"),
    "prune MODEL --data DATA --out OUT --max-ppl-increase x%": ("not 'x%'", "a share such as 10%"),
    "prune MODEL --data DATA --out OUT --max-ppl-increase 0%": ("not '0%'", "more than 0%"),
    "prune MODEL --data DATA --out OUT --max-ppl-increase=-5%": ("not '-5%'", "more than 0%"),
    "prune MODEL --data DATA --out OUT --max-ppl-increase inf": ("not 'inf'", "more than 0%"),
    "prune MODEL --data DATA --out OUT --target-speedup fast": ("not 'fast'", "a ratio above 1 such as 1.3"),
    "prune MODEL --data DATA --out OUT --target-speedup 1": ("not '1'", "a ratio above 1 such as 1.3"),
    "prune MODEL --data DATA --out OUT --target-speedup 30%": ("not '30%'", "a ratio above 1 such as 1.3"),
    "prune MODEL --data DATA --out OUT --target-speedup nan": ("not 'nan'", "a ratio above 1 such as 1.3"),
    "prune MODEL --data DATA --out OUT --drop 2 --target-speedup 1.3": ("--drop and --target-speedup", "give one of them"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover half": ("half", "one of none, lora, partial, full, distill"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-tokens 20": ("recover_tokens=20", "choose 32"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-tokens 0": ("recover_tokens must be 1", "not 0"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-tokens 1e3x": ("--recover-tokens", "not '1e3x'"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-rate -1": ("recover_rate must be above 0", "not -1"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-batch 0": ("recover_batch must be 1", "not 0"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-micro-batch 3": (
        "recover_micro_batch=3", "does not divide recover_batch=2",
    ),
    "prune MODEL --data DATA --out OUT --drop 2 --recover-tokens 640": (
        "--recover-tokens has no effect with --recover none", "add --recover lora or partial",
    ),
    "prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-rank 8": (
        "--recover-rank has no effect with --recover full", "add --recover lora",
    ),
    "prune MODEL --data DATA --out OUT --drop 2 --recover lora --distill-top-k 9": (
        "--distill-top-k has no effect with --recover lora", "add --recover distill",
    ),
    "prune MODEL --data DATA --out OUT --drop 2 --recover distill --distill-weight 2": ("distill_weight", "not 2"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover distill --distill-temperature 0": ("distill_temperature", "not 0"),
    'prune MODEL --data DATA --out OUT --drop 2 --recover full --recover-trainer {"optim":"nope"}': ("'nope'", "choose adamw"),
    "prune MODEL --data DATA --out OUT --layers 9": ("no layer 9", "0..5"),
    "prune MODEL --data DATA --out OUT --layers 1,1": ("a layer twice: [1, 1]", "name each layer once"),
    "prune MODEL --data DATA --out OUT --layers 0-5": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "prune MODEL --data DATA --out OUT --layers 0-99999999999": ("layers", "choose 1..5"),
    "prune MODEL --data DATA --out OUT --layers 4-2": ("4-2 runs backwards", "write 2-4"),
    "prune MODEL --data DATA --out OUT --layers a": ("not 'a'", "numbers and ranges such as 3,7,20-27"),
    "prune MODEL --data DATA --out OUT --layers ²": ("not '²'", "numbers and ranges"),
    "prune MODEL --data DATA --out OUT --target-params 60": ("not '60'", "a share such as 75%"),
    "prune MODEL --data DATA --out OUT --target-params 1%": ("1 % of the parameters", "choose more"),
    "prune MODEL --data nowhere.txt --out OUT --drop 2": ("'nowhere.txt'", "give a"),
    "prune MODEL --data EMPTY --out OUT --drop 2": ("empty.txt' is empty", "give text"),
    "prune MODEL --data SHORT --out OUT --drop 2": ("short.txt' has", "choose a smaller --sequence-length"),
    "prune MODEL --data DATA --out OUT --drop 2 --sequence-length 1": ("sequence_length must be 2 or more", "not 1"),
    "prune MODEL --data DATA --out OUT --drop 2 --num-sequences -4": ("num_sequences must be 1 or more", "not -4"),
    "prune MODEL --data DATA --out OUT --drop 2 --batch-size 0": ("batch_size must be 1 or more", "not 0"),
    "prune MODEL --data DATA --out OUT --drop 2 --seed x": ("--seed: expects int of 0 or more and below", "not 'x'"),
    "prune MODEL --data DATA --out OUT --drop 2 --precision fp8": ("not 'fp8'", "one of auto, fp32, bf16"),
    "prune MODEL --data DATA --out OUT --drop 2 --elder.lambda-1 abc": ("--elder.lambda-1: expects float, not 'abc'", "--help"),
    "prune MODEL --data DATA --out OUT --drop 2 --elder.train half": ("'half'", "one of full, lora, partial"),
    "prune MODEL --data DATA --out OUT --drop 2 --recover lorra": ("not 'lorra'", "did you mean lora?"),
    "prune MODEL --data DATA --out OUT --drop 2 --shortgpt.sauce 1": ("--shortgpt.sauce", "shortgpt has no settings"),
    "prune --method eldr --help": ("unknown method 'eldr'", "did you mean 'elder'?"),
    "eval MODEL --task piqa": ("unknown option --task", "did you mean --tasks or --task-batch-size?"),
    "prune MODEL --dat DATA --out OUT --drop 2": ("unknown option --dat", "did you mean --data?"),
    "prune MODEL --data DATA --out OUT --dro 2": ("unknown option --dro", "did you mean --drop?"),
    "prune MODEL --data DATA --out OUT --drop 2 --max-p 1%": ("unknown option --max-p", "did you mean --max-ppl-increase?"),
    "prune MODEL --data DATA --out OUT --drop 2 --elder.joint-step 3": ("unknown", "did you mean --elder.joint-steps?"),
    "prune MODEL --data DATA --out OUT --drop 2 --conf x.yaml": ("unknown option --conf", "did you mean --config?"),
    "prune --hel": ("unknown option --hel", "did you mean --help?"),
    "help prnue": ("unknown command 'prnue'", "did you mean 'prune'"),
    "completion": ("missing SHELL (bash, zsh, fish)", "--help"),
    "completion fsh": ("not 'fsh'", "did you mean fish?"),
    "prune MODEL --data DATA --out OUT --drop 2 --config MISSPELT": ("misspelt.yaml: Option", "mean elder.learning_rate?"),
    "prune MODEL --data DATA --out OUT --drop 2 --elder.absorb yes": ("--elder.absorb", "one of map, projection or null"),
    "prune MODEL --data DATA --out OUT --drop 2 --elder.steps -3": ("steps must be 0 or more", "not -3"),
    "prune MODEL --data DATA --out OUT --drop 2 --elder.weight-decay -1": ("weight_decay must be 0 or more", "not -1"),
    'prune MODEL --data DATA --out OUT --drop 2 --elder.trainer {"nope":1}': ("no option 'nope'", "TrainingArguments"),
    "prune MODEL --data DATA --out OUT --drop 2 --sleb.sequences 4": ("--sleb.sequences is a setting of sleb", "--method sleb"),
    "prune MODEL --data DATA --out OUT --drop 2 --method sleb --sleb.sequences 0": ("sequences must be above 0", "not 0"),
    "prune no/such/model --data DATA --out OUT --drop 2": ("no/such/model", "give a local checkpoint directory"),
    "prune FOLDER --data DATA --out OUT --drop 2": ("folder", "give a directory that holds config.json"),
    "prune ENCODER --data DATA --out OUT --drop 2": ("is a 'distilbert' model, not a causal language model", "choose one"),
    "prune T5 --data DATA --out OUT --drop 2": ("is a 't5' model, not a causal language model", "choose one"),
    "prune CORRUPT --data DATA --out OUT --drop 2": ("damaged safetensors", "copy or download it again"),
    "prune TRUNCATED --data DATA --out OUT --drop 2": ("damaged safetensors", "copy or download it again"),
    "prune MODEL --data DATA --out FOLDER --drop 2": ("folder is not empty", "choose another --out"),
    "prune MODEL --data DATA --out MODEL --drop 2": ("is not empty; choose another --out, or", "give --overwrite to replace"),
    "prune MODEL --data DATA --out FOLDER --drop 2 --overwrite": ("is not a checkpoint", "choose another"),
    "prune MODEL --data DATA --out SHORT --drop 2": ("short.txt is a file", "choose a directory"),
    "prune MODEL --data DATA --out SHORT/out --drop 2": ("short.txt", "choose an --out"),
    "prune MODEL --data DATA --out OUT --drop 2 --config BADYAML": ("bad.yaml is not YAML: line 2", "mend it"),
    "prune MODEL --data DATA --out OUT --drop 2 --config UNKNOWN": ("unknown.yaml: Option '", "did you mean num_sequences?"),
    "prune MODEL --data DATA --out OUT --drop 2 --config none.yaml": ("none.yaml is no file", "give a YAML file"),
    "score MODEL --data DATA --drop 6": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "score MODEL --data DATA --method random --out nowhere/plan.json": ("nowhere/plan.json", "a directory that exists"),
    "score MODEL --data DATA --method random --out FOLDER": ("folder", "choose a file"),
    "eval --data DATA": ("missing MODEL", "secateur eval --help"),
    "eval MODEL": ("nothing to measure", "give --data for perplexity, --tasks, or both"),
    "eval MODEL no/such/model --data DATA": ("no/such/model", "give a local checkpoint"),
    "eval MODEL --data nowhere.txt": ("'nowhere.txt'", "give a"),
    "eval MODEL --data SHORT --sequence-length 499": ("fewer than one window of 499", "choose a smaller --sequence-length"),
    "eval MODEL --data DATA --sequence-length 513": ("has a context of 512 tokens, fewer than 513", "choose 512 or fewer"),
    "prune MODEL --data DATA --drop 2 --out OUT --sequence-length 513": ("a context of 512 tokens", "choose 512 or fewer"),
    "score MODEL --data DATA --drop 2 --sequence-length 513": ("has a context of 512 tokens", "choose 512 or fewer"),
    "estimate MODEL --drop 2 --sequence-length 513": ("has a context of 512 tokens", "choose 512 or fewer"),
    "estimate MODEL": ("missing --drop", "secateur estimate --help"),
    "estimate MODEL --drop 6": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "estimate MODEL --drop 2 --devices 0": ("--devices must be 1 or more", "not 0"),
    "estimate MODEL --drop 2 --devices 3": ("a step of 2 rows cannot be shared by 3 processes", "a multiple of 3"),
    "estimate MODEL --drop 2 --method sleb --recover full --devices 4": ("a step of 2 rows cannot be shared", "a multiple of 4"),
    "estimate MODEL --drop 2 --hardware h10": ("unknown hardware 'h10'", "did you mean 'h100'?"),
    "estimate MODEL --drop 2 --method slep": ("unknown method 'slep'", "did you mean 'sleb'?"),
    "estimate MODEL --drop 2 --num-train -3": ("num_train must be 1 or more", "not -3"),
    "estimate MODEL --drop 2 --num-train 9 --mean-tokens 0": ("mean_tokens must be 1 or more", "not 0"),
    "estimate MODEL --drop 2 --num-train 9 --epochs -1": ("epochs must be above 0", "not -1"),
    "estimate MODEL --drop 2 --num-train 9 --batch-size 6 --micro-batch 4": ("micro_batch=4 does not divide", "batch_size=6"),
    "estimate MODEL --drop 2 --num-train 9 --devices 3": ("a step of 4 rows cannot be shared by 3 processes", "a multiple of 3"),
    "estimate MODEL --drop 2 --num-train 9 --recover lora": ("--recover has no effect beside --num-train", "leave it out"),
    "estimate MODEL --drop 2 --num-train 9 --num-sequences 4": ("--num-sequences has no effect beside", "leave it out"),
    "estimate MODEL --drop 2 --num-train 9 --elder.distil 0.5": ("a setting of elder", "give --method elder"),
    "estimate MODEL --drop 2 --lora-rank 4": ("--lora-rank has no effect without --num-train", "add that"),
    "estimate MODEL --drop 2 --train lora": ("--train has no effect without --num-train", "add that"),
    "estimate MODEL --drop 2 --num-train 9 --num_sequences=128": ("--num-sequences has no effect beside", "leave it out"),
    "estimate MODEL --drop 2 --tune-dense": ("--tune-dense has no effect without --num-train", "add that"),
    "estimate MODEL --drop 2 --mean-tokens 4": ("--mean-tokens has no effect without --num-train", "add that"),
    "estimate MODEL --drop 2 --sleb.sequences 4": ("--sleb.sequences is a setting of sleb", "--method sleb"),
    "estimate no/such/model --drop 2": ("no/such/model", "give a local checkpoint"),
    "bench": ("missing DENSE, PRUNED", "secateur bench --help"),
    "bench MODEL": ("missing PRUNED", "secateur bench --help"),
    "bench MODEL OTHER --batch-sizes 0": ("batch size must be 1 or more", "not 0"),
    "bench MODEL OTHER --batch-sizes 1,4,1": ("batch size 1 is given twice", "give each once"),
    "bench MODEL OTHER --batch-sizes 1;4": ("not '1;4'", "--batch-sizes takes numbers such as 1,4,16"),
    "bench MODEL OTHER --new-tokens 0": ("new_tokens must be 1 or more", "not 0"),
    "bench MODEL OTHER --repeats x": ("--repeats: expects int, not 'x'", "secateur bench --help"),
    "bench MODEL OTHER --prompt-tokens 600": ("has a context of 512 tokens", "choose 512 or fewer together"),
    "bench MODEL no/such/model": ("no/such/model", "give a local checkpoint"),
    "bench MODEL MODEL": ("is given twice", "give different models"),
    "bench MODEL T5": ("is a 't5' model, not a causal language model", "choose one"),
    "bench MODEL CORRUPT --no-memory": ("damaged safetensors", "copy or download it again"),
    "bench MODEL OTHER --cuda-graphs": ("CUDA graphs need a CUDA device", "leave them out"),
    "bench MODEL OTHER --out nowhere/b.json": ("cannot write the record to nowhere/b.json", "a directory that exists"),
    "compare MODEL --drops 1": ("unknown option --drops", "takes a CONFIG.yaml"),
    "help cut elder": ("not 'cut elder'", "a method if it has some"),
    "help score elder more": ("not 'score elder more'", "a method if it has some"),
    "help score shortgtp": ("unknown method 'shortgtp'", "did you mean 'shortgpt'?"),
    "score SmolLM2-135M-Instruct --data DATA": ("SmolLM2-135M-Instruct", "where `secateur demo` puts it: give that path"),
    "score MODEL --data wikitext2": ("cannot load 'wikitext2' from the Hub", "or python-docs, the text that comes with Python"),
    "compare": ("missing CONFIG.yaml, --out", "secateur compare --help"),
    "compare MATRIX": ("missing --out", "secateur compare --help"),
    "compare none.yaml --out OUT": ("cannot read none.yaml", "give a YAML file"),
    "compare BADYAML --out OUT": ("bad.yaml is not YAML: line 2", "mend it"),
    "compare UNKNOWN --out OUT": ("has no 'num_sequence'", "choose among models, text"),
    "compare MATRIX --out FOLDER": ("folder is not empty", "choose another --out"),
    "compare MATRIX --out SHORT": ("short.txt is a file", "choose a directory"),
    "compare MATRIX --out OUT --only x": ("no cell is called 'x'", "tiny-llama--shortgpt--drop2--none--seed0"),
    "compare MATRIX --out OUT --max-minutes -1": ("--max-minutes must be 0 or more", "not -1"),
    "compare MATRIX --out OUT --max-mintes 1": ("--max-m", "did you mean --max-minutes?"),
    "compare TOOMANY --out OUT": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "compare NOMODEL --out OUT": ("no/such/model", "give a local checkpoint directory"),
    "compare --tables FOLDER": ("holds no comparison", "give its folder"),
    "compare MATRIX --tables FOLDER": ("--tables only makes tables", "leave CONFIG.yaml and --out away"),
    "eval MODEL --data DATA --stride 0": ("the stride is 0", "choose 1..256"),
    "eval MODEL --data DATA --stride x": ("--stride: expects int, not 'x'", "--help"),
    "eval MODEL --data DATA --stide 3": ("--stide", "did you mean --stride?"),
    "eval MODEL --data DATA --limit 3": ("--limit says nothing without --tasks", "give that too"),
    "eval MODEL --tasks piqa --stride 3": ("--stride says nothing without --data", "give that too"),
    "eval MODEL --tasks piqa,,arc_easy": ("not 'piqa,,arc_easy'", "names with commas between them"),
    "eval MODEL --tasks piqa --limit 0": ("the limit is 0 items", "choose 1 or more"),
    "eval MODEL --tasks piqa --num-fewshot -1": ("is -1", "choose 0 or more"),
    "eval MODEL --tasks piqa --task-batch-size 0": ("batch size of tasks is 0", "choose 1 or more"),
    "eval MODEL --tasks piqa --include-path nowhere": ("nowhere is no folder", "to --include-path"),
    "eval MODEL --tasks piqa --include-path FOLDER": ("folder holds no task files", "to --include-path"),
    "eval no/such/model --tasks piqa": ("no/such/model", "give a local checkpoint"),
    "score MODEL --data DATA --seed 4294967296": ("not '4294967296'", "below 2**32"),
    "prune MODEL --data DATA --out OUT --drop 2 --config NOOPTIONS": ("no-options.env", "--print-config shows"),
    "demo --seed x": ("--seed: expects int of 0 or more and below 2**32, not 'x'", "secateur demo --help"),
    "demo --out FOLDER": ("folder is not empty", "choose another --out"),
    "demo MODEL": ("MODEL", "secateur demo --help"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, text: str) -> dict[str, str]:
    """The words that stand for something in `WRONG`."""
    base = tmp_path_factory.mktemp("places")
    (base / "empty.txt").write_text("")
    (base / "short.txt").write_text("Too short.")
    (base / "folder").mkdir()
    (base / "folder" / "mine.txt").write_text("mine")
    (base / "bad.yaml").write_text("a: [1\n")
    (base / "unknown.yaml").write_text("num_sequence: 3\n")
    (base / "no-options.env").write_text("PASSWORD=correcthorse\nOTHER=1\n")
    (base / "misspelt.yaml").write_text("elder: {learnin_rate: 1}\n")
    matrix = {"text": {"data": text, "sequence_length": 32}, "methods": ["shortgpt"], "drops": [2]}
    for name, given in (
        ("matrix", {"models": [str(tiny_checkpoint)]}), ("nomodel", {"models": ["no/such/model"]}),
        ("toomany", {"models": [str(tiny_checkpoint)], "drops": [2, 6]}),
    ):  # fmt: skip
        (base / f"{name}.yaml").write_text(yaml.safe_dump({**matrix, **given}))
    with torch.random.fork_rng():
        encoder = DistilBertConfig(vocab_size=128, dim=8, hidden_dim=8, n_layers=2, n_heads=1)
        DistilBertModel(encoder).save_pretrained(base / "encoder")
        T5ForConditionalGeneration(
            T5Config(vocab_size=128, d_model=8, d_kv=8, d_ff=8, num_layers=2, num_heads=1)
        ).save_pretrained(base / "t5")
    for name in ("corrupt", "truncated"):
        shutil.copytree(tiny_checkpoint, base / name)
    (base / "corrupt" / "model.safetensors").write_bytes(b"no safetensors at all")
    (base / "other").symlink_to(tiny_checkpoint)
    whole = (tiny_checkpoint / "model.safetensors").read_bytes()
    (base / "truncated" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return {
        "MODEL": str(tiny_checkpoint), "DATA": text, "EMPTY": str(base / "empty.txt"), "SHORT": str(base / "short.txt"),
        "FOLDER": str(base / "folder"), "ENCODER": str(base / "encoder"), "T5": str(base / "t5"), "OUT": "out",
        "OTHER": str(base / "other"), "CORRUPT": str(base / "corrupt"), "TRUNCATED": str(base / "truncated"),
        "BADYAML": str(base / "bad.yaml"), "UNKNOWN": str(base / "unknown.yaml"),
        "MISSPELT": str(base / "misspelt.yaml"),
        "NOOPTIONS": str(base / "no-options.env"),
        "MATRIX": str(base / "matrix.yaml"), "NOMODEL": str(base / "nomodel.yaml"), "TOOMANY": str(base / "toomany.yaml"),
    }  # fmt: skip


def filled(request: str, places: dict[str, str]) -> list[str]:
    return [
        places.get(word.split("/")[0], word.split("/")[0]) + word[len(word.split("/")[0]) :] for word in request.split()
    ]


@pytest.mark.parametrize("request_", WRONG)
def test_wrong_request_exits_2_with_one_line_that_names_value_and_remedy(
    request_: str,
    places: dict[str, str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    size = SIZE if request_.startswith("prune MODEL") and "--sequence-length" not in request_ else []
    size = [word for word in size if word.partition("=")[0] not in request_]
    code = main([*filled(request_, places), *size])
    line = one_line(capsys.readouterr())
    value, remedy = WRONG[request_]
    value, remedy = (places["MODEL"] if word == "MODEL" else word for word in (value, remedy))
    assert code == 2, line
    assert value in line
    assert remedy in line
    assert not list(here.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output_exits_2_before_anything_is_loaded(
    places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.chmod(0o500)
    try:
        code = main(["prune", places["MODEL"], "--data", places["DATA"], "--drop=2", "--out=out"])
    finally:
        here.chmod(0o700)
    assert "cannot write to" in one_line(capsys.readouterr())
    assert code == 2


def test_unwritable_output_is_refused_where_the_system_says_so(
    places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root, nothing is forbidden
    assert main(["prune", places["MODEL"], "--data", places["DATA"], "--drop=2", "--out=out"]) == 2
    line = one_line(capsys.readouterr())
    assert f"cannot write to {here}" in line
    assert "choose an --out" in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TrainingDivergedError("the loss became nan; try less"), "error: the loss became nan; try less"),
        (WriteError("cannot write out: No space left"), "error: cannot write out: No space left"),
        (RuntimeError("two\nlines"), "error: RuntimeError: two lines (details in "),
    ],
)
def test_failure_on_the_way_exits_1_with_one_line(
    places: dict[str, str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    says: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "prune", fail)
    assert main(["prune", places["MODEL"], "--data", places["DATA"], "--drop=2", "--out=out"]) == 1
    line = one_line(capsys.readouterr())
    assert line.startswith(says)
    log = re.search(r"details in (\S+);", line)
    if log is not None:
        assert "RuntimeError: two" in Path(log[1]).read_text()
        Path(log[1]).unlink()
    assert not list(here.iterdir())


def test_what_is_in_a_file_that_holds_no_options_is_not_shown(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", places["MODEL"], "--data", places["DATA"], "--config", places["NOOPTIONS"]]) == 2
    assert "correcthorse" not in capsys.readouterr().err


def test_debug_shows_the_traceback(places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "prune", places["MODEL"], "--data", places["DATA"], "--drop=abc", "--out=out"]) == 2
    assert "Traceback" in capsys.readouterr().err


# ---- help and options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_exits_0_and_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help", "--method", "all"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    shown = re.findall(r"^  (?:-\w, )?(--[\w.-]+)", captured.out, re.MULTILINE)
    parser = cli._parser(command)
    options = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    assert {name.replace("-", "_") for name in shown} == {name.replace("-", "_") for name in options}
    assert not [name for name in shown if "_" in name]
    assert "Unvalidated" not in captured.out
    assert "%%" not in captured.out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_states_description_and_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A described option has words of its own besides what the parser adds in brackets, and none of its type."""
    main([command, "--help", "--method=all"])
    shown, _, _ = capsys.readouterr().out.partition("\nexamples:")
    actions = {
        name.replace("_", "-"): action for action in cli._parser(command)._actions for name in action.option_strings
    }
    for entry in re.split(r"^  (?=-)", shown, flags=re.MULTILINE)[1:]:
        words = " ".join(entry.split("\n\n")[0].split())
        name, _, rest = re.sub(r"^-\w, ", "", words).partition(" ")
        if name in ("-h,", "--help", "--config", "--print-config") or "Path to a configuration file" in words:
            continue
        described = re.sub(r"\((default|required).*\)|^\{.*?\}|^[A-Z_0-9.-]+ ", "", rest).strip()
        assert len(described) > 5, words
        assert "type: " not in rest, words
        action = actions[name]
        unsaid = action.default in (None, {}) or action.default is False
        assert ("(default: " in rest) == (not unsaid and not action.required), words
        assert ("(required" in rest) == action.required, words


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_examples_of_the_help_are_commands_that_the_parser_takes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = cli._parser(command)
    main([command, "--help"])
    _, _, shown = capsys.readouterr().out.partition("\nexamples:\n")
    assert [line.strip() for line in shown.splitlines()] == list(parser.examples)
    for example in parser.examples:
        words = shlex.split(re.sub(r"--config \S+ ?|<\(|\)", "", example))
        assert words[words.index("secateur") + 1] == command
        typed = words[words.index("secateur") + 2 :]
        parser.parse_args([f"--{word[2:].replace('-', '_')}" if word.startswith("--") else word for word in typed])


@pytest.mark.parametrize("command", ["prune", "score", "estimate"])
@pytest.mark.parametrize(
    ("words", "explained"),
    [([], set()), (["--method", "sleb"], {"sleb"}), (["--method=elder-published"], {"elder-published"})],
)
def test_help_explains_the_settings_of_the_method_that_was_named_alone(
    command: str, words: list[str], explained: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert set(re.findall(r"^settings of ([\w-]+)", shown, re.MULTILINE)) == explained
    assert {method for method in METHODS if f"  --{method}." in shown} == explained
    assert "--method NAME --help lists the settings of that method as well" in " ".join(shown.split())


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert all(f"  {command} " in shown for command in cli.COMMANDS)


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import secateur

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"secateur {secateur.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("--eval-data", "--eval_data"),
        ("--eval_data", "--eval_data"),
        ("--num-sequences=a-b", "--num_sequences=a-b"),
        ("--elder.lambda-1", "--elder.lambda_1"),
        ("--elder-published.lambda-1=-1", "--elder-published.lambda_1=-1"),
        ("--elder-published", "--elder-published"),
        ("some-file.txt", "some-file.txt"),
        ("-x-y", "-x-y"),
    ],
)
def test_dashes_in_names_of_options_are_underscores_and_values_stay(typed: str, known: str) -> None:
    assert with_underscores(typed, METHODS) == known


@pytest.mark.parametrize(("text_", "amount"), [("8", 8), ("25%", 0.25), ("0.25", 0.25), (" 12.5% ", 0.125), ("+3", 3)])
def test_amount_is_a_count_or_a_share(text_: str, amount: float) -> None:
    parsed = parse_amount(text_, "--drop")
    assert parsed == amount
    assert type(parsed) is type(amount)


def test_layers_are_numbers_and_inclusive_ranges() -> None:
    assert parse_layers("3, 7,20-22") == (3, 7, 20, 21, 22)
    with pytest.raises(RequestError):
        parse_layers("")


def test_what_is_typed_counts_before_a_file_wherever_it_stands(
    places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--method=shortgpt", "--seed=3", "--print-config"]) == 0
    (here / "all.yaml").write_text(capsys.readouterr().out)  # every option, what is required as null
    words = ["score", places["MODEL"], "--data", places["DATA"], "--seed=4", *SIZE, "--drop=2", "--json", "--quiet"]
    for placed in (
        [*words, "--config=all.yaml"],
        [*words, "--config", "all.yaml"],
        ["score", "--config=all.yaml", *words[1:]],
    ):
        assert main(placed) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["method"], shown["seed"]) == ("shortgpt", 4)


# ---- right requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_quick_speed")
def test_json_prints_exactly_one_object_equal_to_the_record(
    places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", places["MODEL"], "--data", places["DATA"], "--drop=25%", "--out=out", "--json", *SIZE, *QUICK]
    assert main(words) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert shown.pop("out") == "out"
    assert shown == json.loads((here / "out" / "secateur" / "record.json").read_text())
    assert shown["command"].startswith("secateur prune ")
    assert "about" in captured.err  # the preflight line
    assert len(shown["dropped"]) == 2

    assert main(["eval", places["MODEL"], "out", "--data", places["DATA"], "--sequence-length=32", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert [row["num_layers"] for row in measured["models"]] == [6, 4]

    assert main(["score", places["MODEL"], "--data", places["DATA"], "--drop=2", "--json", *SIZE, *QUICK]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["dropped"] == shown["dropped"]

    alike = ("secateur_version", "seed", "git_revision", "versions")
    for record, command in ((measured, "eval"), (scored, "score")):
        assert {name: record[name] for name in alike} == {name: shown[name] for name in alike}
        assert record["command"].startswith(f"secateur {command} ")
    assert [row["data"]["fingerprint"] for row in measured["models"]] == [
        measured["models"][0]["data"]["fingerprint"]
    ] * 2
    assert scored["data"] == shown["data"]
    assert [row["revision"] for row in measured["models"]] == [None, None]  # of the disk


def test_eval_does_tasks_beside_perplexity_and_prints_one_table_or_one_object(
    places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")
    monkeypatch.setenv("COLUMNS", "200")
    tasks = Path(__file__).parent.parent / "benchmarks" / "tasks"
    monkeypatch.setenv("SECATEUR_DATA", str(here))
    for name in ("piqa", "winogrande"):
        (here / name).mkdir()
        row = {
            "question": "To boil",
            "sentence": "Up _ down",
            "option1": "or",
            "option2": "and",
            "choices": ["or", "and"],
        }
        lines = "".join(json.dumps({**row, "label": n % 2}) + "\n" for n in range(4))
        for split in ("train", "validation"):
            (here / name / f"{split}.jsonl").write_text(lines)
    words = [
        "eval",
        places["MODEL"],
        "--data",
        places["DATA"],
        "--sequence-length=32",
        "--num-sequences=4",
        "--stride=16",
    ]
    words += ["--tasks", "local_piqa, local_winogrande", "--include-path", str(tasks), "--limit=4", "--quiet"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [" ".join(line.split()) for line in captured.out.splitlines()]
    # Each item is right for one of its two answers, whatever the model: half of them.
    assert "local_piqa, acc_norm 4 items 0.500 ± 0.289" in lines
    assert "local_winogrande, acc 4 items 0.500 ± 0.289" in lines
    assert "mean 2 tasks 0.500 ± 0.204" in lines  # √(2 · 0.289²)/2
    assert "± one standard error; windows of 32 tokens, a stride of 16; prompts with no examples" in lines
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)["models"]
    assert captured.out.count("\n") == 1
    assert [score["num_items"] for score in row["tasks"]] == [4, 4]
    assert row["task_mean"] == {"value": 0.5, "stderr": pytest.approx(math.sqrt(0.25 / 3 / 2)), "num_tasks": 2}
    assert row["predicted_tokens"] == 31 + 3 * 16


@pytest.mark.usefixtures("_quick_speed")
def test_quiet_prints_results_and_nothing_on_standard_error(
    places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", places["DATA"], "--quiet", *SIZE]
    assert main(["prune", places["MODEL"], *common, "--drop=2", "--out=out", *QUICK]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "perplexity" in captured.out
    assert "proven" in captured.out
    assert main(["score", places["MODEL"], *common, "--method=random", "--out=plan.json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "random would drop layers" in captured.out
    assert (here / "plan.json").is_file()
    assert main(["score", places["MODEL"], *common, "--method=random", "--drop=1"]) == 0
    assert re.search(r"^random would drop layer \d+$", capsys.readouterr().out, re.MULTILINE)


def test_an_empty_out_is_not_the_working_directory(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", places["MODEL"], "--data", places["DATA"], "--drop=2", "--out="]) == 2
    assert capsys.readouterr().err == "error: --out is empty; name a new directory\n"


@pytest.mark.parametrize(
    ("written", "reached"),
    [
        ("drop: 3", "3"),
        ("drop: 0.25", "0.25"),
        ("drop: 25%", "25%"),
        ("layers: [3, 7]", "3,7"),
        ("layers: 3,7-9", "3,7-9"),
    ],
)
def test_numbers_of_a_file_need_no_quotes(
    written: str, reached: str, places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.yaml").write_text(written)
    words = ["--data", places["DATA"], "--out=a"]
    assert main(["prune", places["MODEL"], "--config=run.yaml", *words, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed[written.partition(":")[0]] == reached


@pytest.mark.usefixtures("_quick_speed")
def test_config_file_equals_the_same_options(
    places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "method": "elder", "data": places["DATA"], "sequence_length": 32, "num_sequences": 8, "num_eval_sequences": 4,
        "seed": 4, "drop": "2", "elder": {"joint_steps": 3, "steps": 2, "distil": 0.25},
    }  # fmt: skip
    Path("run.yaml").write_text(yaml.safe_dump(options))
    assert main(["prune", places["MODEL"], "--config=run.yaml", "--out=a", "--json"]) == 0
    by_file = json.loads(capsys.readouterr().out)
    words = ["--elder.joint-steps=3", "--elder.steps=2", "--elder.distil=0.25", "--seed=4", "--drop=2", *SIZE]
    assert main(["prune", places["MODEL"], "--data", places["DATA"], "--out=b", "--json", *words]) == 0
    by_words = json.loads(capsys.readouterr().out)
    for field in ("dropped", "scores", "method", "data", "eval_data", "seed", "preparation"):
        assert by_file[field] == by_words[field], field
    assert by_file["method"]["options"]["distil"] == 0.25
    assert (here / "a" / "model.safetensors").read_bytes() == (here / "b" / "model.safetensors").read_bytes()


# ---- interrupted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_signal_leaves_a_whole_checkpoint_says_how_to_go_on_and_exits_with_its_code(
    places: dict[str, str], here: Path, number: int, code: int
) -> None:
    """A real process, stopped while it trains."""
    words = ["prune", places["MODEL"], "--data", places["DATA"], "--drop=2", "--out=out", *SIZE]
    words += ["--elder.joint-steps=3", "--elder.steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "secateur", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  background jobs ignore it
    )
    try:
        assert process.stderr is not None
        seen = wait_for(process.stderr.readline, "training towards")
        time.sleep(0.5)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, seen + err
    assert out == ""
    assert "finishing this step, to go on from it later; once more stops at once" in err.splitlines()
    assert err.splitlines()[-1] == (
        f"interrupted: what was done is kept in {here}/out.work; run the same command with --resume to go on"
    )
    assert "Traceback" not in err
    assert [path.name for path in here.iterdir()] == ["out.work"]
    assert len(list(here.glob("out.work/prepared-training/checkpoint-*/secateur.json"))) == 1


def wait_for(readline: Callable[[], str], what: str) -> str:
    seen = ""
    while what not in seen:
        line = readline()
        assert line, f"it ended without '{what}':\n{seen}"
        seen += line
    return seen


@pytest.mark.parametrize("name", ["elder-published", "shortened-ppl"])
def test_a_method_whose_name_has_a_dash_runs_with_its_settings(name, tiny_checkpoint, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    option = ["--elder-published.first-steps", "1"] if name.startswith("elder") else ["--shortened-ppl.sequences", "2"]
    command = ["score", str(tiny_checkpoint), "--method", name, "--data", str(text), "--drop", "2", "--json", "--quiet"]
    assert main([*command, "--sequence-length", "16", "--num-sequences", "8", *option]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == name


# ---- estimate --------------------------------------------------------------------------------------------------------------


def test_estimate_needs_the_configuration_alone_and_its_table_shows_what_its_json_says(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    command = ["estimate", str(tmp_path), "--drop", "2", "--recover", "lora", "--hardware", "h100", "--quiet"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [phase["phase"] for phase in found["phases"]] == ["measure", "choose", "prepare", "recover", "cut and prove"]
    assert found["memory_bytes"] == max(phase["memory_bytes"] for phase in found["phases"])
    assert found["seconds"] == pytest.approx(sum(phase["flops"] for phase in found["phases"]) / (0.4 * 989e12))
    assert found["fits"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "2 of 6 layers by elder" in shown
    assert "on h100 (396 TFLOP/s" in shown
    assert "a device: it fits" in shown


def test_estimate_says_so_where_it_does_not_fit(tiny_checkpoint: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(CARDS, "l4", dataclasses.replace(CARDS["l4"], memory_bytes=1e8))
    assert main(["estimate", str(tiny_checkpoint), "--drop", "2", "--hardware", "l4", "--quiet"]) == 0
    assert "it does NOT fit: try" in capsys.readouterr().out


def test_estimate_shares_out_the_trainings_alone(tiny_checkpoint: Path, capsys: Any) -> None:
    command = [
        "estimate",
        str(tiny_checkpoint),
        "--drop",
        "2",
        "--hardware",
        "h100",
        "--elder.sequences-per-step",
        "8",
        "--json",
    ]
    found = []
    for more in (["--devices", "4"], ["--devices", "4", "--sharded"]):
        assert main([*command, *more]) == 0
        found.append({phase.pop("phase"): phase for phase in json.loads(capsys.readouterr().out)["phases"]})
    copied, shared = found
    assert [name for name in copied if copied[name] != shared[name]] == ["prepare"]
    assert shared["prepare"]["shards"] == 4
    for part in ("weights_bytes", "gradients_bytes", "moments_bytes", "kept_bytes"):
        assert shared["prepare"][part] == pytest.approx(copied["prepare"][part] / 4, abs=1)


def test_estimate_is_of_tune_where_there_are_examples_to_train_on(tiny_checkpoint: Path, capsys: Any) -> None:
    command = ["estimate", str(tiny_checkpoint), "--drop", "2", "--hardware", "h100", "--num-train", "40", "--quiet"]
    more = ["--mean-tokens", "30", "--completion-tokens=2", "--max-length", "64", "--train", "full", "--tune-dense"]
    assert main([*command, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["measure", "tune dense", "choose", "fine-tune", "validate", "prove"]
    assert [phase["phase"] for phase in found["phases"]] == names
    assert (found["command"], found["method"]) == ("tune", "gradpruner")
    assert main([*command, *more]) == 0
    shown = capsys.readouterr().out
    assert "2 of 6 layers by gradpruner" in shown
    assert all(name in shown for name in names)
    assert main([*command, "--method", "shortgpt", "--batch-size", "8", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    trained = {phase["phase"]: phase["tokens"] for phase in other["phases"]}["fine-tune"]
    assert (other["method"], trained) == ("shortgpt", round(3 * 40 * 512 * 2.3 * 4 / 6))  # all of the model's context


# ---- tune ------------------------------------------------------------------------------------------------------------------

FEW = [
    "--epochs=1",
    "--batch-size=8",
    "--learning-rate=1e-3",
    "--gradpruner.scoring-steps=3",
    "--gradpruner.scoring-rate=1e-2",
]

WRONG_TUNE: dict[str, tuple[str, str]] = {
    "tune": ("missing MODEL, --data, --out", "see secateur tune --help"),
    "tune MODEL --data TASK --out OUT": ("nothing says how much goes", "give --drop 20%, --target-params 80% or --layers"),
    "tune MODEL --data TASK --out OUT --target-speedup 1.3": ("--target-speedup", "secateur tune --help"),
    "tune MODEL --data TASK --out OUT --drop 6": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "tune CORRUPT --data TASK --out OUT --drop 6": ("cannot drop 6 of 6 layers", "choose 1..5"),
    "tune MODEL --data TASK --out OUT --drop 2 --train half": ("--train", "one of full, lora"),
    "tune MODEL --data TASK --out OUT --drop 2 --epocs 3": ("--epocs", "did you mean --epochs?"),
    "tune MODEL --data TASK --out OUT --drop 2 --epochs x": ("--epochs: expects float, not 'x'", "--help"),
    "tune MODEL --data TASK --out OUT --drop 2 --epochs 0": ("epochs must be above 0", "not 0"),
    "tune MODEL --data TASK --out OUT --drop 2 --micro-batch 3": ("micro_batch=3", "does not divide batch_size=16"),
    "tune MODEL --data TASK --out OUT --drop 2 --num-test 0": ("num_test must be 1 or more", "not 0"),
    "tune MODEL --data TASK --out OUT --drop 2 --labels even,even": ("['even', 'even']", "two or more different ones"),
    "tune MODEL --data TASK --out OUT --drop 2 --labels even,": ("not 'even,'", "--labels takes names"),
    "tune MODEL --data TASK --out OUT --drop 2 --metric f1": ("f1", "--help"),
    "tune MODEL --data TASK --out OUT --drop 2 --resume": ("nothing to resume", "leave --resume out"),
    "tune MODEL --data TASK --out OUT --drop 2 --gradpruner.merge signs": ("'signs'", "did you mean sign?"),
    "tune MODEL --data TASK --out OUT --drop 2 --gradpruner.keep 2": ("keep is the share", "not 2"),
    "tune MODEL --data TASK --out OUT --drop 2 --elder.steps 4": ("--elder.steps is a setting of elder", "--method elder"),
    'tune MODEL --data TASK --out OUT --drop 2 --trainer {"nope":1}': ("no option 'nope'", "TrainingArguments"),
    'tune MODEL --data TASK --out OUT --drop 2 --trainer {"optim":"nope"}': ("no optim 'nope'", "choose adamw_torch"),
    "tune MODEL --data nowhere.jsonl --out OUT --drop 2": ("'nowhere.jsonl'", "give a"),
    "tune MODEL --data TASK --test-data SENTENCES --out OUT --drop 2": ("text examples", "the same columns"),
    "tune MODEL --data TASK --template {txt}? --out OUT --drop 2": ("names no column with {txt}", "did you mean {text}?"),
    "tune MODEL --data TASK --metric accuracy --test-data TASK --out OUT --drop 2": ("is also in", "give different data"),
    "tune no/such/model --data TASK --out OUT --drop 2": ("no/such/model", "give a local checkpoint"),
    "tune MODEL --data TASK --out FOLDER --drop 2": ("folder is not empty", "choose another --out"),
}  # fmt: skip


@pytest.fixture(scope="module")
def task_places(places: dict[str, str], text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The words of `places`, and a task: thirty sums, even or odd."""
    folder = tmp_path_factory.mktemp("task")
    rows = [{"text": f"{a} and {b}", "label_text": ("even", "odd")[(a + b) % 2]} for a in range(10) for b in range(3)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return places | {"TASK": str(folder / "sums.jsonl"), "SENTENCES": text}


@pytest.fixture
def _without_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.tune, "__kwdefaults__", {**tuning.tune.__kwdefaults__, "speed": False})


@pytest.mark.parametrize("request_", WRONG_TUNE)
def test_wrong_request_to_tune_exits_2_with_one_line_that_names_value_and_remedy(
    request_: str,
    task_places: dict[str, str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code = main(filled(request_, task_places))
    line = one_line(capsys.readouterr())
    value, remedy = WRONG_TUNE[request_]
    assert code == 2, line
    assert value in line
    assert remedy in line
    assert not list(here.iterdir())


@pytest.mark.usefixtures("_without_speed")
def test_tune_prints_one_json_object_equal_to_the_record(
    task_places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", task_places["MODEL"], "--data", task_places["TASK"], "--drop=33%", "--out=out", "--json", *FEW]
    assert main([*words, "--train=full", "--tune-dense"]) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert shown.pop("out") == "out"
    assert shown == json.loads((here / "out" / "secateur" / "record.json").read_text())
    assert shown["command"].startswith("secateur tune ")
    assert re.search(
        r"25 training, 2 validation and 3 test examples .* GB of memory; about ", captured.err
    )  # beforehand
    assert len(shown["dropped"]) == 2
    assert shown["metrics"].keys() == {"dense", "dense_tuned", "pruned"}
    assert [path.name for path in here.iterdir()] == ["out"]


@pytest.mark.usefixtures("_without_speed")
def test_tune_prints_both_models_the_proof_and_what_is_next_and_quiet_nothing_else(
    task_places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ["tune", task_places["MODEL"], "--data", task_places["TASK"], "--drop=2", "--out=out", "--quiet", *FEW]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    head = next(line for line in lines if "95 % interval" in line)
    for name in ("model", "layers", "parameters", "accuracy", "items", "prefill tokens/s"):
        assert name in head
    (dense,) = [line for line in lines if "dense, as it came" in line]
    (pruned,) = [line for line in lines if "pruned, fine-tuned" in line]
    assert dense.split("it came")[1].split()[0] == "6"
    assert pruned.split("fine-tuned")[1].split()[0] == "4"
    assert sum(line.rstrip().endswith("dropped") for line in lines) == 2  # the bars of the scores
    assert "than the dense model on the same 3 items" in captured.out or "the same as the dense model" in captured.out
    assert "proven: loaded again from disk" in captured.out
    assert lines[-1] == "the pruned model is in out, its adapter in out/adapter"
    assert "next:" not in captured.out


@pytest.mark.usefixtures("_without_speed")
def test_config_file_of_tune_equals_the_same_options_and_reaches_the_trainer(
    task_places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "data": task_places["TASK"], "drop": "2", "train": "full", "max_steps": 2, "batch_size": 4, "num_test": 2,
        "trainer": {"lr_scheduler_type": "constant"}, "gradpruner": {"scoring_steps": 3, "merge": "none"},
    }  # fmt: skip
    Path("run.yaml").write_text(yaml.safe_dump(options))
    assert main(["tune", task_places["MODEL"], "--config=run.yaml", "--out=a", "--json"]) == 0
    by_file = json.loads(capsys.readouterr().out)
    words = ["--train=full", "--max-steps=2", "--batch-size=4", "--num-test=2", "--drop=2", "--gradpruner.merge=none"]
    words += ["--gradpruner.scoring-steps=3", '--trainer={"lr_scheduler_type":"constant"}']
    assert main(["tune", task_places["MODEL"], "--data", task_places["TASK"], "--out=b", "--json", *words]) == 0
    by_words = json.loads(capsys.readouterr().out)
    for field in ("dropped", "scores", "method", "data", "preparation", "comparison"):
        assert by_file[field] == by_words[field], field
    assert by_file["training"]["settings"] == by_words["training"]["settings"]
    rates = [entry["learning_rate"] for entry in by_file["training"]["losses"]]
    assert len(set(rates)) == 1  # the rate is constant, as the file says
    assert (here / "a" / "model.safetensors").read_bytes() == (here / "b" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("_without_speed")
def test_interrupted_tune_exits_130_names_resume_and_goes_on_with_it(
    task_places: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    words = ["tune", task_places["MODEL"], "--data", task_places["TASK"], "--drop=2", "--out=out", "--json", *FEW]
    for name, says in (
        ("task_score", "interrupted: nothing half-written is left; run the same command again to start over"),
        (
            "prove_checkpoint",
            f"interrupted: what was done is kept in {here}/out.work; run the same command with --resume",
        ),
    ):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(task_workbench if name == "task_score" else stages, name, stop)
            assert main(words) == 130
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-1].startswith(says)
        assert [path.name for path in here.iterdir()] == ([] if name == "task_score" else ["out.work"])
    assert main(words) == 2
    assert "add --resume to go on with it" in capsys.readouterr().err.splitlines()[-1]
    assert main([*words, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == 4
    assert [path.name for path in here.iterdir()] == ["out"]


# ---- check ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """A checkpoint, and the same without layers 1 and 4."""
    cut_checkpoint(tiny_checkpoint, tmp_path / "pruned", [1, 4])
    return [str(tiny_checkpoint), str(tmp_path / "pruned")]


def test_check_of_a_right_pair_exits_0_and_says_which_layers_went(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *pair, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert f"proven: {pair[1]} is {pair[0]} without layers 1, 4" in out
    assert err == ""
    assert main(["check", *pair, "--quiet", "--files-only"]) == 0
    assert "proven by the files alone: " in capsys.readouterr().out
    assert main(["check", *pair, "--quiet", "--layer-by-layer"]) == 0
    assert "one in memory at a time" in capsys.readouterr().out


def test_check_of_a_wrong_pair_exits_1_with_one_line_and_prints_what_it_found(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *pair, "--quiet", "--layers", "1,3"]) == 1
    out, err = capsys.readouterr()
    assert "differs" in out
    assert "proven" not in out
    assert err.splitlines() == [
        f"error: {pair[1]} is not {pair[0]} without some layers: layers: layer 2 is the dense model's 3, and is said to be "
        "its 4"
    ]


def test_check_prints_one_json_object_whatever_comes_out(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *pair, "--json", "--quiet"]) == 0
    right = json.loads(capsys.readouterr().out)
    assert (right["proven"], right["difference"], right["dropped"]) == (True, None, [1, 4])
    assert {finding["holds"] for finding in right["findings"]} == {True}
    assert main(["check", *reversed(pair), "--json", "--quiet"]) == 1
    wrong = json.loads(capsys.readouterr().out)
    assert (wrong["proven"], wrong["dropped"]) == (False, None)
    assert wrong["difference"] == "layers: it has 6 layers, and the dense model 4: none went"


@pytest.mark.parametrize(
    ("options", "value", "remedy"),
    [
        (["--prompt-tokens", "1"], "not 1", "must be 2 or more"),
        (["--prompt-tokens", "513"], "a context of 512 tokens, fewer than 513 prompt tokens", "choose 512 or fewer"),
        (["--layers", "x"], "'x'", "3,7,20-27"),
        (["--layers", "7"], "no layer 7", "0..5"),
    ],
)
def test_a_wrong_request_to_check_exits_2_with_one_line(
    options: list[str], value: str, remedy: str, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *pair, "--quiet", *options]) == 2
    line = one_line(capsys.readouterr())
    assert value in line
    assert remedy in line


def test_a_mistyped_path_of_check_is_a_wrong_request_and_not_a_model_that_differs(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for wrong, why in (("prunde", "no such directory"), ("file", "it is a file")):
        for places in ([pair[0], str(tmp_path / wrong)], [str(tmp_path / wrong), pair[1]]):
            assert main(["check", *places, "--quiet"]) == 2
            said = one_line(capsys.readouterr())
            assert said == f"error: cannot read {tmp_path / wrong}: {why}; give a local checkpoint directory"


@pytest.mark.parametrize("wraps", ["a class", "a library", "nothing"])
def test_an_interrupt_is_said_as_one_whatever_python_or_a_library_made_of_it(monkeypatch, capsys, wraps):
    class Half:
        def __set_name__(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)

    def run(_):
        if wraps == "a class":  # up to Python 3.11 what __set_name__ raises is wrapped
            type("Made", (), {"half": Half()})
        try:
            Half().__set_name__()
        except KeyboardInterrupt:
            if wraps == "a library":
                raise RuntimeError("cannot go on")  # noqa: B904  as libraries do
            raise

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["doctor"]) == 143
    assert capsys.readouterr().err.startswith("interrupted: ")


def test_an_error_without_a_signal_stays_an_error(monkeypatch, capsys, tmp_path):
    def run(_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("cannot go on")  # noqa: B904

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["doctor"]) == 1
    assert "error: RuntimeError: cannot go on" in capsys.readouterr().err


def test_demo_hands_over_what_an_interrupted_one_goes_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def prune(source: str, **options: Any) -> None:
        asked.update(options, source=source)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "prune", prune)
    monkeypatch.setattr(demo, "fetch_sample_model", lambda progress: "sample")
    out = tmp_path / "out"
    out.mkdir()
    (out / "there").touch()
    assert main(["demo", f"--out={out}", "--resume", "--checkpoint-minutes=0"]) == 130  # not refused for what is there
    assert (asked["source"], asked["out"], asked["resume"], asked["checkpoint_minutes"]) == (
        "sample",
        str(out),
        True,
        0,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "--method", "elder", "--help"],
        ["prune", "--method", "elder", "-h"],
        ["help", "prune", "--method", "elder"],
        ["help", "prune", "elder"],
    ],
    ids=" ".join,
)
def test_help_explains_every_option_however_it_is_asked_for(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--num-sequences NUM_SEQUENCES Calibration windows." in shown
    assert "Fold what the layers did into the projection" in shown
    assert "--sleb" not in shown
