"""API keys: what one looks like, and what is stored of it.

A key is ``phk_<id>_<secret>``; the id finds the entry, the secret is 32 bytes from the operating system. Stored is
SHA-256 of the secret, under the id. A slow, salted hash (argon2, scrypt) makes guessing *passwords* expensive; there
is nothing to guess about 256 random bits, so it would only slow every request down and let strangers burn processor
time. The id keeps the look-up from depending on the secret, and hashes are compared in constant time.
"""

import hashlib
import hmac
import re
import secrets

KEY_PATTERN = re.compile(r"phk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_DOMAIN = b"phosphene api key 1\0"
_NOBODY = "0" * 64


def new_key() -> tuple[str, str, str]:
    """Make a key; return it, its id and the hash to store."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return f"phk_{key_id}_{secret}", key_id, hash_secret(key_id, secret)


def hash_secret(key_id: str, secret: str) -> str:
    """Hash the secret of a key for storing, 64 hex digits."""
    return hashlib.sha256(_DOMAIN + key_id.encode() + b"\0" + secret.encode()).hexdigest()


def split_key(key: str) -> tuple[str, str] | None:
    """Take a key apart into id and secret; None if it is none."""
    found = KEY_PATTERN.fullmatch(key)
    return (found[1], found[2]) if found else None


def key_fits(key_id: str, secret: str, stored: str | None) -> bool:
    """Tell whether a secret belongs to a stored hash; without one the comparison takes as long, and fails."""
    return hmac.compare_digest(hash_secret(key_id, secret), stored or _NOBODY) and stored is not None
