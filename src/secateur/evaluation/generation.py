"""What a model writes: greedy continuations of a few prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from secateur.errors import RequestError
from secateur.evaluation.inference import inference, input_device
from secateur.progress import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["generations", "greedy_settings", "settings_lent"]

_SILENT = Silent()


def generations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 40,
    chat: bool = False,
    progress: Progress = _SILENT,
) -> list[str]:
    """The greedy continuation of each prompt, without the prompt and without special tokens.

    The model's own generation settings (sampling, penalties, beams) are set aside meanwhile, all but the tokens that
    end a text: two models are compared by what they find most likely.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: texts to continue, or, with `chat`, messages of a user.
        max_new_tokens: the most tokens a continuation has.
        chat: put each prompt into the tokenizer's chat template.
        progress: told of each prompt.

    Raises:
        RequestError: if a prompt has no tokens, or `chat` is asked of a tokenizer without a chat template.
    """
    if chat and not tokenizer.chat_template:
        raise RequestError("the tokenizer has no chat template; ask for plain continuations")
    texts = []
    settings = greedy_settings(model, tokenizer, max_new_tokens)
    description = "writing samples"
    with inference(model), settings_lent(model, settings), progress.track(description, len(prompts)) as advance:
        for prompt in prompts:
            inputs = _encode(tokenizer, prompt, chat=chat)
            length = inputs["input_ids"].shape[1]
            if not length:
                raise RequestError(f"the prompt {prompt!r} has no tokens; give some text to continue")
            inputs = {name: value.to(input_device(model)) for name, value in inputs.items()}
            output = model.generate(**inputs, generation_config=settings)  # (1, tokens)
            texts.append(str(tokenizer.decode(output[0, length:], skip_special_tokens=True)))
            advance(1)
    return texts


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool) -> dict[str, Tensor]:
    """Token ids and attention mask, (1, tokens) each."""
    if chat:
        messages = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def greedy_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> GenerationConfig:
    """Settings for greedy continuations that end where the model, or else its tokenizer, says a text ends."""
    from transformers import GenerationConfig

    own = model.generation_config
    end: Any = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id  # an id, a list of ids or None
    pad: Any = tokenizer.pad_token_id
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=end,
        pad_token_id=0 if pad is None else pad,
        bos_token_id=own.bos_token_id,
    )


@contextmanager
def settings_lent(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """The model with other generation settings; `generate` would fill any gap in an argument from the model's own."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
