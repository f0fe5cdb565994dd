"""Run under torchrun by test_igia_processes.py: score a tiny model in a Trainer and write what this rank found."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from secateur import IGIACallback


def main(checkpoint: str, folder: str, sharded: str) -> None:
    ranks = int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 60, (32, 12))]
    fsdp = {"fsdp": "full_shard", "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
    callback = IGIACallback(steps=4, stop=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder, max_steps=4, per_device_train_batch_size=4 // ranks, learning_rate=1e-2, report_to="none",
            use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            train_sampling_strategy="sequential", **(fsdp if sharded == "fsdp" else {}),
        ),
        train_dataset=rows,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    names = callback.igia.names(2)
    total = sum(callback.igia.matrix(2, name).double().sum().item() for name in names)
    found = {
        "scores": list(callback.layer_scores()),
        "matrix": total,
        "kind": str(trainer.accelerator.distributed_type),
    }
    Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
