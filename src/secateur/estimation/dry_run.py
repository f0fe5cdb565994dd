"""A step of a model on tensors without data: the memory it takes at its peak, and its operations, from the configuration alone.

The model is built, run and, where asked, trained for one step under torch's fake tensors, which have shapes and types but no
storage, so that a model larger than the machine can be looked at in seconds. Every storage that a real step would allocate is
counted while it lives.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.decoder import Decoder
from secateur.errors import ModelError
from secateur.evaluation.flops import flop_counter
from secateur.loading import quiet_transformers
from secateur.step import Step
from secateur.training.distillation import distillation_loss

__all__ = ["Footprint", "dry_run", "forward_flops", "last_logits"]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one step takes on one device that holds everything."""

    weights_bytes: int
    """The model's own weights."""

    trained_bytes: int
    """Of what is trained, its weights alone."""

    step_bytes: int
    """At the peak of the forward and backward pass: weights, gradients, activations, logits, and the teacher's weights."""

    update_bytes: int
    """At the peak of the optimiser's step, moments and all; 0 without one."""

    moments_bytes: int
    """Of what the optimiser keeps, AdamW its two moments, which is there from the second step on; 0 without one."""

    kept_bytes: int
    """What is kept besides."""

    largest_layer_bytes: int
    """The weights of the largest decoder layer."""

    @property
    def static_bytes(self) -> int:
        """All that is as large as weights: they, their gradients, the moments, and what is kept besides."""
        return self.weights_bytes + self.trained_bytes + self.moments_bytes + self.kept_bytes

    @property
    def peak_bytes(self) -> int:
        """The larger of the two peaks, with what is there all the time."""
        return max(self.step_bytes + self.moments_bytes, self.update_bytes) + self.kept_bytes


def dry_run(
    config: Any, step: Step, *, sequences: int, tokens: int, dtype: torch.dtype, precision: torch.dtype | None = None
) -> Footprint:
    """Run one step of a model without data.

    Args:
        config: of the model.
        step: what the step is.
        sequences: rows of a forward pass, where the step names none.
        tokens: tokens of a row, where the step names none.
        dtype: of the weights.
        precision: autocast dtype; the weights' own if None.

    Raises:
        ModelError: if the model cannot be run so; the message says why.
    """
    shape = (step.sequences or sequences, step.tokens or tokens)
    with _without_data(config), _Allocations() as memory:
        return _run(config, step, shape, dtype, precision, memory)


def forward_flops(config: Any, *, sequences: int, tokens: int, logits: int | None = None) -> int:
    """Floating-point operations of a forward pass.

    Args:
        config: of the model.
        sequences: rows.
        tokens: tokens of a row.
        logits: positions of a row whose logits are made, where the model can leave the others out; all if None.

    Raises:
        ModelError: if the model cannot be run so.
    """
    with _without_data(config), torch.no_grad():
        model = _build(config, torch.float32)
        with flop_counter() as counter:  # of the training steps it would hold on to what they let go
            ids = torch.zeros(sequences, tokens, dtype=torch.long)
            model(input_ids=ids, use_cache=False, **last_logits(model, logits, tokens))
    return int(counter.get_total_flops())


def last_logits(model: Any, logits: int | None, tokens: int) -> dict[str, int]:
    """What a model is told to make the logits of so many of its tokens alone; nothing if it cannot, or saves nothing by it."""
    if logits is None or logits >= tokens - 1 or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return {}
    return {"logits_to_keep": logits}


@contextmanager
def _without_data(config: Any) -> Iterator[None]:
    """Tensors have no data in here, nothing is drawn at random, and whatever goes wrong is one line."""
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"a {config.model_type} model cannot be run without data, so that nothing can be estimated; run it on a few "
            f"windows instead (reason: {type(error).__name__}: {reason[:200]})"
        ) from error


