"""The header of a 4D BTi data file and its configuration, walked by arithmetic before the reader sees them.

MNE's reader goes on behind the end of a file, and back where a size is negative, as often as a count says. Offsets are
those at which ``mne.io.bti`` reads; all is big-endian, and parts begin at multiples of 8 bytes.
"""

import struct
from pathlib import Path

from encoders.epochs import EpochsMismatch

MAX_CHANNELS = 1024
MAX_HEADER_BYTES = 1 << 20
MAX_COMPANION_BYTES = 2 << 20
_EPOCH, _CHANNEL, _EVENT, _PROCESS = 56, 104, 72, 360
_FILE, _CLASS = 40, 72
_FIRST_PART = 96
_STEP_BYTES = {"BTi_defaults": 56, "b_filt_b_pass": 8, "b_filt_b_reject": 8}
_FILTERS = "b_filt_hp,b_filt_lp,b_filt_notch"
_DAMAGED = "the header of the 4D BTi data file or its configuration is damaged; pack the recording again"


def check_bti(data: Path, config: Path, head_shape: Path | None) -> None:
    """Check the files of a recording.

    Raises
    ------
    EpochsMismatch
        If a part is beyond its file, a count is impossible, or a companion is far larger than devices write it.
    """
    for companion in (config, head_shape):
        if companion is not None and companion.stat().st_size > MAX_COMPANION_BYTES:
            raise EpochsMismatch(
                f"the configuration or head shape of the 4D BTi recording has more than {MAX_COMPANION_BYTES} bytes; "
                "pack the recording again"
            )
    try:
        _check_header(data)
        _check_blocks(config.read_bytes())
    except struct.error as error:  # a number behind the end
        raise EpochsMismatch(_DAMAGED) from error


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 8, 0))
        (start,) = struct.unpack(">q", file.read(8))
        start = _aligned(start & 0x7FFFFFFF)
        if not 0 < start < size - 8 or size - start > MAX_HEADER_BYTES:
            raise EpochsMismatch(_DAMAGED)
        file.seek(start)
        header = file.read(size - 8 - start)
    n_epochs, n_events, n_processes, n_channels, n_classes, n_files = struct.unpack_from(
        ">12xi4xi24xih6xih", header.ljust(_FIRST_PART, b"\x00")
    )
    parts = n_epochs * _EPOCH + n_channels * _CHANNEL + n_events * _EVENT
    counts = (n_epochs, n_events, n_processes, n_channels, n_classes, n_files)
    if min(counts) < 0 or n_channels > MAX_CHANNELS or max(counts) > len(header) or _FIRST_PART + parts > len(header):
        raise EpochsMismatch(_DAMAGED)
    position = _FIRST_PART + parts
    for _ in range(n_processes):
        position = _after_process(header, position)
    if position + _FILE * n_files + _CLASS * n_classes > len(header):
        raise EpochsMismatch(_DAMAGED)


def _after_process(header: bytes, position: int) -> int:
    (n_steps,) = struct.unpack_from(">i", header, position + 320)
    position += _PROCESS
    for _ in range(n_steps):
        kind = struct.unpack_from("20s", header, position + 4)[0].split(b"\x00")[0].decode("latin-1")
        if kind in _STEP_BYTES:
            n_bytes = _STEP_BYTES[kind]
        elif kind in _FILTERS:
            n_bytes = 36
        else:
            (n_bytes,) = struct.unpack_from(">i", header, position + 28)
            n_bytes += 36
        if n_bytes < 0:
            raise EpochsMismatch(_DAMAGED)
        position = _aligned(position + 28 + n_bytes)
    return position


def _check_blocks(config: bytes) -> None:
    """Walk the blocks of the configuration, in front of its channels."""
    n_channels, n_transforms, n_blocks = struct.unpack_from(">58xh8x2h", config)
    position = 112 + 128 * n_transforms
    if min(n_channels, n_transforms, n_blocks) < 0 or n_channels > MAX_CHANNELS:
        raise EpochsMismatch(_DAMAGED)
    for _ in range(n_blocks):
        kind = config[position + 4 : position + 24]
        (n_bytes,) = struct.unpack_from(">64xI32x", config, position)
        position = _aligned(position + 100)
        if position + n_bytes > len(config):
            raise EpochsMismatch(_DAMAGED)
        if kind.startswith((b"B_weights_used\x00", b"BWT_")):
            version, width, n_rows = struct.unpack_from(">i2I", config, position)
            if version != 2 and width * n_rows > n_bytes:  # the reader goes back by so many rows
                raise EpochsMismatch(_DAMAGED)
        position = _aligned(position + n_bytes)


def _aligned(position: int) -> int:
    return -(-position // 8) * 8
