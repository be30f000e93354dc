"""The filter of system calls, read as the kernel reads it."""

import errno
import os
import struct

import pytest

from bedstone.sandbox import kernel

X86, ARM = 0xC000003E, 0xC00000B7
OWN = 4321
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def decide(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter says of a call: an interpreter of the instructions that it uses."""
    program = kernel._filter(machine, OWN)
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    architecture = architecture or {"x86_64": X86, "aarch64": ARM}[machine]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    value, at = 0, 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x54:
            value &= operand
        elif code == 0x15:
            at += yes if value == operand else no
        elif code == 0x35:
            at += yes if value >= operand else no
        else:
            assert code == 0x06
            return operand


CASES = [
    ("x86_64", 0, (), ALLOW),  # read
    ("x86_64", 41, (2, 1, 0), EPERM),  # socket
    ("x86_64", 57, (), EPERM),  # fork
    ("x86_64", 59, (), EPERM),  # execve
    ("x86_64", 101, (16, 1), EPERM),  # ptrace
    ("x86_64", 425, (), EPERM),  # io_uring_setup
    ("x86_64", 435, (), ENOSYS),  # clone3
    ("x86_64", 56, (0x3D0F00,), ALLOW),  # clone of a thread
    ("x86_64", 56, (17,), EPERM),  # clone as fork
    ("x86_64", 56, (0x10000000 | 0x3D0F00,), EPERM),  # into a user namespace
    ("x86_64", 62, (OWN, 9), ALLOW),  # kill oneself
    ("x86_64", 62, (1, 9), EPERM),
    ("x86_64", 62, (2**32 - 1, 9), EPERM),
    ("x86_64", 234, (OWN, 7, 6), ALLOW),  # tgkill, as abort() does
    ("x86_64", 234, (OWN + 1, 7, 6), EPERM),
    ("x86_64", 257, (0, 0, os.O_RDONLY), ALLOW),  # openat
    ("x86_64", 257, (0, 0, os.O_WRONLY | os.O_TRUNC), ALLOW),
    ("x86_64", 257, (0, 0, os.O_RDONLY | os.O_TRUNC), EPERM),
    ("x86_64", 2, (0, os.O_RDONLY | os.O_TRUNC), EPERM),
    ("x86_64", 76, (0, 0), EPERM),  # truncate
    ("x86_64", 90, (0, 0o777), EPERM),  # chmod
    ("x86_64", 72, (0, 1), ALLOW),  # fcntl F_GETFD
    ("x86_64", 72, (0, 8, 1), EPERM),  # fcntl F_SETOWN
    ("x86_64", 16, (0, 0x5401), ALLOW),  # ioctl TCGETS
    ("x86_64", 16, (0, 0x5412), EPERM),  # ioctl TIOCSTI
    ("x86_64", 302, (0, 9, 0, 1 << 40), ALLOW),  # prlimit64 that reads its own
    ("x86_64", 302, (0, 9, 1 << 40, 0), EPERM),  # that sets
    ("x86_64", 302, (7, 9, 0, 1), EPERM),  # another's
    ("x86_64", 157, (15, 0), ALLOW),  # prctl PR_SET_NAME
    ("x86_64", 157, (4, 1), EPERM),  # PR_SET_DUMPABLE
    ("x86_64", 0x40000000, (), KILL),  # x32
    ("x86_64", 900, (), EPERM),  # of a later kernel
    ("aarch64", 63, (), ALLOW),  # read
    ("aarch64", 198, (2, 1, 0), EPERM),  # socket
    ("aarch64", 220, (0x3D0F00,), ALLOW),
    ("aarch64", 220, (17,), EPERM),
    ("aarch64", 56, (0, 0, os.O_TRUNC), EPERM),
    ("aarch64", 129, (OWN, 9), ALLOW),
    ("aarch64", 129, (OWN + 1, 9), EPERM),
]


@pytest.mark.parametrize(("machine", "number", "arguments", "expected"), CASES)
def test_the_filter_decides(machine, number, arguments, expected):
    assert decide(machine, number, *arguments) == expected


def test_what_isn_t_listed_is_refused():
    listed = {one[0] for one in (*kernel._CALLS.values(), *kernel._CHECKED.values())}
    for number in set(range(470)) - listed:
        found = decide("x86_64", number, 1 << 20, 1 << 20, 1 << 20)
        assert found == (ENOSYS if number == 435 else EPERM)


def test_calls_of_another_set_kill():
    assert decide("x86_64", 3, architecture=0x40000003) == KILL  # int 0x80 of i386


def test_an_unknown_processor_is_refused():
    with pytest.raises(OSError, match="calls of riscv64 processors aren't known"):
        kernel._filter("riscv64", OWN)


def test_jumps_stay_within_a_byte_and_the_program_within_the_kernel_s_bound():
    for machine in ("x86_64", "aarch64"):
        assert len(kernel._filter(machine, OWN)) // 8 < 4096
