"""The engine confined by the system it runs on: no new files, no connections, no other programs.

Linux, in two steps, both through ctypes:

    confine_files(writable)   Landlock, before threads start: whatever they are, threads made later inherit it
    confine_calls()           seccomp, once the model is loaded: put on every thread at once (TSYNC)

Landlock leaves all of the file system readable and nothing writable but the paths named; seccomp answers EPERM to
calls that connect, execute, trace or mount. Other systems have neither: `describe` says so.
Sources: Linux, Documentation/userspace-api/landlock.rst and seccomp_filter.rst; numbers: asm/unistd_64.h, asm-generic.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every processor
_NO_NEW_PRIVS, _SET_SECCOMP = 38, 22
_READING = 1 << 0 | 1 << 2 | 1 << 3  # execute, read files, read folders: seccomp forbids execution of its own
_ON_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_TSYNC = 1

_X86 = {
    "connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50, "execve": 59, "ptrace": 101, "chroot": 161,
    "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "init_module": 175, "delete_module": 176,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "sendmmsg": 307, "process_vm_readv": 310, "process_vm_writev": 311,
    "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "execveat": 322, "userfaultfd": 323,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "pidfd_getfd": 438, "pidfd_open": 434,
    "socket": 41, "socketpair": 53, "pivot_root": 155, "acct": 163, "quotactl": 179, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "setxattrat": 463, "removexattrat": 466, "open_tree_attr": 467, "file_setattr": 469,
    "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "fchmodat": 268,
    "fchmodat2": 452, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198,
    "fremovexattr": 199,
}  # fmt: skip
_ARM = {
    "connect": 203, "sendto": 206, "sendmsg": 211, "bind": 200, "listen": 201, "execve": 221, "ptrace": 117,
    "chroot": 51, "mount": 40, "umount2": 39, "swapon": 224, "reboot": 142, "init_module": 105, "delete_module": 106,
    "kexec_load": 104, "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "perf_event_open": 241,
    "open_by_handle_at": 265, "setns": 268, "sendmmsg": 269, "process_vm_readv": 270, "process_vm_writev": 271,
    "finit_module": 273, "kexec_file_load": 294, "bpf": 280, "execveat": 281, "userfaultfd": 282,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "pidfd_getfd": 438, "pidfd_open": 434,
    "socket": 198, "socketpair": 199, "pivot_root": 41, "acct": 89, "quotactl": 60, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "setxattrat": 463, "removexattrat": 466, "open_tree_attr": 467, "file_setattr": 469,
    "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "fchmodat2": 452, "setxattr": 5, "lsetxattr": 6,
    "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
}  # fmt: skip
_CALLS = {"x86_64": _X86, "aarch64": _ARM}
"""What is refused always: among it changes of owners and permissions, which Landlock does not know."""
_WRITES = {
    "x86_64": {
        "creat": 85, "openat2": 437, "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87, "unlinkat": 263,
        "mkdir": 83, "mkdirat": 258, "rmdir": 84, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266,
        "mknod": 133, "mknodat": 259, "truncate": 76, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
    },
    "aarch64": {
        "openat2": 437, "renameat": 38, "renameat2": 276, "unlinkat": 35, "mkdirat": 34, "linkat": 37, "symlinkat": 36,
        "mknodat": 33, "truncate": 45, "utimensat": 88,
    },
}  # fmt: skip
"""What is refused too where nothing may be written."""

_IOCTL = {"x86_64": 16, "aarch64": 29}
_TYPING = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX: requests of ioctl that type words into a terminal, which its shell would then obey."""

_OPENS = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}
"""Calls that open files -> which of their arguments holds the flags."""

_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OF_SERVERS = frozenset({"sendto", "sendmsg", "sendmmsg", "bind", "listen"})
"""What a server needs on sockets that it has; it may still not connect, nor make others of its own."""


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """0 where there is no Landlock."""
    if not sys.platform.startswith("linux"):
        return 0
    version: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_int(1))
    return max(0, version)


def has_seccomp() -> bool:
    return sys.platform.startswith("linux") and platform.machine() in _ARCHITECTURES


