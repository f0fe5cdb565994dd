"""A prompt and its completion as a chat model reads them: by the tokenizer's own chat template, and by no other.

The prompt is the conversation so far, rendered with `add_generation_prompt=True`, which is what the model is given when it
is asked. The completion is what the rendering is longer by once the answer is in it, so that the template decides how an
answer ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from secateur.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "ChatUse", "Messages", "messages_of"]

ChatUse = Literal["auto", "always", "never"]
"""Render only rows that are messages; every row, as a user's turn and the assistant's; or none."""

Messages = list[dict[str, Any]]
"""Turns of a conversation, each with `role` and `content`."""

_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How conversations are written out for a model."""

    tokenizer: PreTrainedTokenizerBase | None
    """The model's; only its chat template is used."""

    use: ChatUse = "auto"
    """For which rows."""

    def pair(self, prompt: str | Messages, completion: str | Messages) -> tuple[str, str]:
        """Prompt and completion as text: rendered, or as they are.

        Raises:
            DataError: if there is no template, it refuses the conversation, or a prompt as it renders it is not how the
                conversation with its answer begins.
        """
        if isinstance(prompt, list) and isinstance(completion, list):
            if self.use == "never":
                raise DataError("these are chat messages, and chat is 'never'; choose 'auto', or give text")
            return self._rendered(prompt, completion)
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError("one of prompt and completion is text and the other chat messages; give two of a kind")
        if self.use != "always":
            return prompt, completion
        if not prompt.strip():
            raise DataError("there is no prompt to be the user's turn; choose chat 'auto' or 'never'")
        # The blank that parts a completion from its prompt has no place in a turn.
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion.removeprefix(" ")}]
        return self._rendered(turns[:1], turns[1:])

    def _rendered(self, before: Messages, answer: Messages) -> tuple[str, str]:
        prompt = self._render(before, add_generation_prompt=True)
        whole = self._render([*before, *answer], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise DataError(
                "the tokenizer's chat template writes the conversation otherwise once the answer is in it, so the answer "
                "cannot be told from its prompt; give columns prompt and completion of text"
            )
        prompt = prompt.rstrip(" ")  # as everywhere, a space before the answer is the answer's
        return prompt, whole[len(prompt) :]

    def _render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        if self.tokenizer is None or not self.tokenizer.chat_template:
            whose = "there is no tokenizer" if self.tokenizer is None else "the tokenizer has no chat template"
            raise DataError(
                f"{whose} to write chat messages with; give that of a chat model, or columns prompt and completion of text"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except Exception as error:  # templates raise what they like: an unknown role, turns out of order
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"the tokenizer's chat template refuses the messages ({reason}); change them") from error


def messages_of(value: Sequence[Any]) -> Messages:
    """Read the turns of a conversation: `role` and `content`, or `from` and `value` as in ShareGPT.

    Other keys that have a value (`tool_calls`, `name`) stay, for the template.

    Raises:
        DataError: if a turn has no role, or no text.
    """
    messages: Messages = []
    for number, given in enumerate(value, start=1):
        turn = {key: part for key, part in given.items() if part is not None} if isinstance(given, dict) else {}
        if "from" in turn:
            role = turn.pop("from")
            turn = {"role": _ROLES.get(role, role), "content": turn.pop("value", None), **turn}
        if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise DataError(f"message {number} has no role, or no text; write {{'role': 'user', 'content': '…'}}")
        messages.append(turn)
    return messages
