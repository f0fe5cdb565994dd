"""Where a causal language model keeps its decoder layers, and how to look at, weigh or skip them for a while.

The layers are found by structure (a module list as long as the configuration says) and then verified by running the
model: each must be called once, in order, each on what the one before returned. Everything a context manager here changes
is given back when it ends, also on an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.depth import count_field
from secateur.errors import PlanError, UnsupportedModelError
from secateur.settings import GateKind

__all__ = ["Activations", "Decoder", "evaluating", "unwrapped"]

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 8
_MISSING = object()


@dataclass
class Activations:
    """What entered and left the captured layers in the last forward pass; (batch, tokens, hidden) each."""

    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)


class Decoder:
    """The stack of decoder layers of a causal language model.

    Args:
        model: a `transformers` causal language model, or one wrapped by peft.
        verify: run the model once on eight tokens to make sure that the layers found are the layers.

    Raises:
        UnsupportedModelError: if the layers cannot be found; the message says why.
    """

    def __init__(self, model: nn.Module, *, verify: bool = True) -> None:
        self.model: Any = model
        self.config: Any = _text_config(model)
        # Layers return the hidden states alone, or a tuple that begins with them; the probe finds out which.
        self._tail: tuple[None, ...] | None = None
        self.path, self.layers = self._find(verify)

    @property
    def num_layers(self) -> int:
        """The number of layers now in the model."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        embedding = self.model.get_input_embeddings()
        device: torch.device = embedding.weight.device
        return torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate moves the input

    def logits(self, input_ids: Tensor) -> Tensor:
        """Next-token logits (batch, tokens, vocabulary) of token ids (batch, tokens), without a cache."""
        logits: Tensor = self.model(input_ids=input_ids.to(self.device), use_cache=False).logits
        return logits

    def body(self, input_ids: Tensor) -> None:
        """Run the model on token ids (batch, tokens) for what `capture` sees: without the language-model head."""
        body = getattr(self.model, "base_model", None)
        run = body if isinstance(body, nn.Module) and body is not self.model else self.model
        run(input_ids=input_ids.to(self.device), use_cache=False)

    def probe_ids(self) -> Tensor:
        """Eight token ids (1, 8) that every vocabulary has, to try the model on."""
        vocabulary = int(getattr(self.config, "vocab_size", 0) or self.model.get_input_embeddings().weight.shape[0])
        return torch.arange(3, 3 + _PROBE_TOKENS).remainder(vocabulary).unsqueeze(0)

    @contextmanager
    def bypass(self, layers: Collection[int]) -> Iterator[None]:
        """The model as if `layers` were not there: what enters such a layer leaves it, and it costs nothing.

        Cached generation is not meant to run inside: the cache counts tokens in layers that are then never called.
        """
        with ExitStack() as stack:
            for layer in sorted(set(layers)):
                module = self._layer(layer)
                stack.callback(_restore_forward, module, vars(module).get("forward", _MISSING))
                module.forward = self._pass_through
            yield

    @contextmanager
    def gate(
        self, values: Tensor, *, kind: GateKind = "residual", layers: Collection[int] | None = None
    ) -> Iterator[None]:
        """Weigh the output of each layer by a scalar.

        `residual`: `X_in + s·(layer(X_in) − X_in)`, so that 0 is the bypassed layer; `output`: `s·layer(X_in)`, the form
        published in ELDeR. At 1 both are the plain layer, bit for bit. Gradients flow into `values`.

        Args:
            values: the gates (layers of the model,), or one for each sequence (layers, batch); any float type, any device.
            kind: what is weighed.
            layers: the layers to gate; all if None.
        """
        chosen = range(self.num_layers) if layers is None else sorted(set(layers))

        def weigh(layer: int, hidden: Tensor, output: Tensor) -> Tensor:
            scalar = values[layer].to(device=output.device, dtype=output.dtype)
            scalar = scalar.view(-1, *[1] * (output.dim() - 1)) if scalar.dim() else scalar
            return scalar * output if kind == "output" else torch.lerp(hidden.to(output.dtype), output, scalar)

        with self._hooked(chosen, weigh):
            yield

    @contextmanager
    def capture(self, layers: Collection[int]) -> Iterator[Activations]:
        """Record what enters and leaves `layers`; the tensors are live, so gradients can flow through them.

        A second forward pass overwrites the first. Enter it inside `gate` to see the gated output.
        """
        seen = Activations()

        def record(layer: int, hidden: Tensor, output: Tensor) -> None:
            seen.inputs[layer], seen.outputs[layer] = hidden, output

        with self._hooked(sorted(set(layers)), record):
            yield seen

    @contextmanager
    def start_at(self, layer: int, hidden: Tensor) -> Iterator[None]:
        """The model from `layer` on: earlier layers cost nothing, and `hidden` (batch, tokens, hidden) enters there."""

        def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        handle = self._layer(layer).register_forward_pre_hook(replace, with_kwargs=True)
        try:
            with self.bypass(range(layer)):
                yield
        finally:
            handle.remove()

    # ---- finding and verifying ----------------------------------------------------------------------------------------

    def _find(self, verify: bool) -> tuple[str, nn.ModuleList]:
        if getattr(self.config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} is an encoder-decoder; secateur cuts decoder-only causal language models"
            )
        count = getattr(self.config, count_field(self.config), None)
        if not isinstance(count, int):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its configuration states no number of decoder layers; only models with one "
                "stack of decoder layers can be pruned"
            )
        lists = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and 0 < len(module) == count
        }
        if not lists:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: no list of {count} modules, the number of layers its configuration "
                "states; only models with one stack of decoder layers can be pruned"
            )
        if not verify:
            return next(iter(lists.items()))
        reasons = {}
        for name, layers in lists.items():
            reasons[name] = self._reason_against(layers)
            if reasons[name] is None:
                return name, layers
        name, reason = next(iter(reasons.items()))
        raise UnsupportedModelError(f"{type(self.model).__name__}: '{name}' is not a plain stack of layers: {reason}")

    def _reason_against(self, layers: nn.ModuleList) -> str | None:
        """Run eight tokens through the model; None if `layers` turn out to be its decoder layers."""
        self.layers = layers
        called: list[int] = []
        reasons: list[str] = []
        last: list[Tensor] = []

        def watch(layer: int, hidden: Tensor, output: Tensor) -> None:
            called.append(layer)
            if output.shape != hidden.shape:
                reasons.append(f"layer {layer} turns {tuple(hidden.shape)} into {tuple(output.shape)}")
            elif last and (last[0].shape != hidden.shape or not torch.equal(last[0].to(hidden.device), hidden)):
                reasons.append(f"the input of layer {layer} is not the output of the layer before it")
            last[:] = [output]

        try:
            with evaluating(self.model), torch.no_grad(), self._hooked(range(len(layers)), watch):
                self.logits(self.probe_ids())
        except UnsupportedModelError as error:
            return str(error)
        except Exception as error:
            logger.debug("the probe failed", exc_info=True)
            return f"running the model on {_PROBE_TOKENS} tokens failed with {type(error).__name__}: {error}"
        if not called:
            return "running the model does not call it"
        if called != list(range(len(layers))):
            return f"its modules are not called once each in order but as {called[:12]}"
        return reasons[0] if reasons else None

    # ---- the one way in -----------------------------------------------------------------------------------------------

    def _layer(self, layer: int) -> nn.Module:
        if not 0 <= layer < self.num_layers:
            raise PlanError(f"the model has no layer {layer}; its layers are 0..{self.num_layers - 1}")
        return self.layers[layer]

    @contextmanager
    def _hooked(self, layers: Collection[int], see: Callable[[int, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
        """Call `see(layer, input, output)` after each of `layers`; a tensor it returns replaces the output."""

        def hook_of(layer: int) -> Callable[..., Any]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
                several = isinstance(result, (tuple, list))
                self._tail = (None,) * (len(result) - 1) if several else None
                new = see(layer, _hidden_in(args, kwargs), _hidden_out(result))
                if new is None:
                    return None
                return (new, *result[1:]) if several else new

            return hook

        with ExitStack() as stack:
            for layer in layers:
                handle = self._layer(layer).register_forward_hook(hook_of(layer), with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _pass_through(self, *args: Any, **kwargs: Any) -> Any:
        hidden = _hidden_in(args, kwargs)
        return hidden if self._tail is None else (hidden, *self._tail)


def _hidden_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise UnsupportedModelError("its modules do not take hidden states as their first argument")
    return hidden


def _hidden_out(result: Any) -> Tensor:
    hidden = result[0] if isinstance(result, (tuple, list)) and result else result
    if not isinstance(hidden, Tensor) or hasattr(result, "_fields"):  # named parts: more than one is passed on
        raise UnsupportedModelError(f"its modules return {type(result).__name__}, not hidden states")
    return hidden


def _restore_forward(module: nn.Module, forward: Any) -> None:
    if forward is _MISSING:
        del module.forward
    else:
        module.forward = forward


def _text_config(model: Any) -> Any:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(f"{type(model).__name__} has no transformers configuration; give a causal LM")
    return config.get_text_config(decoder=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and the random number generators untouched; every module's own mode comes back."""
    training = [module for module in model.modules() if module.training]
    with torch.random.fork_rng():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def unwrapped(model: Any) -> Any:
    """The model inside a wrapper of peft, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
