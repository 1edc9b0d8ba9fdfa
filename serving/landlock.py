"""Taking away a process's right to open files, by Landlock (Linux 5.13 and later), without any privilege.

What is open already stays usable, so a process opens what it needs, calls `forbid_files` and only then looks at bytes
that it does not trust.
"""

import ctypes
import os
import struct

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION_FLAG = 1
_PR_SET_NO_NEW_PRIVS = 38
# Rights over files by version of the interface: 13 in the first, then renaming across folders, truncating, ioctl.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP_SINCE, _TCP_RIGHTS = 4, 0b11


def landlock_version() -> int:
    """Return the version of the kernel's interface, 0 if there is none."""
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def forbid_files() -> None:
    """Deny this process and its children every new access to a file, and TCP where the kernel can.

    Raises
    ------
    OSError
        If the kernel has no Landlock, or refuses.
    """
    version = landlock_version()
    if version == 0:
        raise OSError(
            "this kernel has no Landlock, so untrusted weights cannot be read in isolation; "
            "use Linux 5.13 or later with Landlock enabled"
        )
    files = (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1
    handled = struct.pack("QQ", files, _TCP_RIGHTS) if version >= _TCP_SINCE else struct.pack("Q", files)
    ruleset = _call(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused the rules")
    try:
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _call(_RESTRICT_SELF, ruleset, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock refused to restrict the process")
    finally:
        os.close(ruleset)


def _call(number: int, *arguments: object) -> int:
    return int(_LIBC.syscall(ctypes.c_long(number), *(_word(argument) for argument in arguments)))


def _word(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


_LIBC = ctypes.CDLL(None, use_errno=True)
