"""From checkpoint files of others to an encoder folder: read in isolation, then translated."""

from collections.abc import Sequence
from pathlib import Path

from encoders.durable_files import file_sha256
from encoders.imported_encoder import EncoderInfo, import_encoder
from serving.weights_sandbox import read_isolated

# In a folder of NICE's checkpoints, the two files that make its encoder (the third is the image side).
_NICE_PATTERNS = ("*Enc_eeg_cls.pth", "*Proj_eeg_cls.pth")


def import_files(
    kind: str, files: Sequence[Path], out: Path, *, n_times: int | None = None, target_space: str = ""
) -> EncoderInfo:
    """Read checkpoint files and write the encoder folder ``out``.

    Parameters
    ----------
    kind, n_times, target_space
        As `encoders.imported_encoder.import_encoder`.
    files : sequence of Path
        One checkpoint; for NICE its two files, or the folder that holds them.

    Raises
    ------
    ValueError
        If a file is damaged, hostile, or not of the claimed kind. Nothing is written then.
    OSError
        If a file cannot be opened, or this machine cannot isolate the reader.
    """
    paths = [path for file in files for path in _files_of(kind, file)]
    arrays = {f"{i}/{name}": value for i, path in enumerate(paths) for name, value in read_isolated(path).items()}
    source = {path.name: file_sha256(path) for path in paths}
    return import_encoder(kind, arrays, out, source=source, n_times=n_times, target_space=target_space)


def _files_of(kind: str, file: Path) -> list[Path]:
    if not file.is_dir():
        return [file]
    if kind != "nice":
        raise ValueError(f"{file} is a folder, expected a checkpoint file of {kind}; name the file")
    found = [sorted(file.glob(pattern)) for pattern in _NICE_PATTERNS]
    for pattern, matches in zip(_NICE_PATTERNS, found, strict=True):
        if len(matches) != 1:
            raise ValueError(f"{file} holds {len(matches)} files {pattern}, expected one; name the two files instead")
    return [matches[0] for matches in found]
