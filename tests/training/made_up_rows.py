"""Rows of random tokens, for trainings whose task is no matter."""

from __future__ import annotations

import torch

from secateur.training.rows import Rows


def made_up_rows(count: int, *, seed: int = 0) -> Rows:
    """Rows of different lengths, with completions of 1 to 5 tokens."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        prompt = torch.randint(3, 120, (3 + index % 4,), generator=draw).tolist()
        completion = torch.randint(3, 120, (1 + 4 * (index % 2),), generator=draw).tolist()
        rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return rows
