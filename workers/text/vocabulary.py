"""What a model's tokenizer files say: tokens, which of them are control tokens, and how plain text is encoded.

Control tokens are all added tokens that hold more than white space, marked special or not (``<think>`` often is not),
and whatever the configuration names as special. Plain text is encoded by tokenizers that do not have them: built once,
since switching one shared tokenizer to and fro is not safe between threads. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from workers.errors import ModelLoadError, RequestRejected

_SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlToken:
    """A token that text of users must never become."""

    token: int
    content: str
    takes_left: bool = False  # swallows white space before it
    takes_right: bool = False


class Vocabulary:
    """One model's tokens. Immutable after the start, so any thread may use it."""

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.settings = settings  # tokenizer_config.json
        self.data: dict[str, Any] = json.loads(tokenizer.to_str())
        self.special_tokens: dict[str, str] = _named_specials(settings)
        self.control = self._find_control()
        self.control_ids = frozenset(item.token for item in self.control)
        self._control_by_content = {item.content: item for item in self.control}
        contents = sorted(self._control_by_content, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, contents)) or r"(?!)")
        # White space that some tokenizers put before a text is put there at the very start only.
        self._first = Tokenizer.from_str(json.dumps(self._without_control(is_first=True)))
        self._rest = Tokenizer.from_str(json.dumps(self._without_control(is_first=False)))

    @classmethod
    def load(cls, directory: str | Path) -> Vocabulary:
        """Read the tokenizer files of a model directory. Raises ModelLoadError."""
        directory = Path(directory)
        settings = read_json(directory / "tokenizer_config.json") or {}
        for name, value in (read_json(directory / "special_tokens_map.json") or {}).items():
            settings.setdefault(name, value)
        path = directory / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _converted(directory)
            return cls(tokenizer, settings)
        except ModelLoadError:
            raise
        except Exception as error:
            # tokenizers raises plain Exception for any damage of its file.
            raise ModelLoadError(
                f"The tokenizer of {directory} cannot be read: {error}. Copy the model's tokenizer.json again."
            ) from error

    @property
    def sha256(self) -> str:
        """Return a hash of which token is which number: token ids of one hash mean the same everywhere."""
        pairs = sorted((token, text) for text, token in self.tokenizer.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(pairs, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()

    def split_control(self, literal: str) -> list[str | int]:
        """Split trusted text of a template into plain text and control tokens."""
        parts: list[str | int] = []
        at = 0
        for match in self._pattern.finditer(literal):
            control = self._control_by_content[match.group()]
            before = literal[at : match.start()]
            before = before.rstrip() if control.takes_left else before
            if before:
                parts.append(before)
            parts.append(control.token)
            at = match.end()
            if control.takes_right:
                at += len(literal[at:]) - len(literal[at:].lstrip())
        if literal[at:]:
            parts.append(literal[at:])
        return parts

    def encode_plain(self, text: str, *, is_first: bool = False) -> list[int]:
        """Return the tokens of a text that holds no control token, whatever it looks like.

        Raises RequestRejected for text that is no valid Unicode (lone surrogates).
        """
        try:
            encoding = (self._first if is_first else self._rest).encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise RequestRejected("The text holds characters that are no valid Unicode. Remove them.") from error
        return encoding.ids

    def _find_control(self) -> list[ControlToken]:
        found = {
            item["content"]: ControlToken(
                token=item["id"], content=item["content"], takes_left=item["lstrip"], takes_right=item["rstrip"]
            )
            for item in self.data.get("added_tokens", [])
            if item["special"] or item["content"].replace("\u2581", " ").strip()
        }
        for content in _all_special_contents(self.settings):
            token = self.tokenizer.token_to_id(content)
            if token is not None and content and content not in found:
                found[content] = ControlToken(token=token, content=content)
        return list(found.values())

    def _without_control(self, *, is_first: bool) -> dict[str, Any]:
        """Return the tokenizer's description with every control token out of reach."""
        data = json.loads(json.dumps(self.data))
        data["added_tokens"] = [
            item for item in data.get("added_tokens", []) if item["content"] not in self._control_by_content
        ]
        data["post_processor"] = data["truncation"] = data["padding"] = None
        # Names nobody can write; the numbers stay.
        secret = secrets.token_hex(16)
        hidden = {content: f"{secret}:{item.token}" for content, item in self._control_by_content.items()}
        model = data["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {hidden.get(text, text): token for text, token in vocabulary.items()}
        else:
            model["vocab"] = [[hidden.get(text, text), score] for text, score in vocabulary]
        if model.get("unk_token") in hidden and model["unk_token"] in vocabulary:
            model["unk_token"] = hidden[model["unk_token"]]
        if model.get("merges"):
            pairs = ([*pair] if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
            model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & hidden.keys()]
        if not is_first:
            _drop_first_prefix(data.get("pre_tokenizer"))
        return data


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, None when there is no file. Raises ModelLoadError when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON ({error}). Copy the model again.") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object. Copy the model again.")
    return value


def _converted(directory: Path) -> Tokenizer:
    """Let transformers convert an older tokenizer (a SentencePiece file, or vocab.json and merges.txt)."""
    # Imported here: models with a tokenizer.json do not need it.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:
        raise ModelLoadError(
            f"{directory} has no tokenizer.json, and transformers cannot make one from what is there ({error}). "
            "Copy the model again, all files of it."
        ) from error


def _drop_first_prefix(pre_tokenizer: dict[str, Any] | None) -> None:
    if pre_tokenizer is None:
        return
    for part in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named_specials(settings: dict[str, Any]) -> dict[str, str]:
    """Return what a template may use by name, such as bos_token."""
    named = {name: _content(settings.get(name)) for name in _SPECIAL_NAMES}
    return {name: content for name, content in named.items() if content is not None}


def _all_special_contents(settings: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for name in _SPECIAL_NAMES:
        value = settings.get(name)
        if isinstance(value, dict) and "content" not in value:
            value = list(value.values())
        for item in value if isinstance(value, list) else [value]:
            content = _content(item)
            if content:
                found.add(content)
    for item in (settings.get("added_tokens_decoder") or {}).values():
        content = _content(item)
        if content and content.strip():
            found.add(content)
    return found
