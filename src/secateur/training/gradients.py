"""What is seen of a weight's gradient in a training, step by step, and kept of it: see `secateur.training.igia`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import RequestError
from secateur.training.lora import linear_weights
from secateur.training.sharding import whole

__all__ = ["WeightGradients", "full_weights", "low_rank_weights"]

_MOST_NUMBERS_AT_ONCE = 1 << 24  # of a block of F_W while it is built: 64 MiB in float32


@dataclass
class WeightGradients:
    """One weight of a layer, and what was seen of its gradient."""

    layer: int
    name: str  # within the layer, without adapters: "self_attn.q_proj.weight"
    squares: list[Tensor] = field(default_factory=list)  # a step: ‖G‖² (experts,), float64; 1 expert for a plain weight

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        raise NotImplementedError

    def measure(self) -> Tensor | None:
        """‖G‖² of this step, an expert; None if there is no gradient."""
        raise NotImplementedError

    def keep(self) -> None:
        """Keep of this step's gradient what `matrix` needs."""
        raise NotImplementedError

    def matrix(self, device: torch.device) -> Tensor:
        """F_W, float32, in the shape of the stored weight."""
        raise NotImplementedError


@dataclass
class _LowRankGradients(WeightGradients):
    """A weight with LoRA beside it."""

    down: Any = None  # the parameter A, (experts · r, n)
    up: Any = None  # the parameter B, (m, r · experts)
    experts: int = 1
    transposed: bool = False  # the weight is stored as (n, m)
    factors: list[tuple[Tensor, Tensor]] | None = None  # a step: (experts, m, r) and (experts, r, n), in CPU memory

    @property
    def device(self) -> torch.device:
        device: torch.device = self.up.device
        return device

    def measure(self) -> Tensor | None:
        found = self._gradients()
        if found is None:
            return None
        up, down = _wide(found[0]), _wide(found[1])
        return ((up.mT @ up) * (down @ down.mT)).sum(dim=(1, 2))

    def keep(self) -> None:
        found = self._gradients()
        if self.factors is not None and found is not None:
            up, down = (gradient.detach().to("cpu", torch.float32, copy=True) for gradient in found)
            self.factors.append((up, down))

    def _gradients(self) -> tuple[Tensor, Tensor] | None:
        """∇B (experts, m, r) and ∇A (experts, r, n); peft keeps the ranks of all experts in one dimension."""
        down, up = _gradient(self.down), _gradient(self.up)
        if down is None or up is None:
            return None
        return (
            up.reshape(up.shape[0], -1, self.experts).permute(2, 0, 1),
            down.reshape(self.experts, -1, down.shape[-1]),
        )

    def matrix(self, device: torch.device) -> Tensor:
        if self.factors is None:
            raise RequestError(f"the factors of {self.name} were not kept; accumulate with keep_factors=True")
        experts, rows, columns = self.experts, self.up.shape[0], self.down.shape[-1]
        result = torch.zeros(experts, rows, columns, device=device)
        ups, downs = zip(*self.factors, strict=True) if self.factors else ((), ())
        up = torch.stack(ups).to(device) if ups else torch.zeros(0, experts, rows, 1)  # (t, experts, m, r)
        down = torch.stack(downs).to(device) if downs else torch.zeros(0, experts, 1, columns)  # (t, experts, r, n)
        block = max(1, _MOST_NUMBERS_AT_ONCE // (max(len(up), 1) * columns))
        for expert in range(experts if len(up) else 0):
            for first in range(0, rows, block):
                some = slice(first, first + block)
                result[expert, some] = (up[:, expert, some] @ down[:, expert]).square_().sum(dim=0) / len(self.squares)
        result = result.mT if self.transposed else result
        return result.contiguous() if experts > 1 else result[0].contiguous()


@dataclass
class _FullGradients(WeightGradients):
    """A weight that is trained itself."""

    weight: Any = None
    kept: bool = True
    total: Tensor | None = None  # Σ_i (∂L/∂W)², float32, where the weight lies

    @property
    def device(self) -> torch.device:
        device: torch.device = self.weight.device
        return device

    def measure(self) -> Tensor | None:
        gradient = _gradient(self.weight)
        if gradient is None:
            return None
        norm = torch.linalg.vector_norm(gradient.detach(), dim=(-2, -1), dtype=torch.float32)
        return _wide(norm).square().reshape(-1)

    def keep(self) -> None:
        gradient = _gradient(self.weight)
        if self.kept and gradient is not None:
            square = gradient.detach().float().square()
            self.total = square if self.total is None else self.total.add_(square)

    def matrix(self, device: torch.device) -> Tensor:
        if self.total is None:
            raise RequestError(f"the squares of {self.name} were not kept; accumulate with keep_factors=True")
        return (self.total / len(self.squares)).to(device)


def low_rank_weights(layer: int, module: nn.Module, keep: bool) -> Iterator[WeightGradients]:
    """The weights of a decoder layer that have LoRA beside them; `keep` what their matrices need.

    Raises:
        RequestError: if one has several active adapters.
    """
    from peft.tuners.lora import LoraLayer

    for path, part in module.named_modules():
        if not isinstance(part, LoraLayer):
            continue
        adapters = [name for name in part.active_adapters if name in part.lora_A]
        if len(adapters) > 1:
            raise RequestError(f"{path} has {len(adapters)} active adapters; activate one with model.set_adapter(name)")
        for name in adapters:
            experts = int(getattr(part, "num_experts", 1))
            # Adapters on a parameter are nested where a module has several; the parameter's name is the wrapper's own.
            place = ".".join(piece for piece in path.split(".") if piece != "base_layer")
            parameter = getattr(part, "parameter_name", "weight")
            by_expert = parameter != "weight" and experts > 1
            yield _LowRankGradients(
                layer=layer,
                name=f"{place}.{parameter}",
                down=part.lora_A[name].weight,
                up=part.lora_B[name].weight,
                experts=experts,
                transposed=(by_expert and not getattr(part, "_did_swap_in_out_features", False))
                or bool(getattr(part, "fan_in_fan_out", False)),
                factors=[] if keep else None,
            )


def full_weights(layer: int, module: nn.Module, keep: bool) -> Iterator[WeightGradients]:
    """The linear weights of a decoder layer that are trained themselves; `keep` what their matrices need."""
    for name in linear_weights(module):
        weight = module.get_parameter(name)
        if weight.requires_grad:
            yield _FullGradients(layer=layer, name=name, weight=weight, kept=keep)


def _gradient(parameter: Any) -> Tensor | None:
    """The gradient as one tensor, also where FSDP keeps a part on each process."""
    return None if parameter.grad is None else whole(parameter.grad)


def _wide(tensor: Tensor) -> Tensor:
    """In float64, or float32 on devices that have no other."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)
