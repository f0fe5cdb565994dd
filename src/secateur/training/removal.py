"""Train a model while some of its layers are on their way out: ELDeR's second stage, and its variants.

For the layers P that will be removed, the loss of a step is

    (1 − d)·CE + d·KL(dense ‖ model) + λ2 · Σ_{l in P} mean_tokens ‖X_out[l] − X_in[l]‖

with `d` the weight of the distillation and the norm taken over the hidden dimension. The layers of P are active, fade out
with their residual gate over a share of the steps, or are bypassed from the first step on. Where P is empty this is a plain
training: `secateur.training.recovery` is that.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PrinterCallback, TrainingArguments

from secateur.data import TokenBatches
from secateur.decoder import Activations, Decoder, unwrapped
from secateur.errors import TrainingDivergedError
from secateur.processes import summed_
from secateur.progress import Progress, Silent
from secateur.training.checkpoints import Keeping, ResumableTrainer
from secateur.training.distillation import distillation_loss
from secateur.training.lora import attach_lora
from secateur.training.partial import train_last_
from secateur.training.settings import RESUME, RemovalTraining
from secateur.training.sharding import back_in_parts_, in_parts, own_part
from secateur.training.trainer import (
    Advance,
    given_back,
    mean_of_processes,
    training_arguments,
    unprepared,
)

__all__ = ["RemovalTraining", "identity_penalty", "removal_arguments", "train_towards_removal_"]

logger = logging.getLogger(__name__)


def identity_penalty(seen: Activations, layers: Collection[int], norm: Literal["l1", "l2"] = "l2") -> Tensor:
    """`Σ_{l in layers} mean_tokens ‖X_out[l] − X_in[l]‖`, a scalar in float32 (ELDeR, stage 2).

    The paper does not state the reduction: here the norm runs over the hidden dimension, its mean over tokens.
    """
    order = 1 if norm == "l1" else 2
    terms = []
    for layer in sorted(layers):
        change = seen.outputs[layer].float() - seen.inputs[layer].float()  # (batch, tokens, hidden)
        terms.append(torch.linalg.vector_norm(change, ord=order, dim=-1).mean())
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def train_towards_removal_(
    decoder: Decoder,
    dropped: Collection[int],
    batches: TokenBatches,
    *,
    settings: RemovalTraining,
    teacher: nn.Module | None = None,
    precision: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    description: str = "training towards the removal",
    keeping: Keeping | None = None,
) -> dict[str, Any]:
    """Train the model in place; the layers that go are still there afterwards.

    Args:
        decoder: the model, any weights.
        dropped: the layers on their way out.
        batches: the training tokens.
        settings: see `RemovalTraining`.
        teacher: the dense model, frozen; a copy of the model as it is now if None and one is needed.
        precision: autocast dtype.
        seed: of the order of the windows, dropout and adapters.
        progress: told of each step.
        description: what the step is called.
        keeping: where checkpoints are, from which the training goes on; none are written if None.

    Returns:
        `steps`, `tokens`, `losses` (a dictionary a step), `final_gate` (what is left of the layers that go).

    Raises:
        TrainingDivergedError: if the loss or a weight stops being finite. The model then holds the last good weights.
    """
    if settings.distil > 0 and teacher is None:
        teacher = copy.deepcopy(decoder.model)
    if teacher is not None:
        teacher = teacher.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as scratch:
        place = scratch if keeping is None else str(keeping.folder)
        arguments = removal_arguments(settings, batches, precision=precision, seed=seed, scratch=place)
        with (
            given_back(decoder.model, checkpointing=bool(arguments.gradient_checkpointing)),
            _trainable(decoder, dropped, settings, seed) as model,
            unprepared(model),
            in_parts(model) as given,
        ):
            trainer = _RemovalTrainer(
                model=given, args=arguments, train_dataset=[{"input_ids": row} for row in batches.input_ids],
                data_collator=lambda rows: {"input_ids": torch.stack([row["input_ids"] for row in rows])},
                decoder=decoder if given is model else Decoder(unwrapped(given)), dropped=dropped, settings=settings,
                teacher=teacher,
            )  # fmt: skip
            with (progress or Silent()).track(description, arguments.max_steps) as advance:
                trainer.add_callback(Advance(advance))
                if RESUME in settings.trainer:
                    trainer.train(resume_from_checkpoint=settings.trainer[RESUME])
                else:
                    trainer.carry_on(keeping)
                trainer.check_weights()
    steps, each = trainer.args.max_steps, settings.sequences_per_step
    passes, more = divmod(steps, math.ceil(batches.num_sequences / each))  # the last step of a pass takes what is left
    windows = passes * batches.num_sequences + min(more * each, batches.num_sequences)
    return {
        "steps": steps,
        "tokens": windows * batches.sequence_length,
        "losses": trainer.losses,
        "final_gate": settings.fade_at(1.0),
    }


class _RemovalTrainer(ResumableTrainer):
    """A Trainer whose loss knows which layers are going, and which stops on a loss that is not finite."""

    def __init__(
        self,
        *,
        decoder: Decoder,
        dropped: Collection[int],
        settings: RemovalTraining,
        teacher: nn.Module | None,
        **trainer: Any,
    ) -> None:
        super().__init__(**trainer)
        self.remove_callback(PrinterCallback)  # standard output is for results
        self.loss_is_scaled_for_ga = False  # `compute_loss` is a mean over the micro-batch
        self.decoder, self.dropped, self.settings, self.teacher = decoder, sorted(set(dropped)), settings, teacher
        if teacher is not None:
            teacher.to(self.args.device)
        self.losses: list[dict[str, float]] = []
        self._seen = Activations()
        self._good: list[Tensor] = []  # none before the first step here, which changes nothing until its loss is known

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, forward and backward, with the layers that go gated as far as they have faded."""
        fade = self.settings.fade_at(self._progress())
        with ExitStack() as stack:
            if fade == 0:
                stack.enter_context(self.decoder.bypass(self.dropped))
            else:
                if self.settings.lambda_2 > 0:
                    self._seen = stack.enter_context(self.decoder.capture(self.dropped))
                if fade < 1:
                    gates = torch.full((self.decoder.num_layers,), fade)
                    stack.enter_context(self.decoder.gate(gates, layers=self.dropped))
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._seen = Activations()
        return loss

    def compute_loss(self, model: nn.Module, inputs: Mapping[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """The loss of the module's docstring, on one micro-batch of token ids (batch, tokens)."""
        input_ids = inputs["input_ids"]
        logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()  # (batch, tokens - 1, vocabulary)
        parts: dict[str, Tensor] = {}
        weight = self.settings.distil
        shares = {"cross_entropy": 1 - weight, "distillation": weight}
        if weight < 1:
            parts["cross_entropy"] = functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())
        if weight > 0:
            parts["distillation"] = self._divergence(logits, input_ids)
        loss = torch.stack([shares[name] * part for name, part in parts.items()]).sum()
        if self._seen.outputs:
            parts["identity"] = identity_penalty(self._seen, self.dropped, self.settings.norm)
            loss = loss + self.settings.lambda_2_at(self._progress()) * parts["identity"]
        self._record(loss, parts)
        return loss

    def _divergence(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        """KL(dense ‖ model), mean over the predicted tokens."""
        assert self.teacher is not None  # noqa: S101  made by train_towards_removal_ where distil > 0
        with torch.no_grad(), self.accelerator.autocast():  # the model's own forward has that in it
            target = self.teacher(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
        return distillation_loss(
            logits.flatten(0, 1), target.flatten(0, 1),
            temperature=self.settings.distil_temperature, top_k=self.settings.distil_top_k,
        )  # fmt: skip

    def _progress(self) -> float:
        """0 at the first step, 1 at the last, so that what fades over the whole training is gone in its last step."""
        last = int(self.args.max_steps) - 1
        return float(self.state.global_step) / last if last > 0 else 1.0

    # ---- checkpoints -----------------------------------------------------------------------------------------------------

    def remembered(self) -> dict[str, Any]:
        """The losses so far."""
        return {"losses": self.losses}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on with the losses; the Trainer sees to the weights."""
        self.losses = kept.get("losses", [])

    # ---- guarding against a loss that is not finite ---------------------------------------------------------------------

    def _record(self, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        values = mean_of_processes({"loss": loss, **parts})  # not finite in one is not finite in all: all give up
        if not math.isfinite(values["loss"]):
            self._give_up(f"the loss became {values['loss']} at step {self.state.global_step + 1}")
        if not self.losses or self.losses[-1]["step"] != self.state.global_step:
            if not self._good or self.state.global_step % max(1, self.args.max_steps // 8) == 0:
                self._keep_good_weights()
            self.losses.append({"step": self.state.global_step, **values})

    def _trained(self) -> Iterator[Tensor]:
        """The weights that are trained, or this process's part of them."""
        back_in_parts_(self.model)
        return (own_part(parameter) for parameter in self.model.parameters() if parameter.requires_grad)

    def _keep_good_weights(self) -> None:
        """Weights that just gave a finite loss; kept in the CPU's memory."""
        self._good = [parameter.detach().to("cpu", copy=True) for parameter in self._trained()]

    def _give_up(self, what: str) -> None:
        with torch.no_grad():
            for parameter, good in zip(self._trained(), self._good, strict=bool(self._good)):
                parameter.copy_(good)
        penalty = f"a lower lambda_2 (now {self.settings.lambda_2:g}), " if self.settings.lambda_2 else ""
        raise TrainingDivergedError(
            f"{what}; the last good weights are kept: try a lower learning rate (now {self.settings.learning_rate:g}), "
            f"{penalty}or fp32 precision"
        )

    def check_weights(self) -> None:
        """The last update has no loss after it, so its weights are looked at themselves."""
        broken = not all(bool(torch.isfinite(parameter).all()) for parameter in self._trained())
        if summed_(torch.tensor(float(broken), device=self.args.device)):
            self._give_up("a weight became non-finite in the last step")


@contextmanager
def _trainable(decoder: Decoder, dropped: Collection[int], settings: RemovalTraining, seed: int) -> Iterator[nn.Module]:
    """The model with what is to be trained marked; adapters are merged at the end, also when the training gave up."""
    if settings.train == "full":
        decoder.model.requires_grad_(True)
        if settings.fade_over == 0:
            for layer in dropped:  # never run, so never trained; several processes need to know
                decoder.layers[layer].requires_grad_(False)
        yield decoder.model
        return
    if settings.train == "partial":
        train_last_(decoder, dropped, settings.partial_layers)
        yield decoder.model
        return
    adapted = attach_lora(decoder, rank=settings.lora_rank, alpha=settings.lora_alpha, seed=seed)
    try:
        yield adapted
    except KeyboardInterrupt:
        adapted.unload()
        raise
    except BaseException:
        adapted.merge_and_unload()
        raise
    adapted.merge_and_unload()


def removal_arguments(
    settings: RemovalTraining,
    batches: TokenBatches,
    *,
    precision: torch.dtype | None = None,
    seed: int = 0,
    scratch: str,
) -> TrainingArguments:
    """What the Trainer is given.

    Args:
        settings: see `RemovalTraining`.
        batches: the training tokens.
        precision: autocast dtype.
        seed: of everything random.
        scratch: the Trainer's directory.

    Raises:
        RequestError: if further fields of the Trainer contradict each other or have no such value.
    """
    theirs = {name: value for name, value in settings.trainer.items() if name != RESUME}
    return training_arguments(
        settings,
        theirs,
        work=scratch,
        steps=settings.num_steps(batches),
        batch=settings.sequences_per_step,
        micro_batch=settings.micro_batch or settings.sequences_per_step,
        rate=settings.learning_rate,
        precision=precision,
        seed=seed,
        save_strategy="steps" if "save_steps" in theirs else "no",
        logging_strategy="steps" if {"logging_steps", "report_to"} & theirs.keys() else "no",
        logging_steps=1,
    )
