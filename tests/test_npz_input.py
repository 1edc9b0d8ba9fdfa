import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hostile_files import SHOUTS, swollen

from encoders.epochs import EpochsMismatch, SignalEpochs


def packed(**changes: Any) -> bytes:
    arrays: dict[str, Any] = {
        "data": np.random.default_rng(0).standard_normal((3, 2, 50)) * 1e-5,
        "sfreq": 100.0,
        "ch_names": np.asarray(["Cz", "MLC11-1609"]),
        "tmin": -0.1,
        **changes,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: value for name, value in arrays.items() if value is not None})
    return buffer.getvalue()


def test_the_four_required_arrays_are_enough() -> None:
    epochs = SignalEpochs.from_bytes(packed())
    assert epochs.ch_types == ("eeg", "mag")
    assert epochs.stimulus == ("", "", "")
    assert np.isnan(epochs.positions).all()


def test_optional_arrays_and_byte_strings() -> None:
    epochs = SignalEpochs.from_bytes(
        packed(ch_names=np.asarray([b"Cz", b"Pz"]), stimulus=np.asarray([4, 5, 4]), subject="s1", extra=np.zeros(3))
    )
    assert epochs.ch_names == ("Cz", "Pz")
    assert epochs.stimulus == ("4", "5", "4")
    assert epochs.subject == "s1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "lacks \\['data'\\]"),
        ({"data": np.zeros((2, 50))}, "n_epochs, n_channels, n_times"),
        ({"data": np.full((3, 2, 50), "x")}, "real numbers"),
        ({"ch_names": np.asarray(["Cz"])}, "ch_names|positions"),
        ({"ch_names": np.asarray(["Cz", "Cz"])}, "more than once"),
        ({"ch_names": np.asarray([1.5, 2.5])}, "expected text"),
        ({"ch_names": np.asarray(["Cz", {}], dtype=object)}, "Python objects"),
        ({"sfreq": np.zeros(3)}, "one number"),
        ({"sfreq": "fast"}, "one number"),
        ({"n_averaged": np.zeros(3)}, "whole numbers"),
        ({"stimulus": np.asarray(["a"])}, "stimulus"),
        ({"positions": np.full((2, 3), "x")}, "positions has type .* expected real numbers in metres"),
        ({"n_averaged": np.asarray([2**53, 1, 1])}, "n_averaged .* is above 9007199254740991"),
        ({"subject": np.asarray(["a", "b"])}, "subject has length 2, expected 1"),
        ({"data": np.zeros((1, 5000, 1)), "ch_names": np.zeros(5000, "U1")}, "5000 channels, at most 4096"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EpochsMismatch, match=message):
        SignalEpochs.from_bytes(packed(**changes))


def test_a_header_that_promises_too_much_takes_no_memory() -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with pytest.raises(EpochsMismatch, match="shorter than its header"):
        SignalEpochs.from_bytes(with_member("positions", header.getvalue() + bytes(64)))


@pytest.mark.parametrize("name", SHOUTS)
def test_a_refusal_does_not_repeat_names_as_they_are(name: str) -> None:
    data = np.full((3, 2, 50), np.nan)
    for changes in (
        {"data": data, "ch_names": np.asarray([name, "Cz"])},
        {"ch_names": np.asarray([name, name])},
        {"ch_types": np.asarray([name, "eeg"])},
        {"data": None, name[:1000]: data},
        {"subject": np.zeros(1, dtype=[(name, "U4")])},
    ):
        with pytest.raises(EpochsMismatch) as refused:
            SignalEpochs.from_bytes(packed(**changes))
        said = str(refused.value)
        assert said.isprintable() and "/etc" not in said and len(said) < 400, said[:400]


@pytest.mark.parametrize("descr", ["<U0", "|S0", "|V0"])
@pytest.mark.parametrize("shape", [(2**40,), (2**62, 2**62), (2,)])
def test_values_without_bytes_are_counted_too(descr: str, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    with pytest.raises(EpochsMismatch, match="shorter than its header"):
        SignalEpochs.from_bytes(with_member("stimulus", header.getvalue()))


@pytest.mark.parametrize("member", [b"", b"junk" * 50, b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x08\x00/etc/pas"])
def test_a_damaged_header_is_told_in_our_words(member: bytes) -> None:
    with pytest.raises(EpochsMismatch, match="the npz array 'stimulus.npy' has a header that numpy does not write"):
        SignalEpochs.from_bytes(with_member("stimulus", member))


def with_member(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO(packed())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def test_a_false_packed_size_hides_no_bomb() -> None:
    zeros = {f"a{i}": np.zeros(2 << 20, np.float32) for i in range(4)}
    content = packed(**zeros, b=np.random.default_rng(0).bytes(50_000))
    with pytest.raises(EpochsMismatch, match="overlap"):
        SignalEpochs.from_bytes(swollen(content, 60_000))


@pytest.mark.parametrize("letter", [0x110000, 0x7F000041, 0xFFFFFFFF, 0xD800, 0xDC31])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("field", ["ch_names", "subject", "stimulus"])
def test_text_of_numbers_that_are_no_letters_is_refused(letter: int, order: str, field: str) -> None:
    text = np.asarray([65, letter], dtype=f"{order}u4").view(f"{order}U{2 if field == 'subject' else 1}")
    with pytest.raises(EpochsMismatch, match="no letters"):
        SignalEpochs.from_bytes(packed(**{field: text}))


def test_every_letter_of_unicode_is_read() -> None:
    names = np.asarray(["\U0001f431", "\u00e9"], dtype=">U3")
    assert SignalEpochs.from_bytes(packed(ch_names=names)).ch_names == ("\U0001f431", "\u00e9")


def test_damaged_bytes_never_raise_anything_else() -> None:
    content = packed()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), size=3):
            damaged[at] = rng.integers(0, 256)
        for data in (bytes(damaged), content[: rng.integers(0, len(content))]):
            try:
                SignalEpochs.from_bytes(data)
            except EpochsMismatch:
                pass
