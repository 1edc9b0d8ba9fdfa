"""Members of a zip that claim each other's bytes are found; true zips have none."""

import io
import zipfile

import hostile_files
import pytest

from encoders.zip_layout import overlap


def overlaps(content: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return overlap(archive.infolist(), len(content))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("before", [b"", b"a program that unpacks itself"])
def test_true_zips_pass(method: int, before: bytes) -> None:
    many = hostile_files.zip_of(*((f"{i}.txt", bytes(100 * i)) for i in range(9)), method=method)
    for content in (many, hostile_files.zip_of(("x.edf", b"x"), method=method), hostile_files.zip_of()):
        assert not overlaps(before + content)


def test_what_shares_bytes_or_is_larger_than_the_zip_is_found() -> None:
    one = hostile_files.zip_of(("x.edf", bytes(range(256)) * 100))
    two = hostile_files.zip_of(("x.edf", bytes(range(256))), ("y.edf", bytes(range(256))))
    assert overlaps(hostile_files.overlapping(one))
    assert overlaps(hostile_files.swollen(one, len(one)))
    assert overlaps(hostile_files.swollen(two, len(two) // 2))
