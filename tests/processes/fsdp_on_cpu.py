"""secateur under accelerate's FSDP without GPUs: `torchrun … tests/processes/fsdp_on_cpu.py prune …`.

accelerate shards only where its processes have GPUs (1.15), though PyTorch's FSDP2 itself runs on CPUs with gloo. For measuring
here, it is told that they have: everything else is what runs on GPUs.
"""

from __future__ import annotations

import os
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from secateur.cli import main


def shard_on_cpus() -> None:
    """Ask for FSDP2 as `accelerate launch` does, and have accelerate grant it."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    os.environ |= {"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState(cpu=True)  # joins the processes, by gloo
    PartialState._reset_state()
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


if __name__ == "__main__":
    shard_on_cpus()
    sys.exit(main())
