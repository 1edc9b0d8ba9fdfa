"""Unpack an uploaded zip: a recording made of several files, or one compressed file.

Nothing a zip says is trusted: names are reduced to plain ones, links and encrypted members are
refused, and sizes are counted while unpacking.
"""

import re
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from encoders.durable_files import is_full
from encoders.epochs import EpochsMismatch
from encoders.zip_layout import overlap

# of which some are left out: folders, what an archiver adds, folders within the recording's
MAX_ENTRIES = 512
MAX_MEMBERS = 64
MAX_UNPACKED_BYTES = 2 * 1024**3
MAX_RATIO = 200
RATIO_GRACE_BYTES = 16 * 1024**2
_CHUNK = 1024**2
_PLAIN_NAME = re.compile(r"[\w][\w .,()@+=~-]{0,199}")
_WITHIN = re.compile(r"(?i)[^/]\.(ds|mff)/[^/]+/")
_CLUTTER = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)")


def unpack(path: Path, folder: Path) -> list[Path]:
    """Unpack the zip ``path`` flat into ``folder`` and return the files.

    Sub-folders are removed from the names, so two members with one base name are refused. What lies in folders within
    a ``.ds`` or ``.mff`` folder (head coil recordings, package information) is left out.

    Raises
    ------
    EpochsMismatch
        If the zip is damaged, too large, too tightly packed, or has a member that is not a plain file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked_members(archive, path.stat().st_size)
            return [_extract(archive, member, folder / name) for name, member in members.items()]
    except EpochsMismatch:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        if is_full(error):
            raise
        raise EpochsMismatch("the zip is damaged or packed in an unusual way; pack it anew with deflate") from error


def _checked_members(archive: zipfile.ZipFile, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise EpochsMismatch(f"the zip has {len(entries)} members, at most {MAX_ENTRIES} allowed; send one recording")
    if overlap(entries, n_bytes):
        raise EpochsMismatch("members of the zip overlap or are larger than the zip; it is damaged, pack it anew")
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES:
        raise EpochsMismatch(f"the zip unpacks to {unpacked} bytes, at most {MAX_UNPACKED_BYTES} allowed; cut epochs")
    if unpacked > RATIO_GRACE_BYTES and unpacked > MAX_RATIO * max(packed, 1):
        raise EpochsMismatch(f"the zip unpacks to more than {MAX_RATIO} times its size; send the recording itself")
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        if entry.is_dir() or _CLUTTER.search(entry.filename) or _WITHIN.search(entry.filename):
            continue
        name = _plain_name(entry)
        if name in members:
            raise EpochsMismatch(f"the zip has {name!r} twice, in different folders; pack one recording only")
        members[name] = entry
    if len(members) > MAX_MEMBERS:
        raise EpochsMismatch(
            f"the zip has {len(members)} members that are files, at most {MAX_MEMBERS} allowed; send one recording"
        )
    if not members:
        raise EpochsMismatch("the zip is empty; pack a recording with all of its files")
    return members


def _plain_name(entry: zipfile.ZipInfo) -> str:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise EpochsMismatch("the zip has a link or a special file; pack the files themselves")
    if entry.flag_bits & 0x1:
        raise EpochsMismatch("the zip is encrypted; send it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise EpochsMismatch("the zip is packed with an unusual method; pack it anew with deflate")
    parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
    name = parts[-1] if parts else ""
    if ".." in parts or entry.filename.startswith(("/", "\\")) or not _PLAIN_NAME.fullmatch(name):
        raise EpochsMismatch("the zip has a file name that is not plain; use letters, digits, spaces, dots, - and _")
    return name


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path:
    left = member.file_size
    with archive.open(member) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise EpochsMismatch("a file in the zip is larger than the zip says; pack it anew")
            sink.write(chunk)
    return target