def describe() -> str:
    """What can be confined on this system, in words."""
    if not sys.platform.startswith("linux"):
        return f"none: {platform.system()} has no confinement that this engine knows"
    version = landlock_version()
    files = (
        f"files by Landlock (version {version})" if version else "no Landlock in this kernel: files are not confined"
    )
    if not has_seccomp():
        return f"{files}; no seccomp filter for {platform.machine()}"
    return f"{files}; connections and programs by seccomp"


def confine_files(writable: Sequence[Path]) -> str:
    """No writes and no new files but below `writable`, for this thread and all that it starts; no TCP either.

    Returns what is confined, in words. Raises OSError where the system has Landlock and refuses.
    """
    version = landlock_version()
    if version == 0:
        return "files are not confined: this system has no Landlock"
    handled = (1 << {1: 13, 2: 14}.get(version, 15 if version < 5 else 16)) - 1
    network = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    attributes = struct.pack("<QQQ", handled, network, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        _allow(ruleset, Path("/"), _READING & handled)
        for path in writable:
            _allow(ruleset, path, handled)
        for name in ("/dev/null", "/dev/tty"):
            _allow(ruleset, Path(name), handled)
        _no_new_privileges()
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), 0)
    finally:
        os.close(ruleset)
    shown = ", ".join(map(str, writable)) or "nowhere"
    return (
        f"writes: {shown} only (Landlock {version}); TCP: none"
        if network
        else f"writes: {shown} only (Landlock {version})"
    )


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            access &= _ON_FILES
        rule = struct.pack("<Qi", access, handle)
        _call(_ADD_RULE, ctypes.c_int(ruleset), 1, rule, 0)
    finally:
        os.close(handle)


def _call(number: int, *arguments: Any) -> int:
    result: int = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"the system refused to confine: {os.strerror(error)}")
    return result


def _no_new_privileges() -> None:
    if _libc().prctl(_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), "the system refused no_new_privs")


def confine_calls(*, is_server: bool = False, may_write: bool = True) -> str:
    """EPERM for calls that connect, execute, trace or mount, on every thread of this process, for good.

    is_server  sockets that exist go on listening and answering
    may_write  False: no file is opened for writing, made, renamed or removed any more, by whatever path
    Returns what is confined, in words. Raises OSError where the system refuses.
    """
    if not has_seccomp():
        return "connections and programs are not confined: there is no filter for this system"
    machine = platform.machine()
    denied = sorted(n for name, n in _CALLS[machine].items() if not (is_server and name in _OF_SERVERS))
    denied += [] if may_write else sorted(_WRITES[machine].values())
    opens = {} if may_write else _OPENS[machine]
    program = _filter(_ARCHITECTURES[machine], denied, opens, _IOCTL[machine], machine == "x86_64")
    buffer = ctypes.create_string_buffer(program)
    head = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _no_new_privileges()
    result = _call(_SECCOMP[machine], ctypes.c_uint(1), ctypes.c_uint(_TSYNC), head)
    if result > 0:
        raise OSError(0, f"thread {result} could not be confined")
    what = "no connections, no other programs" + ("" if may_write else ", no files written")
    return f"{what} (seccomp, all {n_threads()} threads)"


def n_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_X32 = 0x40000000


def _filter(architecture: int, denied: Sequence[int], opens: dict[int, int], ioctl: int, has_x32: bool) -> bytes:
    """The filter's program: 8 bytes an instruction (code, jump if true, jump if false, operand)."""
    rows: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    if has_x32:
        rows += [(_JUMP_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _EPERM)]
    for number in denied:
        rows += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    for number, argument in opens.items():
        rows += [
            (_JUMP_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, 16 + 8 * argument),
            (_JUMP_SET, 0, 1, _TO_WRITE),
            (_RETURN, 0, 0, _EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    rows += [
        (_JUMP_EQUAL, 0, 4, ioctl),
        (_LOAD, 0, 0, 16 + 8),
        (_JUMP_EQUAL, 1, 0, _TYPING[0]),
        (_JUMP_EQUAL, 0, 1, _TYPING[1]),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *row) for row in rows)
