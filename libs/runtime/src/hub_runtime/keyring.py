"""Secret keys by purpose, with a version: what pseudonyms and splits stand on."""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SHORTEST = 32


class BadKeyRing(ValueError):
    """The key ring cannot be used; the text says why and never shows a key."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys of one version. Two purposes never share a key, so that one secret's use tells nothing about another's."""

    version: int
    keys: dict[str, bytes] = field(repr=False)

    @classmethod
    def load(cls, path: Path | None = None, text: str | None = None) -> "KeyRing":
        """The ring in the file `path`, or in `text` (an environment variable's value): `{"version": 1, "keys": {"subject": "<64 hex>"}}`.

        Raises:
            BadKeyRing: neither or both are given, the file is missing, or the JSON is not a key ring.
        """
        if (path is None) == (text is None):
            raise BadKeyRing("give the key ring either as a file or as text, not both and not neither")
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8") if path is not None else text or "")
        except OSError as error:
            raise BadKeyRing(f"the key file {path} cannot be read ({type(error).__name__})") from None
        except ValueError:
            raise BadKeyRing("the key ring is no JSON") from None
        version, keys = (content.get("version"), content.get("keys")) if isinstance(content, dict) else (None, None)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1 or not isinstance(keys, dict) or not keys:
            raise BadKeyRing('a key ring is {"version": 1, "keys": {"purpose": "64 hexadecimal digits"}}')
        return cls(version, {str(purpose): _key(str(purpose), value) for purpose, value in keys.items()})

    @classmethod
    def generate(cls, purposes: Iterable[str], *, version: int = 1) -> "KeyRing":
        """New random keys of 256 bits, one per purpose."""
        return cls(version, {purpose: secrets.token_bytes(_SHORTEST) for purpose in purposes})

    def save(self, path: Path) -> None:
        """Write the ring to a new file that only its owner may read.

        Raises:
            FileExistsError: there is one already; overwriting keys would orphan every pseudonym made with them.
        """
        content = {"version": self.version, "keys": {purpose: key.hex() for purpose, key in self.keys.items()}}
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file)

    def hmac(self, purpose: str, *parts: str) -> bytes:
        """HMAC-SHA-256 (RFC 2104) over the parts, each with its length before it, so that ("ab", "c") and ("a", "bc") differ.

        Raises:
            BadKeyRing: the ring has no key for `purpose`.
        """
        try:
            key = self.keys[purpose]
        except KeyError:
            raise BadKeyRing(f"the key ring has no key for {purpose}; it has: {', '.join(sorted(self.keys))}") from None
        message = hmac.new(key, digestmod=hashlib.sha256)
        for part in parts:
            content = part.encode()
            message.update(len(content).to_bytes(8, "big") + content)
        return message.digest()


def _key(purpose: str, value: object) -> bytes:
    try:
        key = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        key = b""
    if len(key) < _SHORTEST:
        raise BadKeyRing(f"the key for {purpose} must be at least {2 * _SHORTEST} hexadecimal digits")
    return key
