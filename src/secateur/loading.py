"""Reading a model and its tokenizer, with every way it can go wrong said in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from secateur.connection import asking_hub, hub_answers, quiet_hub
from secateur.depth import MOST_LAYERS, layer_count
from secateur.errors import ModelError, UnsupportedModelError
from secateur.places import SAMPLE_MODEL, cache_directory
from secateur.trust import is_pickle_allowed

__all__ = [
    "Placement",
    "autocast_dtype",
    "check_causal",
    "described_in",
    "dtype_named",
    "is_offloaded",
    "licence_files",
    "load_config",
    "load_model",
    "load_tokenizer",
    "local_checkpoint",
    "quiet_transformers",
]

logger = logging.getLogger(__name__)

_DTYPES: dict[str, torch.dtype | Literal["auto"]] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Files that many licences want to go along with whatever is made of a model."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the parts of a model go that is larger than one device: accelerate's big-model inference."""

    device_map: Mapping[str, str] | Literal["auto"] = "auto"
    """Module → device, `cpu` or `disk`; `auto` fills the GPUs first, then the CPU's memory, then the disk."""

    max_memory: Mapping[int | str, str] | None = None
    """The most of each, as `{0: "70GB", "cpu": "200GB"}`; what is free if None."""

    offload_folder: str | Path | None = None
    """For weights on the disk that are not stored as the model has them."""

    def as_arguments(self) -> dict[str, Any]:
        """The same for `from_pretrained`."""
        device_map = self.device_map if isinstance(self.device_map, str) else dict(self.device_map)
        most = None if self.max_memory is None else dict(self.max_memory)
        return {"device_map": device_map, "max_memory": most, "offload_folder": self.offload_folder}


def is_offloaded(model: Any) -> bool:
    """Whether weights of a model are read from the CPU's memory or the disk each time that they are needed."""
    return any(weight.device.type == "meta" for weight in model.parameters())


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    strict: bool = False,
    placement: Placement | None = None,
) -> Any:
    """Load a causal language model in evaluation mode; from safetensors, unless `pickle_allowed` says otherwise.

    Args:
        source: a hub id or a local checkpoint directory.
        dtype: `auto` (as stored), `float32`, `bfloat16` or `float16`.
        revision: the branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the model.
        device: where to put it; a GPU if there is one, else the CPU.
        strict: refuse a checkpoint that holds weights the model has no place for.
        placement: where the parts of the model go, in place of `device`.

    Raises:
        ModelError: if it cannot be read; the message says why and what to do.
        UnsupportedModelError: if it is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    weights = dtype_named(dtype)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = load_config(source, **common)
    placed = {} if placement is None else placement.as_arguments()
    with _explained(source), quiet_transformers():
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=weights,
            use_safetensors=None if is_pickle_allowed() else True,
            weights_only=True,
            output_loading_info=True,
            **common,
            **placed,
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{source} lacks {len(missing)} of the model's weights, '{missing[0]}' first; give a complete checkpoint"
        )
    if strict and report["unexpected_keys"]:
        raise ModelError(f"{source} holds a weight that the model has no place for: '{min(report['unexpected_keys'])}'")
    if getattr(model, "hf_device_map", None) is None:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval()


def dtype_named(name: str) -> torch.dtype | Literal["auto"]:
    """The dtype called so; `auto` is what the checkpoint says.

    Raises:
        ModelError: if there is none.
    """
    if name not in _DTYPES:
        raise ModelError(f"unknown dtype '{name}'; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_config(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model, without its weights.

    Raises:
        ModelError: if it cannot be read.
        UnsupportedModelError: if it is not that of a causal language model.
    """
    from transformers import AutoConfig

    if _can_only_be_here(source) and not Path(source).exists():
        raise ModelError(f"there is no {source}; give a local checkpoint directory, or a hub id (owner/name)")
    with _explained(source), quiet_transformers():
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    check_causal(source, config, trust_remote_code=trust_remote_code)
    with _explained(source):
        num_layers = layer_count(config)
    if not 1 <= num_layers <= MOST_LAYERS:
        raise ModelError(f"{source} says that its model has {num_layers} layers; mend config.json")
    return config