def _run(
    config: Any,
    step: Step,
    shape: tuple[int, int],
    dtype: torch.dtype,
    precision: torch.dtype | None,
    memory: _Allocations,
) -> Footprint:
    decoder = Decoder(_build(config, dtype), verify=False)
    teacher = _build(config, dtype).requires_grad_(False) if step.teacher else None
    gone = range(decoder.num_layers - step.without, decoder.num_layers)
    away = sum(_bytes(decoder.layers[layer].parameters()) for layer in gone) if step.cut else 0
    weights = _bytes(decoder.model.parameters()) - away
    trained = _trained(decoder, step)
    memory.restart()
    autocast = torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None)
    with autocast, decoder.bypass(gone):
        _pass(decoder, teacher, torch.zeros(shape, dtype=torch.long), step, trained)
    step_bytes = memory.peak - away
    memory.restart()
    trained_bytes, update_bytes, moments_bytes = _bytes(trained), 0, 0
    if trained and step.optimizer:
        torch.optim.AdamW(trained, lr=0.0, foreach=False).step()
        moments_bytes = round(step.moments * trained_bytes)
        # Another optimiser is as AdamW otherwise.
        update_bytes = memory.peak - away - 2 * trained_bytes + moments_bytes
    return Footprint(
        weights_bytes=weights,
        trained_bytes=trained_bytes,
        step_bytes=step_bytes,
        update_bytes=update_bytes,
        moments_bytes=moments_bytes,
        kept_bytes=round(step.trained_copies * trained_bytes + step.copies * weights),
        largest_layer_bytes=max(_bytes(layer.parameters()) for layer in decoder.layers),
    )


def _pass(decoder: Decoder, teacher: Any, ids: Tensor, step: Step, trained: Sequence[Tensor]) -> None:
    """Forward, and backward if anything is trained."""
    if not trained:
        with torch.no_grad():
            if step.logits is None:
                _loss(decoder.model, teacher, ids, None)
            else:  # examples are scored: their losses are taken row by row
                told = last_logits(decoder.model, step.logits, ids.shape[1])
                decoder.model(input_ids=ids, use_cache=False, **told)
    elif step.trains == "gates":
        with decoder.gate(trained[0]):
            _loss(decoder.model, teacher, ids, step.logits).backward()  # type: ignore[no-untyped-call]
    else:
        _loss(decoder.model, teacher, ids, step.logits).backward()  # type: ignore[no-untyped-call]


def _build(config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model.eval()


def _trained(decoder: Decoder, step: Step) -> list[Tensor]:
    """The tensors that get a gradient: as in the trainings, not of layers that do not run."""
    model = decoder.model.requires_grad_(False)
    stay = decoder.layers[: decoder.num_layers - step.without]
    if step.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # transformers is renaming it
        (enable or model.gradient_checkpointing_enable)()
        model.train()
    if step.trains == "gates":
        return [torch.ones(decoder.num_layers, requires_grad=True)]
    if step.trains == "full":
        gone = {parameter for layer in decoder.layers[len(stay) :] for parameter in layer.parameters()}
        return [parameter.requires_grad_(True) for parameter in model.parameters() if parameter not in gone]
    if step.trains == "partial":
        parts = [*stay[-step.partial_layers :], model.get_output_embeddings()]
        return [parameter.requires_grad_(True) for part in parts for parameter in part.parameters()]
    if step.trains == "lora":
        return _lora_(stay, step.lora_rank)
    return []


def _lora_(layers: Iterable[nn.Module], rank: int) -> list[Tensor]:
    """Adapters on the linear maps of the layers, as peft's are: peft itself would move them, which a fake tensor cannot be.

    Of experts stacked in one parameter peft adapts each; here they have none.
    """
    adapters: list[Tensor] = []

    def adapt(module: nn.Linear) -> None:
        down, up = (
            nn.Parameter(torch.empty(shape, dtype=module.weight.dtype))
            for shape in ((rank, module.in_features), (module.out_features, rank))
        )
        module.register_forward_hook(lambda _, args, out: out + functional.linear(functional.linear(args[0], down), up))
        adapters.extend((down, up))

    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                adapt(module)
    return adapters


def _loss(model: Any, teacher: Any, ids: Tensor, kept: int | None) -> Tensor:
    """Next-token cross-entropy, and the distance to the teacher's distribution where there is one."""
    if kept and (told := last_logits(model, kept, ids.shape[1])):
        logits = model(input_ids=ids, use_cache=False, **told).logits.float().flatten(0, 1)
        return functional.cross_entropy(logits, ids[:, -kept:].flatten())
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
    loss = functional.cross_entropy(logits, ids[:, 1:].flatten())
    if teacher is not None:
        with torch.no_grad():
            theirs = teacher(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
        loss = loss + distillation_loss(logits, theirs, temperature=1.0, top_k=None)
    return loss


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.now = self.peak = 0
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        del self._alive[key]
