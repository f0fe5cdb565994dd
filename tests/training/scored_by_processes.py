"""Run under torchrun by test_igia_processes.py: score a tiny model and write what this rank found.

`trainer` is a `transformers.Trainer` (DDP where there are several ranks; accelerate has no FSDP on the CPU), `loop` a loop of
one's own with PyTorch's FSDP2 where there are several ranks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from secateur import IGIA, IGIACallback

STEPS, BATCH = 4, 4


def main(checkpoint: str, folder: str, kind: str) -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = torch.randint(3, 60, (STEPS * BATCH, 12))
    igia = in_trainer(model, rows, folder, ranks) if kind == "trainer" else in_loop(model, rows, rank, ranks)
    total = sum(igia.matrix(2, name).double().sum().item() for name in igia.names(2))
    sharded = any("DTensor" in type(parameter.data).__name__ for parameter in model.parameters())
    found = {"scores": list(igia.scores()), "matrix": total, "sharded": sharded}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if distributed.is_initialized():
        distributed.destroy_process_group()


def in_trainer(model: Any, rows: torch.Tensor, folder: str, ranks: int) -> IGIA:
    callback = IGIACallback(steps=STEPS)
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH // ranks, learning_rate=1e-2,
            lr_scheduler_type="constant", report_to="none", use_cpu=True, save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential",
        ),
        train_dataset=[{"input_ids": ids, "labels": ids} for ids in rows],
        callbacks=[callback],
    ).train()  # fmt: skip
    return callback.accumulated()


def in_loop(model: Any, rows: torch.Tensor, rank: int, ranks: int) -> IGIA:
    if ranks > 1:
        distributed.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (ranks,))
        for layer in model.base_model.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    igia = IGIA(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for batch in rows.split(BATCH):
        ids = batch[rank::ranks]
        model(input_ids=ids, labels=ids).loss.backward()
        igia.add_step()
        optimizer.step()
        optimizer.zero_grad()
    return igia


if __name__ == "__main__":
    main(*sys.argv[1:])
