"""Taking away a process's right to open files, by Landlock (Linux 5.13 and later), without any privilege.

What is open already stays usable, so a process opens what it needs, calls `forbid_files` or `allow_files` and only then
looks at bytes that it does not trust. Newer kernels take TCP, signals to others and abstract sockets away too.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
# Rights over files by version of the interface: 13 in the first, then renaming across folders, truncating, ioctl.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# Write, remove files and folders, make folders and plain files, truncate: no devices, sockets, pipes or links.
_CHANGE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 14
_MAKE_LINK = 1 << 12
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_TCP_SINCE, _TCP_RIGHTS = 4, 0b11
_SCOPE_SINCE, _SCOPES = 6, 0b11


def landlock_version() -> int:
    """Return the version of the kernel's interface, 0 if there is none."""
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def forbid_files() -> None:
    """Deny this process and its children every new access to a file; see `allow_files`."""
    allow_files(readable=(), writable=())


def allow_files(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Deny this process and its children, for ever, all new access to files but to those beneath the given paths.

    TCP is denied where the kernel can (version 4), and so are signals to other processes and abstract sockets (6).

    Parameters
    ----------
    readable : iterable of Path
        Files and folders that may be read; paths that do not exist are passed over.
    writable : iterable of Path
        Folders in which files may be read, made, changed and removed. Nothing may be executed anywhere.

    Raises
    ------
    OSError
        If the kernel has no Landlock, or refuses.
    """
    version = landlock_version()
    if version == 0:
        raise OSError(
            "this kernel has no Landlock, so untrusted files cannot be read in isolation; "
            "use Linux 5.13 or later with Landlock enabled"
        )
    files = (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1
    words = [files] + [_TCP_RIGHTS] * (version >= _TCP_SINCE) + [_SCOPES] * (version >= _SCOPE_SINCE)
    handled = struct.pack(f"{len(words)}Q", *words)
    ruleset = _call(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused the rules")
    try:
        for path in readable:
            _allow(ruleset, path, files & (_READ_FILE | _READ_FOLDER))
        for path in writable:
            _allow(ruleset, path, files & (_READ_FILE | _READ_FOLDER | _CHANGE | _MAKE_LINK))
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _call(_RESTRICT_SELF, ruleset, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock refused to restrict the process")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights if path.is_dir() else rights & _OF_FILES, beneath)
        if _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock refused a rule")
    finally:
        os.close(beneath)


def _call(number: int, *arguments: object) -> int:
    return int(_LIBC.syscall(ctypes.c_long(number), *(_word(argument) for argument in arguments)))


def _word(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


_LIBC = ctypes.CDLL(None, use_errno=True)
