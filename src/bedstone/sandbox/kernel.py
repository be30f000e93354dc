"""What the kernel shuts for a process: Landlock, seccomp, namespaces, capabilities, limits.

Landlock (Linux 5.13; https://docs.kernel.org/userspace-api/landlock.html) rules files, by path.
Seccomp (https://docs.kernel.org/userspace-api/seccomp_filter.html) rules system calls: what isn't
listed here is refused, so calls that come with later kernels are too. Both are given up by no
process that has them, nor by its children. The structures are those of the kernel's headers
`landlock.h`, `seccomp.h`, `filter.h` and `capability.h`; only the C library is called.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_LIBC = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A function of the C library. Raises OSError where it says that it failed."""
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(getattr(_LIBC, function)(*wide))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


# Landlock.

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # numbers of the calls, the same on every processor
READ_FILE, READ_DIR, WRITE_FILE, EXECUTE = 1 << 2, 1 << 3, 1 << 1, 1 << 0
_REMOVE = 1 << 4 | 1 << 5  # folders, files
_MAKE = 1 << 7 | 1 << 8  # folders, regular files
_REFER, _TRUNCATE = 1 << 13, 1 << 14
READ = READ_FILE | READ_DIR
CHANGE = READ | WRITE_FILE | _REMOVE | _MAKE | _REFER | _TRUNCATE
_OF_FILES = READ_FILE | WRITE_FILE | EXECUTE | _TRUNCATE | 1 << 15
# Rights to files that each version (ABI) knows: 2 adds links and moves between folders, 3 cutting
# files short, 5 control of devices. What an older one lacks, the filter of calls refuses below.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NETWORK = 0b11  # from version 4: to bind and to connect
_SCOPED = 0b11  # from version 6: abstract sockets, and signals, to processes outside


def landlock_version() -> int:
    """The version (ABI) of Landlock; 0 where the kernel has none or has it turned off."""
    try:
        return _call("syscall", _CREATE, None, 0, 1)
    except OSError:
        return 0


def allow_files(rules: Iterable[tuple[str, int]]) -> None:
    """From now on this process may do to files only what the rules allow.

    Args:
        rules: paths, and the rights to each and to all below it; what doesn't exist is left out.

    Raises:
        OSError: the kernel refused.
    """
    version = landlock_version()
    handled = (1 << _RIGHTS.get(version, _RIGHTS[5])) - 1
    parts = [handled]
    if version >= 4:
        parts.append(_NETWORK)
    if version >= 6:
        parts.append(_SCOPED)
    packed = struct.pack(f"={len(parts)}Q", *parts)
    ruleset = _call("syscall", _CREATE, packed, len(packed), 0)
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        _call("syscall", _RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not Path(path).is_dir():
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, place)  # landlock_path_beneath_attr, packed
        _call("syscall", _ADD, ruleset, 1, rule, 0)
    finally:
        os.close(place)


# Seccomp: a program of the kernel's packet filter (BPF) reads each call's number and arguments.

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _EQUAL, _LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_LOW, _HIGH = (0, 4)  # halves of an argument; both processors below are little-endian
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # another set of calls of x86_64


class Check(NamedTuple):
    """What an argument must be: `value` in the bits of `mask`, or anything else.

    Attributes:
        argument: its number, from 0.
        same: whether the bits must be the value's, or must not.
    """

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    same: bool = True


# Calls that Python needs: their number on x86_64 and on aarch64; -1 where there is none.
_CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80),
    "lstat": (6, -1), "poll": (7, -1), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "access": (21, -1), "pipe": (22, -1), "select": (23, -1),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23),
    "dup2": (33, -1), "pause": (34, -1), "nanosleep": (35, 101), "getitimer": (36, 102),
    "alarm": (37, -1), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83),
    "ftruncate": (77, 46), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "rename": (82, -1), "mkdir": (83, -1), "rmdir": (84, -1), "unlink": (87, -1),
    "readlink": (89, -1), "umask": (95, 166), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, -1),
    "getpgid": (121, 155), "getgroups": (115, 158), "getsid": (124, 156), "sigaltstack": (131, 132),
    "gettid": (186, 178), "time": (201, -1), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "set_tid_address": (218, 96), "restart_syscall": (219, 128),
    "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "epoll_wait": (232, -1),
    "epoll_ctl": (233, 21), "mkdirat": (258, 34), "newfstatat": (262, 79), "unlinkat": (263, 35),
    "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72),
    "ppoll": (271, 73), "set_robust_list": (273, 99), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59),
    "preadv": (295, 69), "pwritev": (296, 70), "getcpu": (309, 168), "renameat2": (316, 276),
    "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293),
    "faccessat2": (439, 439),
}  # fmt: skip
# Calls that Python needs with some arguments alone.
_CHECKED = {
    "open": (2, -1), "ioctl": (16, 29), "clone": (56, 220), "kill": (62, 129), "fcntl": (72, 25),
    "prctl": (157, 167), "tgkill": (234, 131), "openat": (257, 56), "prlimit64": (302, 261),
}  # fmt: skip
_CLONE3 = 435
_THREAD = 0x00010000 | 0x00000100  # CLONE_THREAD, CLONE_VM
_NAMESPACES = 0x7E020080  # CLONE_NEW...
_TERMINAL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # isatty, its size; FIO...
_DESCRIPTORS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # F_DUPFD ... F_SETLKW, F_DUPFD_CLOEXEC
_NAMES = (15, 16)  # PR_SET_NAME, PR_GET_NAME: of a thread


