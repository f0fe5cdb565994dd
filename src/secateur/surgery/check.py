"""Is a checkpoint another one without some layers? The proof for any pair, whoever made it.

First the files, without loading a weight: which layers they hold, whether every tensor is the dense one's bit for bit, and
whether the configuration is what it must be. `cut_layout` says what that is, as it does for a cut. Then both models run: the
logits must be those of the dense model with the layers bypassed, and cached generation must agree with uncached. A model that
does not fit into memory keeps its layers on the disk, and each is read when it is its turn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.context import check_context
from secateur.depth import layer_count
from secateur.errors import ModelError, PlanError, RequestError
from secateur.plan import PruningPlan
from secateur.progress import Progress, Silent
from secateur.surgery.checkpoint import is_of_family
from secateur.surgery.findings import Check, DifferentError, Findings, to_compare
from secateur.surgery.folding import folded
from secateur.surgery.layout import CutLayout, check_told_by_files, cut_layout, layer_paths
from secateur.surgery.matching import Match, changed_tensors, match_layers, same_tensor
from secateur.surgery.names import layers_under
from secateur.surgery.running import Outcome, run_pair
from secateur.surgery.shards import Bytes, StoredTensor, quoted
from secateur.surgery.source import check_is_checkpoint, read_config, read_weights

__all__ = ["check_pair"]

_SAYS_NOTHING = {"transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
"""Fields of a configuration that may differ: who wrote it, and what the tensors themselves say."""


def check_pair(
    dense: str | Path,
    pruned: str | Path,
    *,
    dropped: Collection[int] | None = None,
    run: bool = True,
    layer_by_layer: bool | None = None,
    prompt_tokens: int = 64,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Check:
    """Find out whether one checkpoint is another without some layers.

    Args:
        dense: a local checkpoint directory with safetensors.
        pruned: the other one.
        dropped: the layers that went; found by comparing the files if None, with the help of its plan if it has one.
        run: run both models, too; else the files alone are compared.
        layer_by_layer: keep the layers on the disk while running; None does so where the dense model does not fit.
        prompt_tokens: token ids that both models read.
        trust_remote_code: run code that comes with the models.
        progress: told of what is compared and run.

    Raises:
        ModelError: if there is no checkpoint at one of the places, the dense one is damaged, or its model cannot run here.
        UnsupportedModelError: if the dense checkpoint cannot be cut, so that it cannot be said what it would be.
        RequestError: if its context is shorter than the prompt.
        PlanError: if `dropped` are not layers of it.
    """
    folder = Path(dense).expanduser()
    tensors, _ = read_weights(folder)
    source = _Side(folder, tensors, read_config(folder, len(tensors), trust_remote_code))
    if not run:
        check_told_by_files(folder, source.config)
    else:
        check_context(dense, source.config, {"prompt tokens": prompt_tokens})
    progress = progress or Silent()
    pair = _Pair(source, progress)
    outcome = None
    with suppress(DifferentError):
        other = pair.read(Path(pruned).expanduser(), trust_remote_code)
        progress.note(to_compare(sum(tensor.num_bytes for tensor in other.tensors.values())))
        layout = pair.compare_files(other, dropped, trust_remote_code)
        if run:
            outcome = run_pair(
                source.folder, other.folder, None if pair.folded else pair.dropped, path=layout.path, config=other.config,
                model=layout.model, num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
                layer_by_layer=layer_by_layer, prompt_tokens=prompt_tokens, trust_remote_code=trust_remote_code,
                progress=progress,
            )  # fmt: skip
        pair.judge(outcome)
    return Check(
        dense=str(dense),
        pruned=str(pruned),
        dropped=pair.dropped,
        layer_by_layer=outcome is not None and outcome.layer_by_layer,
        findings=tuple(pair.findings),
    )


@dataclass(frozen=True)
class _Side:
    """A checkpoint by its files."""

    folder: Path
    tensors: dict[str, StoredTensor]
    config: Any

    @property
    def num_layers(self) -> int:
        return layer_count(self.config)


class _Pair(Findings):
    """The findings as they are made."""

    def __init__(self, source: _Side, progress: Progress) -> None:
        super().__init__()
        self.source = source
        self.progress = progress
        self.folded: frozenset[str] = frozenset()

    def read(self, folder: Path, trust_remote_code: bool) -> _Side:
        """The pruned checkpoint; what is wrong with it is a finding, but that there is none is a wrong request."""
        check_is_checkpoint(folder)
        what = "files"
        try:
            tensors, _ = read_weights(folder)
            self.found(what, True, f"{len(tensors)} tensors, no file damaged or missing")
            what = "configuration"
            other = _Side(folder, tensors, read_config(folder, len(tensors), trust_remote_code))
        except ModelError as error:
            self.stop(what, str(error))
        if other.config.model_type != self.source.config.model_type:
            self.stop(
                "family", f"it is a {other.config.model_type} model, and the dense one {self.source.config.model_type}"
            )
        return other

    def compare_files(self, other: _Side, dropped: Collection[int] | None, trust_remote_code: bool) -> CutLayout:
        """All that can be said without running anything."""
        source = self.source
        roots = self._where_layers_are(other)
        claim = self._claimed(other, dropped)
        matches = match_layers(
            layers_under(source.tensors, roots[0]),
            layers_under(other.tensors, roots[1]),
            claimed=None if claim is None else claim.kept,
            progress=self.progress,
        )
        self.check_order(matches, None if claim is None else claim.kept, source.num_layers)
        layout = cut_layout(source.folder, source.config, source.tensors, self.dropped or (), trust_remote_code)
        wanted: Mapping[str, Bytes] = layout.tensors
        if claim is not None and ("folds" in claim.provenance or claim.masks):
            try:
                wanted, self.folded = folded(layout, source.tensors, claim)
            except RequestError as error:
                self.stop("layers", str(error))
        self._compare_tensors(other, layout, wanted, matches, roots)
        self._compare_configs(layout.config, other.config)
        return layout

    def judge(self, outcome: Outcome | None) -> None:
        """What the models did, held to what they must do; nothing if they did not run."""
        if outcome is None:
            for what in ("reload", "logits", "generation"):
                self.found(what, None, "not looked at: the files alone were compared")
            return
        if outcome.refused is not None:
            self.stop("reload", outcome.refused)
        self.found("reload", True, "no weight is missing")
        if self.folded:
            self.found("logits", None, "not those of the dense model with the layers bypassed, as layers are folded in")
        else:
            self.found(
                "logits",
                outcome.difference <= outcome.tolerance,
                f"they differ by {outcome.difference:.3g} from those of the dense model with the layers bypassed, on "
                f"{outcome.tokens} tokens; rounding explains {outcome.tolerance:.2g}",
            )
        self._judge_generation(outcome)

    def _judge_generation(self, outcome: Outcome) -> None:
        """A cache that forgets as much in the dense model, which is asked only where there is a gap, is the family's."""
        gap, of_dense = outcome.cache_gap, outcome.dense_cache_gap
        holds: bool | None = gap <= outcome.tolerance
        words = f"cached and uncached differ by {gap:.3g} in a logit, in {outcome.generated_tokens} tokens"
        if not math.isnan(of_dense):
            words += f"; in the dense model by {of_dense:.3g}"
        if not holds and is_of_family(gap, of_dense, outcome.tolerance):
            holds, words = None, f"{words}, so that it is not the cut"
        self.found("generation", holds, words)

    # ---- one by one -------------------------------------------------------------------------------------------------------

    def _where_layers_are(self, other: _Side) -> tuple[str, str]:
        """What stands before the number of a layer in the files of both, such as `model.layers`."""
        before, after = self.source.num_layers, other.num_layers
        paths = layer_paths(self.source.folder, self.source.tensors, before)
        try:
            others = layer_paths(other.folder, other.tensors, after)
        except ModelError as error:
            self.stop("layers", str(error))
        if after >= before:
            self.stop("layers", f"it has {after} layers, and the dense model {before}: none went")
        alike = [(a, b) for a in paths for b in others if f".{a}".endswith(f".{b}") or f".{b}".endswith(f".{a}")]
        if not alike:
            self.stop("layers", f"its files name them '{others[0]}', and those of the dense model '{paths[0]}'")
        return alike[0]

    def _claimed(self, other: _Side, dropped: Collection[int] | None) -> PruningPlan | None:
        """The layers that are said to have gone, by whoever asks or by the plan beside the pruned checkpoint."""
        before = self.source.num_layers
        path = other.folder / "secateur" / "plan.json"
        if dropped is not None:
            claim = PruningPlan.of_layers(dropped, before)
        elif path.is_file():
            try:
                claim = PruningPlan.load(path)
            except PlanError as error:
                self.stop("layers", str(error))
        else:
            return None
        if claim.num_layers != before:
            self.stop("layers", f"its plan is for a model of {claim.num_layers} layers, and the dense one has {before}")
        if len(claim.kept) != other.num_layers:
            self.stop("layers", f"it has {other.num_layers}, and {len(claim.kept)} are said to be left")
        return claim

    def _compare_tensors(
        self,
        other: _Side,
        layout: CutLayout,
        tensors: Mapping[str, Bytes],
        matches: Sequence[Match],
        roots: tuple[str, str],
    ) -> None:
        """Every tensor of one is a tensor of the other, and the same."""
        wanted, found = _renamed(tensors, *roots), other.tensors
        unread = _renamed(dict.fromkeys(layout.unread), *roots)
        tied = tuple(getattr(layout.model, "all_tied_weights_keys", None) or ())
        missing = sorted(wanted.keys() - found.keys() - unread.keys())
        missing = [name for name in missing if not (name.endswith(tied) and _doubled(wanted[name], found))]
        more = sorted(found.keys() - wanted.keys())
        more = [name for name in more if not (name.endswith(tied) and _doubled(found[name], wanted))]
        exact = tuple(f"{roots[1]}.{layer}." for layer, match in enumerate(matches) if match.exact)
        both = sorted(wanted.keys() & found.keys())
        others = [name for name in both if not name.startswith(exact)]
        changed = changed_tensors(wanted, found, others, self.progress)
        if missing:
            self.found("tensors", False, f"{quoted(missing[0])} is missing")
        elif more:
            self.found("tensors", False, f"{quoted(more[0])} is none of the dense model")
        elif changed:
            words = f"{quoted(changed[0])} is not as in the dense model, {len(changed)} of {len(both)} are not"
            self.found("tensors", False, words)
        else:
            rounded = sorted({found[name].dtype for name in both if found[name].dtype != wanted[name].dtype})
            how = f"rounded to {', '.join(rounded)}" if rounded else "bit for bit"
            if self.folded:
                how += f", {len(self.folded)} of them with layers folded in as the plan says"
            self.found("tensors", True, f"all {len(both)} are those of the dense model, {how}")

    def _compare_configs(self, wanted: Any, found: Any) -> None:
        """Per-layer fields must be those of the layers that are left, and all others as they were."""
        fields, others = (_flat(type(wanted).from_dict(each.to_dict()).to_dict()) for each in (wanted, found))
        for name in sorted(fields.keys() | others.keys()):
            wrong, right = others.get(name), fields.get(name)
            if wrong != right:
                words = f"{name} is {quoted(wrong)}, and must be {quoted(right)} for the layers that are left"
                return self.found("configuration", False, words)
        return self.found("configuration", True, f"all {len(fields)} fields are those of the layers that are left")


def _renamed(tensors: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Names as the other checkpoint spells them: with or without what stands before all of them, `transformer.`."""
    if len(old) >= len(new):
        root = old.removesuffix(new)
        return {name.removeprefix(root): tensor for name, tensor in tensors.items()}
    root = new.removesuffix(old)
    return {f"{root}{name}": tensor for name, tensor in tensors.items()}


def _doubled(tensor: Bytes, among: Mapping[str, Bytes]) -> bool:
    """Whether a tensor is there under another name, as one that the head shares with the embedding may be."""
    return any(each.shape == tensor.shape and same_tensor(tensor, each) for each in among.values())


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, each in value.items():
        if name.startswith("_") or name in _SAYS_NOTHING:
            continue
        if isinstance(each, Mapping):
            flat |= _flat({str(key): item for key, item in each.items()}, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = list(each) if isinstance(each, tuple) else each
    return flat
