"""Between text and tokens for whoever serves: pieces without half characters, and the name of every token.

Free of torch. Called by runtime/serving_engine.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import encoder
from citrate_node.training.examples import load_tokenizer

_LOOKS_BACK = 8
"""Tokens before one that may decide how it is spelt: a character has at most four bytes."""

_BROKEN = "\ufffd"


class TokenText:
    """Between text and tokens: for the embedded base by bytes, for any other by its own tokenizer."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._tokenizer: Any = None

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in encoder(self._base)(text.encode())]

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are no whole character become U+FFFD."""
        if self._base.byte_level:
            # a vocabulary may be larger than the tokenizer's: what is no byte is no text
            return bytes(token for token in tokens if token < 256).decode("utf-8", errors="replace")
        return str(self._load().decode(tokens, skip_special_tokens=True))

    def name(self, token: int) -> str:
        """Of a token that is no text by itself: its byte, or what the tokenizer calls it."""
        if not self._base.byte_level:
            return str(self._load().convert_ids_to_tokens(token))
        return f"bytes:\\x{token:02x}" if token < 256 else f"token:{token}"

    def _load(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._base.directory)
        return self._tokenizer


class TextStream:
    """Tokens of one answer to pieces of text: no half characters, and nothing from a stop text on."""

    def __init__(self, text: TokenText, stops: Sequence[str]) -> None:
        self._text = text
        self._stops = [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> tuple[str, bool]:
        """(the text that is certain now, whether a stop text has come)."""
        self._tokens.append(token)
        whole = self._text.decode(self._tokens)
        found = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if found:
            return self._give(whole[: min(found)]), True
        certain = whole.rstrip(_BROKEN)  # may be the first bytes of a character
        held = max(
            (n for stop in self._stops for n in range(1, len(stop)) if certain.endswith(stop[:n])), default=0
        )
        return self._give(certain[: len(certain) - held]), False

    def rest(self) -> str:
        """What was held back, once no token will follow."""
        return self._give(self._text.decode(self._tokens))

    def _give(self, text: str) -> str:
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece


class TokenNames:
    """What each token adds to a text, in its turn: for probabilities that are told token by token."""

    def __init__(self, text: TokenText) -> None:
        self._text = text
        self._before: list[int] = []
        self._length = 0

    def push(self, token: int) -> tuple[str, int]:
        """(the token as text, the place where it begins in the text so far).

        A token that is a part of a character adds nothing yet, and has a name of its own (`TokenText.name`).
        """
        place, added = self._length, self._added(token)
        self._length += len(added)
        self._before = [*self._before, token][-_LOOKS_BACK:]
        return added or self._text.name(token), place

    def of(self, token: int) -> str:
        """What `push` would call it here."""
        return self._added(token) or self._text.name(token)

    def _added(self, token: int) -> str:
        before = self._text.decode(self._before).rstrip(_BROKEN)
        return self._text.decode([*self._before, token]).rstrip(_BROKEN)[len(before) :]
