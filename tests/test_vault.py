"""Encryption at rest: nothing readable on disk, blobs bound to person and place, and gone with the key."""

import multiprocessing
import os
from pathlib import Path

import pytest

from serving.vault import KeyDestroyed, PersonCipher, Vault, new_master_key

CANARY = b"canary of a signal" * 50


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    new_master_key(tmp_path / "master.key")
    return Vault(tmp_path / "master.key", tmp_path / "keys")


def test_what_is_encrypted_comes_back_and_only_there(vault: Vault, tmp_path: Path) -> None:
    blob = vault.cipher("lab/anna").encrypt(CANARY, context="job-1/upload")
    assert b"canary" not in blob and len(blob) == len(CANARY) + 32
    again = Vault(tmp_path / "master.key", tmp_path / "keys")
    assert again.cipher("lab/anna", create=False).decrypt(blob, context="job-1/upload") == CANARY
    assert vault.cipher("lab/anna").encrypt(CANARY, context="job-1/upload") != blob
    for person, context in (("lab/anna", "job-2/upload"), ("lab/ben", "job-1/upload")):
        with pytest.raises(ValueError, match="is not what was encrypted here"):
            vault.cipher(person).decrypt(blob, context=context)
    assert vault.cipher("").decrypt(vault.cipher("").encrypt(b"", context=""), context="") == b""


def test_every_changed_byte_is_noticed(vault: Vault) -> None:
    cipher = vault.cipher("lab/anna")
    blob = cipher.encrypt(b"sixteen bytes ok", context="c")
    for changed in [blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :] for at in range(len(blob))] + [
        blob[:at] for at in range(len(blob))
    ]:
        with pytest.raises(ValueError):
            cipher.decrypt(changed, context="c")


def test_with_the_key_destroyed_nothing_can_be_read(vault: Vault, tmp_path: Path) -> None:
    blob = vault.cipher("lab/anna").encrypt(CANARY, context="c")
    (stored,) = (tmp_path / "keys").iterdir()
    inode = os.open(stored, os.O_RDONLY)
    before = os.pread(inode, 100, 0)
    assert vault.destroy("lab/anna") and not vault.destroy("lab/anna")
    assert list((tmp_path / "keys").iterdir()) == []
    assert os.pread(inode, 100, 0) != before, "the key was unlinked but not overwritten"
    os.close(inode)
    with pytest.raises(KeyDestroyed):
        vault.cipher("lab/anna", create=False)
    with pytest.raises(ValueError):
        vault.cipher("lab/anna").decrypt(blob, context="c")


def test_another_master_key_is_refused_and_nothing_is_taken_for_destroyed(vault: Vault, tmp_path: Path) -> None:
    new_master_key(tmp_path / "other.key")
    assert Vault(tmp_path / "other.key", tmp_path / "keys") is not None, "no key yet, so any master key will do"
    blob = vault.cipher("lab/anna").encrypt(CANARY, context="c")
    vault.cipher("lab/ben")
    with pytest.raises(ValueError, match="opens none of the 2 keys"):
        Vault(tmp_path / "other.key", tmp_path / "keys")
    vault._path("lab/ben").write_bytes(b"damaged")  # one of them is no sign of another master key
    again = Vault(tmp_path / "master.key", tmp_path / "keys")
    assert again.cipher("lab/anna", create=False).decrypt(blob, context="c") == CANARY


def test_a_key_that_is_destroyed_just_now_is_made_again(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    old = vault.cipher("lab/anna")
    met: list[PersonCipher] = []
    write, link = os.pwrite, os.link

    def overwritten(descriptor: int, content: bytes, at: int) -> int:
        n_bytes = write(descriptor, content, at)
        met.append(vault.cipher("lab/anna"))
        return n_bytes

    def linked(draft: str, path: Path) -> None:
        link(draft, path)
        monkeypatch.setattr(os, "link", link)
        vault.destroy("lab/ben")

    monkeypatch.setattr(os, "pwrite", overwritten)
    assert vault.destroy("lab/anna")
    assert met == [vault.cipher("lab/anna", create=False)] != [old]
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "link", linked)
    assert vault.cipher("lab/ben") == vault.cipher("lab/ben", create=False)


def test_a_key_that_is_overwritten_while_it_is_read_is_not_taken_for_damaged(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.cipher("lab/anna")
    read = Path.read_bytes

    def late(path: Path) -> bytes:
        with path.open("rb", buffering=0) as file:
            monkeypatch.setattr(Path, "read_bytes", read)
            vault.destroy("lab/anna")
            return file.read()

    monkeypatch.setattr(Path, "read_bytes", late)
    with pytest.raises(KeyDestroyed):
        vault.cipher("lab/anna", create=False)


def test_what_a_crash_left_of_a_key_is_destroyed_at_the_next_start(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashed(*_: object) -> int:
        raise OSError("crashed")

    vault.cipher("lab/anna")
    (stored,) = (tmp_path / "keys").iterdir()
    inode = os.open(stored, os.O_RDONLY)
    before = os.pread(inode, 100, 0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", crashed)
        with pytest.raises(OSError, match="crashed"):
            vault.destroy("lab/anna")
    with pytest.raises(KeyDestroyed):
        vault.cipher("lab/anna", create=False)
    Vault(tmp_path / "master.key", tmp_path / "keys")
    assert list((tmp_path / "keys").iterdir()) == [] and os.pread(inode, 100, 0) != before
    os.close(inode)


def test_nobody_is_told_that_a_key_is_destroyed_whose_folder_is_away(vault: Vault, tmp_path: Path) -> None:
    vault.cipher("lab/anna")
    (tmp_path / "keys").rename(tmp_path / "away")
    with pytest.raises(OSError, match="folder of keys"):
        vault.destroy("lab/anna")


def test_keys_of_people_are_encrypted_and_their_files_name_nobody(vault: Vault, tmp_path: Path) -> None:
    cipher = vault.cipher("canary/subject")
    (stored,) = (tmp_path / "keys").iterdir()
    assert "canary" not in stored.name and cipher.key not in stored.read_bytes()
    assert cipher.key.hex() not in repr(cipher) and str(cipher.key) not in repr(cipher)
    new_master_key(tmp_path / "other.key")
    other = Vault(tmp_path / "other.key", tmp_path / "others")
    assert other.cipher("canary/subject") != cipher
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        vault.cipher("canary/subject")


def test_a_master_key_that_others_can_read_is_refused(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "master.key").chmod(0o640)
    with pytest.raises(ValueError, match="mode 600"):
        Vault(tmp_path / "master.key", tmp_path / "keys")
    (tmp_path / "short.key").write_text("abc")
    (tmp_path / "short.key").chmod(0o600)
    with pytest.raises(ValueError, match="no master key"):
        Vault(tmp_path / "short.key", tmp_path / "keys")
    with pytest.raises(FileExistsError):
        new_master_key(tmp_path / "master.key")


def _key_of(folder: str) -> bytes:
    cipher: PersonCipher = Vault(f"{folder}/master.key", f"{folder}/keys").cipher("lab/anna")
    return cipher.key


def test_processes_that_start_at_once_get_one_key(vault: Vault, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:  # forked from threads, one may wait for ever
        keys = pool.map(_key_of, [str(tmp_path)] * 16)
    assert len(set(keys)) == 1
