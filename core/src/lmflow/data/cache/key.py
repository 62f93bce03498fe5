"""Names for what is kept on disk, from everything it depends on."""

from __future__ import annotations

import hashlib


def key_of(*parts: str) -> str:
    """A digest of the parts, in hexadecimal; no other list of parts has it."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
