"""API keys: random, found by id, compared by hash, and never stored."""

from serving.api_keys import KEY_PATTERN, key_fits, new_key, split_key


def test_a_key_fits_its_own_hash_only() -> None:
    key, key_id, stored = new_key()
    parts = split_key(key)
    assert parts is not None and parts[0] == key_id and key_fits(*parts, stored)
    other, _, _ = new_key()
    other_parts = split_key(other)
    assert other_parts is not None and not key_fits(*other_parts, stored)
    assert not key_fits(key_id, other_parts[1], stored)
    assert not key_fits(key_id, parts[1], None)


def test_what_is_stored_does_not_hold_the_secret() -> None:
    key, key_id, stored = new_key()
    assert key.split("_", 2)[2] not in stored and KEY_PATTERN.fullmatch(key)
    assert len({new_key()[0] for _ in range(100)}) == 100


def test_what_is_no_key_is_not_taken_apart() -> None:
    key, _, _ = new_key()
    for text in ("", "phk_", key + "x", key[:-1], key.upper(), " " + key, key + "\n", "x" * 10_000):
        assert split_key(text) is None