def check_causal(source: str | Path, config: Any, *, trust_remote_code: bool) -> None:
    """Make sure that a configuration is that of a causal language model, which transformers finds by it.

    Raises:
        UnsupportedModelError: if it is not.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with _explained(source):
        names = list(config.architectures or ())
        remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        causal = remote or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    # BERT and its like can be built as a decoder; a checkpoint trained to fill gaps is none.
    masked = any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in names)
    known = [] if causal else [name for name in names if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()]
    own = [name for name in known if getattr(getattr(transformers, name), "config_class", None) is type(config)]
    if own:
        raise UnsupportedModelError(
            f"{source} is a '{config.model_type}' model, which transformers' {own[0]} loads, and its AutoModelForCausalLM, which "
            "is used here, does not; load it with the former, and cut it in Python with secateur.remove_layers_"
        )
    if getattr(config, "is_encoder_decoder", False) or masked or not causal:
        raise UnsupportedModelError(
            f"{source} is a '{config.model_type}' model, not a causal language model; choose one that generates text"
        )


def load_tokenizer(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer that lies beside a model.

    Raises:
        ModelError: if there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    with _explained(source, "the tokenizer of "), quiet_transformers():
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


def local_checkpoint(source: str | Path, *, revision: str | None = None) -> Path:
    """The directory of a checkpoint: `source` itself, or a copy of a hub id's files in the hub's cache.

    Raises:
        ModelError: if it is neither a directory nor can be fetched.
    """
    from huggingface_hub import snapshot_download

    if Path(source).is_dir() or _can_only_be_here(source) or "/" not in str(source):
        return Path(source).expanduser()
    with _explained(source):
        # Weights in other formats than safetensors are not needed, and can be as large again.
        unwanted = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "onnx/*", "original/*"]
        return Path(snapshot_download(str(source), revision=revision, ignore_patterns=unwanted))


def described_in(source: str | Path, *, revision: str | None = None) -> Path | None:
    """The directory with a model's card and licence: its own, or the hub's cache, and fetched there if the hub answers."""
    from huggingface_hub import snapshot_download

    if Path(source).is_dir():
        return Path(source)
    try:
        with quiet_transformers(), asking_hub():
            return Path(snapshot_download(str(source), revision=revision, allow_patterns=["README.md", *_LICENCES]))
    except Exception:  # of any type: no hub id, offline, no network; nothing is then known
        logger.debug("no card of %s", source, exc_info=True)
        return None


def licence_files(directory: Path) -> list[Path]:
    """The files of a model in which its licence stands."""
    return sorted(file for pattern in _LICENCES for file in directory.glob(pattern) if file.is_file())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype for mixed-precision compute, or None for the weights' own.

    `auto` is bfloat16 where the device multiplies bfloat16 natively, and none elsewhere.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if device.type == "cpu" and native is not None and native() else None


def _can_only_be_here(source: str | Path) -> bool:
    """Whether a model's name can be no hub id, which is `name` or `owner/name`."""
    return str(source).count("/") > 1 or str(source).startswith((".", "/", "~"))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers and the hub in here; the setting comes back."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as hf

    level, bars, without = hf.get_verbosity(), hf.is_progress_bar_enabled(), are_progress_bars_disabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        with quiet_hub():
            yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()  # and those of the hub with them
        if without:
            disable_progress_bars()


@contextmanager
def _explained(source: str | Path, what: str = "") -> Iterator[None]:
    """Read `source` from where it is, and turn whatever the hub or the file says into one line about it."""
    from safetensors import SafetensorError

    try:
        with nullcontext() if Path(source).exists() else asking_hub():
            yield
    except SafetensorError as error:
        raise ModelError(f"{source} has a damaged safetensors file ({error}); copy or download it again") from error
    except Exception as error:  # of any type: a configuration with a wrong value fails wherever it is first used
        logger.debug("loading failed", exc_info=True)
        reason = " ".join(str(error).split())
        if str(source) == SAMPLE_MODEL and not Path(source).exists():
            remedy = (
                f"the sample model is {cache_directory() / SAMPLE_MODEL}, where `secateur demo` puts it: give that path"
            )
        elif not Path(source).exists():
            away = "" if hub_answers() else "the hub does not answer, and it is not in its cache: "
            remedy = f"{away}give a local checkpoint directory, or a hub id while online"
        elif not (Path(source) / "config.json").is_file():
            remedy = "give a directory that holds config.json and *.safetensors"
        elif any(Path(source).glob("*.bin")) and not any(Path(source).glob("*.safetensors")):
            remedy = "its weights are pickled: --allow-pickle reads the tensors of .bin files, and no code"
        else:
            remedy = "see the reason and mend the checkpoint"
        raise ModelError(f"cannot load {what}{source}; {remedy} (reason: {reason[:300]})") from error