def allow_calls() -> None:
    """From now on this process may make only the calls that Python needs; no new process.

    It may start threads, and signal itself alone. What is refused fails with EPERM.

    Raises:
        OSError: the kernel refused, or the processor isn't one of those known here.
    """
    program = _filter(platform.machine(), os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count, padding, a pointer
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _call("prctl", 38, 1, 0, 0, 0)
    _call("prctl", 22, 2, head, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _filter(machine: str, own: int) -> bytes:
    """The filter's instructions, 8 bytes each.

    Args:
        own: number of the process that it is for.
    """
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"calls of {machine} processors aren't known")
    column = list(_ARCHITECTURES).index(machine)
    steps = [_step(_LOAD, 4), _step(_EQUAL, _ARCHITECTURES[machine], 1, 0), _step(_RETURN, _KILL)]
    steps.append(_step(_LOAD, 0))
    if machine == "x86_64":
        steps += [_step(_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)]
    for numbers in _CALLS.values():
        if numbers[column] >= 0:
            steps += [_step(_EQUAL, numbers[column], 0, 1), _step(_RETURN, _ALLOW)]
    for name, ways in _checks(own).items():
        number = _CHECKED[name][column]
        if number < 0:
            continue
        inner = [step for way in ways for step in _all(way)]
        inner.append(_step(_RETURN, _ERRNO | errno.EPERM))
        steps += [_step(_EQUAL, number, 0, len(inner)), *inner]
    # The C library then starts threads by `clone`, whose flags can be read here.
    steps += [_step(_EQUAL, _CLONE3, 0, 1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    steps.append(_step(_RETURN, _ERRNO | errno.EPERM))
    return b"".join(steps)


def _checks(own: int) -> dict[str, list[Sequence[Check]]]:
    """By call: ways that its arguments may be, of which one is enough."""
    cut = os.O_TRUNC | os.O_ACCMODE  # a file that is opened to be read may not be cut short
    return {
        "open": [[Check(1, os.O_TRUNC, cut, same=False)]],
        "openat": [[Check(2, os.O_TRUNC, cut, same=False)]],
        "ioctl": [[Check(1, one)] for one in _TERMINAL],
        "fcntl": [[Check(1, one)] for one in _DESCRIPTORS],
        "prctl": [[Check(0, one)] for one in _NAMES],
        "clone": [[Check(0, _THREAD, _THREAD | _NAMESPACES)]],
        "kill": [[Check(0, own)]],
        "tgkill": [[Check(0, own)]],
        "prlimit64": [[Check(0, 0), Check(2, 0), Check(2 + 8, 0)]],  # both halves of a pointer
    }


def _all(way: Sequence[Check]) -> list[bytes]:
    """Instructions that allow a call where all checks hold, and else go on."""
    steps: list[bytes] = []
    left = sum(3 for _ in way) + 1  # to the end of this way
    for check in way:
        half, argument = divmod(check.argument, 8)
        place = 16 + 8 * argument + (_HIGH if half else _LOW)
        left -= 3
        jumps = (0, left) if check.same else (left, 0)
        steps += [_step(_LOAD, place), _step(_AND, check.mask), _step(_EQUAL, check.value, *jumps)]
    return [*steps, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


# Namespaces and capabilities.

_UNSHARED = {"user": 0x10000000, "files": 0x00020000, "processes": 0x20000000}
_UNSHARED |= {"network": 0x40000000, "messages": 0x08000000, "name": 0x04000000}
_PRIVATE, _PLAIN = 0x44000, 0x2 | 0x4 | 0x8  # MS_REC | MS_PRIVATE; MS_NOSUID | NODEV | NOEXEC


def enter_namespaces(folder: str, size: int, inodes: int) -> bool:
    """Puts this process into namespaces of its own; its next child is the first in that of pids.

    The folder becomes a file system in memory, of `size` bytes and so many files at most. Whether
    all of it was allowed is tried in a child first: a process that entered half can't go back.
    """
    trial = os.fork()
    if trial == 0:
        try:
            _enter(folder, size, inodes)
            os._exit(0)
        except BaseException:
            os._exit(1)
    if os.waitpid(trial, 0)[1]:
        return False
    _enter(folder, size, inodes)
    return True


def _enter(folder: str, size: int, inodes: int) -> None:
    user, group = os.geteuid(), os.getegid()
    flags = 0
    for flag in _UNSHARED.values():
        flags |= flag
    _call("unshare", flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _call("mount", b"none", b"/", None, _PRIVATE, None)
    options = f"size={size},nr_inodes={inodes},mode=0700".encode()
    _call("mount", b"tmpfs", folder.encode(), b"tmpfs", _PLAIN, options)
    _call("sethostname", b"sandbox", 7)


def drop_rights() -> None:
    """Gives up every capability, of root too, for good. Raises OSError where that fails."""
    _call("prctl", 38, 1, 0, 0, 0)
    for capability in range(64):
        try:
            _call("prctl", 24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the last one
                break
            if error.errno != errno.EPERM:  # without rights there are none to give up
                raise
    _call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))


def die_with_parent() -> None:
    """This process is killed when the thread that started it ends."""
    _call("prctl", 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG


def hide_memory() -> None:
    """No other process of the user may read this one's memory, nor is it ever written to a file."""
    _call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def limit(seconds: float, memory: int, file_size: int, files: int) -> None:
    """Limits of this process, for good: seconds of the processor, bytes, bytes of a file, files."""
    wanted = {
        resource.RLIMIT_CPU: int(seconds) + 2,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, value in wanted.items():
        most = resource.getrlimit(name)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(name, (value, value))
