"""Tokenizers that a test can see through, built here."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = 4000


def word_tokenizer(*, before: bool = False, after: bool = False) -> PreTrainedTokenizerFast:
    """`w7` is token 7 + 3; what is unknown is token 2; on demand <s> comes before and </s> after every text."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{index}": index + 3 for index in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 (a token of text)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = f"{'<s> ' if before else ''}$A{' </s>' if after else ''}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that every text can be decoded again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
