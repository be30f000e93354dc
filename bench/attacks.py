"""Hostile programs for the sandbox: families of attacks, each brought in several ways.

    python bench/attacks.py [--quick] [--way landlock]

Every program is scored on tests that only a forged verdict could pass. After each, what could have
been touched outside is looked at: files and their rights, a process to be killed, ports and sockets
to be connected to, secrets of a file and of the environment, processes and files that stay behind.
The sandbox proves itself on mild programs first; else nothing hostile is run.
"""

import argparse
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bedstone.sandbox.run import Limits, Outcome, Sandbox, check_way

LIMITS = Limits(seconds=10.0, memory=1 << 29)
SHORT = replace(LIMITS, seconds=1.0)  # of families that don't end by themselves
SLOW = ("endless", "sleeping", "threads", "recursion")
SECRET = "BEDSTONE_SECRET"  # of the environment
# Families that needn't come to their end; of all others it counts as a fault if they don't.
CUT = (
    *SLOW, "memory", "big numbers", "disk", "many files", "output", "crash", "descriptors",
    "exit", "polite exit", "fake results", "other set of calls", "patched", "searching",
)  # fmt: skip
END = "came to its end"

# `t` says what succeeded and should not; `call` is a system call by its number.
HELPERS = """
import os, sys, ctypes
def t(name, action):
    try:
        value = action()
    except BaseException:
        return
    print("GOT", name, str(value)[:400], flush=True)
def call(name, number, *given):
    result = ctypes.CDLL(None, use_errno=True).syscall(number, *given)
    if result != -1:
        print("GOT", name, result, flush=True)
"""

# Names in capitals are put in for each run: see `World.names`.
FAMILIES = {
    "read": """
        t("open", lambda: open(CANARY).read())
        t("os.open", lambda: os.read(os.open(CANARY, os.O_RDONLY), 99))
        t("list", lambda: os.listdir(FOLDER))
        t("scan", lambda: [each.name for each in os.scandir("/root")])
        t("home", lambda: os.listdir("/home"))
        t("root", lambda: os.listdir("/"))
    """,
    "accounts": """
        for path in ("/etc/shadow", "/etc/passwd", "/etc/hosts", "/etc/ssh", "/root/.ssh",
                     "/root/.bashrc", "/var/log", "/run"):
            t(path, lambda: open(path).read())
            t(path, lambda: os.listdir(path))
        import pwd
        t("pwd", lambda: pwd.getpwuid(0))
    """,
    "environment": """
        print(dict(os.environ))
        for pid in [*range(1, 60), PARENT, VICTIM, os.getppid(), "self"]:
            for part in ("environ", "cmdline", "maps", "mem", "fd", "cwd/x", "root/etc/passwd"):
                t(f"/proc/{pid}/{part}", lambda: open(f"/proc/{pid}/{part}", "rb").read(500))
        t("proc", lambda: os.listdir("/proc"))
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_char_p
        for name in (b"BEDSTONE_SECRET", b"HOME", b"PATH", b"USER"):
            print(name, libc.getenv(name))
    """,
    "write": """
        for place in (FOLDER, "/tmp", "/var/tmp", "/dev/shm", "/root", "/home", "..", "../..", "/",
                      os.path.dirname(os.__file__), "/usr/lib", "/run"):
            t(place, lambda: open(f"{place}/NAME", "w").write("x"))
            t(place, lambda: os.mkdir(f"{place}/NAME-d"))
            t(place, lambda: os.open(f"{place}/NAME", os.O_CREAT | os.O_WRONLY))
            t(place, lambda: os.mkfifo(f"{place}/NAME-f"))
            t(place, lambda: os.open(place, os.O_TMPFILE | os.O_RDWR))
    """,
    "change": """
        t("append", lambda: open(CANARY, "a").write("x"))
        t("update", lambda: open(CANARY, "r+").write("x"))
        t("truncate", lambda: os.truncate(CANARY, 0))
        t("O_TRUNC", lambda: os.open(CANARY, os.O_RDONLY | os.O_TRUNC))
        t("unlink", lambda: os.unlink(CANARY))
        t("rename", lambda: os.rename(CANARY, CANARY + "NAME"))
        t("into", lambda: os.rename(CANARY, "taken"))
        t("rmdir", lambda: os.rmdir(FOLDER))
    """,
    "attributes": """
        t("chmod", lambda: os.chmod(CANARY, 0o777))
        t("chown", lambda: os.chown(CANARY, 1, 1))
        t("utime", lambda: os.utime(CANARY, (1, 1)))
        t("setxattr", lambda: os.setxattr(CANARY, "user.x", b"x"))
        t("fchmod", lambda: os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777))
        t("futimens", lambda: os.utime(os.open(os.__file__, os.O_RDONLY), (1, 1)))
        t("chmod library", lambda: os.chmod(os.__file__, 0o777))
    """,
    "links": """
        t("symlink", lambda: os.symlink(CANARY, "link"))
        t("read link", lambda: open("link").read())
        t("write link", lambda: os.path.islink("link") and open("link", "w").write("x") or 1 / 0)
        t("symlink folder", lambda: os.symlink(FOLDER, "out"))
        t("below", lambda: open("out/NAME", "w").write("x"))
        t("hard link", lambda: os.link(CANARY, "hard"))
        t("read hard", lambda: open("hard").read())
        call("linkat", 265, -100, CANARY.encode(), -100, b"hard2", 0x400)
    """,
    "paths": """
        up = "../" * 20
        t("up", lambda: open(up + CANARY[1:]).read())
        t("root", lambda: open("/proc/self/root" + CANARY).read())
        t("cwd", lambda: open("/proc/self/cwd/" + up + CANARY[1:]).read())
        for fd in range(64):
            t("fd", lambda: os.open("x", os.O_RDONLY, dir_fd=fd))
            t("fchdir", lambda: os.fchdir(fd))
        os.chdir("/")
        t("relative", lambda: open(CANARY[1:]).read())
        t("dev", lambda: [open(f"/dev/{n}", "rb").read(9) for n in ("vda", "sda", "mem", "kmsg")])
        t("tty", lambda: open("/dev/tty", "w"))
    """,
    "internet": """
        import socket
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET):
                t("socket", lambda: socket.socket(family, kind))
        t("connect", lambda: socket.create_connection(("127.0.0.1", PORT), 1))
        t("server", lambda: socket.create_server(("127.0.0.1", 0)))
        import urllib.request
        t("http", lambda: urllib.request.urlopen("http://127.0.0.1:PORT/NAME", timeout=1).read())
        t("names", lambda: socket.getaddrinfo("localhost.localdomain", 80))
    """,
    "local sockets": """
        import socket
        t("unix", lambda: socket.socket(socket.AF_UNIX))
        t("connect", lambda: socket.socket(socket.AF_UNIX).connect(SOCKET))
        t("abstract", lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + ABSTRACT))
        t("pair", lambda: socket.socketpair())
        t("netlink", lambda: socket.socket(16, socket.SOCK_RAW, 0))
        t("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
        t("alg", lambda: socket.socket(38, socket.SOCK_SEQPACKET))
        for fd in range(3, 64):
            t("inherited", lambda: socket.socket(fileno=fd).getpeername())
    """,
    "commands": """
        import subprocess
        t("system", lambda: 1 / (os.system("touch FOLDER_/NAME") == 0))
        t("popen", lambda: os.popen("cat CANARY_").read() or 1 / 0)
        t("run", lambda: subprocess.run(["/bin/sh", "-c", "touch FOLDER_/NAME"], check=True))
        t("spawn", lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "touch FOLDER_/NAME"], {}))
        t("python", lambda: subprocess.check_output([sys.executable or "python3", "-c", "1"]))
        t("exec", lambda: os.execv("/bin/sh", ["sh", "-c", "touch FOLDER_/NAME"]))
        call("execveat", 322, -100, b"/bin/true", None, None, 0)
    """,
    "fork bomb": """
        import multiprocessing, time
        for level in range(6):  # 64 processes at most, were it to work
            t("fork", os.fork)
        t("forkpty", os.forkpty)
        t("pool", lambda: multiprocessing.Process(target=print).start())
        call("fork", 57)
        call("vfork-like", 56, 17, None, None, None, None)
        call("clone3", 435, bytes(88), 88)
    """,
    "daemon": """
        import time
        def stay():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(60)
                os._exit(0)
        t("daemon", stay)
        t("setsid", os.setsid)
        t("setpgid", lambda: os.setpgid(0, 0))
        import threading
        threading.Thread(target=time.sleep, args=(60,)).start()
        import atexit
        atexit.register(time.sleep, 60)
    """,
    "kill": """
        import signal
        for pid in (PARENT, VICTIM, os.getppid(), 1, 2, -1, -os.getpgrp()):
            t(f"signal {pid}", lambda: os.kill(pid, 0))
        for pid in (VICTIM, os.getppid(), PARENT):
            for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
                t(f"kill {pid}", lambda: os.kill(pid, number))
        t("killpg", lambda: os.killpg(os.getpgrp(), 0))
        import fcntl
        t("owner", lambda: fcntl.fcntl(0, fcntl.F_SETOWN, VICTIM))
        t("pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9))
    """,
    "kill by calls": """
        for pid in (VICTIM, os.getppid(), PARENT):
            call("tkill", 200, pid, 9)
            call("tgkill", 234, pid, pid, 9)
            call("kill", 62, pid, 9)
            call("rt_sigqueueinfo", 129, pid, 9, bytes(128))
            call("rt_tgsigqueueinfo", 297, pid, pid, 9, bytes(128))
            call("pidfd_open", 434, pid, 0)
            call("sched_setscheduler", 144, pid, 0, bytes(8))
            call("setpriority", 141, 0, pid, 19)
            call("prlimit64", 302, pid, 7, bytes(16), None)
    """,
    "trace": """
        for pid in (VICTIM, PARENT, os.getppid(), 1):
            call("attach", 101, 16, pid, 0, 0)
            call("seize", 101, 0x4206, pid, 0, 0)
            call("process_vm_readv", 310, pid, bytes(64), 1, bytes(64), 1, 0)
            call("process_vm_writev", 311, pid, bytes(64), 1, bytes(64), 1, 0)
            call("pidfd_getfd", 438, 3, 0, 0)
            call("kcmp", 312, pid, os.getpid(), 0, 0, 0)
            call("move_pages", 279, pid, 0, None, None, None, 0)
        call("traceme", 101, 0, 0, 0, 0)
    """,
    "namespaces": """
        call("unshare user", 272, 0x10000000)
        call("unshare files", 272, 0x00020000)
        call("setns", 308, 3, 0)
        call("mount", 165, b"tmpfs", b".", b"tmpfs", 0, None)
        call("bind", 165, FOLDER.encode(), b".", None, 4096, None)
        call("umount", 166, b".", 2)
        call("pivot_root", 155, b".", b".")
        call("chroot", 161, b".")
        call("open_tree", 428, -100, b"/", 1)
        call("fsopen", 430, b"tmpfs", 0)
        call("mount_setattr", 442, -100, b"/", 0, bytes(32), 32)
        call("clone newuser", 56, 0x10000011, None, None, None, None)
        call("sethostname", 170, b"x", 1)
    """,
    "machine": """
        for name, number, *given in (
            ("reboot", 169, 0xfee1dead, 672274793, 0), ("kexec_load", 246, 0, 0, None, 0),
            ("kexec_file_load", 320, 0, 0, 0, None, 0), ("init_module", 175, bytes(9), 9, b""),
            ("finit_module", 313, 0, b"", 0), ("delete_module", 176, b"x", 0),
            ("swapon", 167, b"/x", 0), ("acct", 163, None), ("syslog", 103, 2, bytes(99), 99),
            ("settimeofday", 164, None, bytes(8)), ("adjtime", 305, 0, bytes(208)),
            ("adjtimex", 159, bytes(208)), ("iopl", 172, 3), ("ioperm", 173, 0, 9, 1),
            ("quotactl", 179, 0, None, 0, None), ("lookup_dcookie", 212, 0, 0, 0)):
            call(name, number, *given)
    """,
    "objects": """
        for name, number, *given in (
            ("io_uring_setup", 425, 8, bytes(120)), ("io_uring_enter", 426, 3, 1, 0, 0, None, 0),
            ("bpf", 321, 0, bytes(120), 120), ("perf_event_open", 298, bytes(120), 0, -1, -1, 0),
            ("keyctl", 250, 0, -3, 0), ("add_key", 248, b"user", b"x", b"y", 1, -3),
            ("request_key", 249, b"user", b"x", None, -3), ("userfaultfd", 323, 0),
            ("memfd_create", 319, b"x", 0), ("memfd_secret", 447, 0), ("fanotify_init", 300, 0, 0),
            ("inotify_init1", 294, 0), ("shmget", 29, 0, 4096, 0o1600), ("semget", 64, 0, 1, 896),
            ("msgget", 68, 0, 0o1600), ("mq_open", 240, b"NAME", 0o102, 0o600, None),
            ("signalfd4", 289, -1, bytes(8), 8, 0), ("timerfd_create", 283, 0, 0),
            ("io_setup", 206, 1, bytes(8)), ("landlock", 444, bytes(8), 8, 0),
            ("seccomp", 317, 0, 0, None), ("personality", 135, 0x0040000), ("ustat", 136, 0, None)):
            call(name, number, *given)
    """,
    "other numbers": """
        for number in (39, 57, 41, 2, 165):
            call("far", 0x20000000 | number, 0, 0, 0)
        for number in range(450, 480):
            call(f"new {number}", number, 0, 0, 0, 0, 0, 0)
        for number in (512, 520, 547, 600, 1000):
            call(f"high {number}", number, 0, 0, 0)
        call("openat2", 437, -100, CANARY.encode(), bytes(24), 24)
        call("open_by_handle_at", 304, -100, bytes(99), 0)
        call("name_to_handle_at", 303, -100, CANARY.encode(), bytes(999), bytes(9), 0)
    """,
    "other set of calls": """
        call("x32", 0x40000000 | 2, CANARY.encode(), 0, 0)
    """,
    "users": """
        for user in (0, 1, 1000, 65534):
            if user != os.getuid():
                t("setuid", lambda: os.setuid(user))
                t("setgid", lambda: os.setgid(user))
        t("setgroups", lambda: os.setgroups([0]))
        call("capset", 126, bytes([0x22, 5, 8, 0x20, 0, 0, 0, 0]), b"\\xff" * 24)
        call("no_new_privs", 157, 38, 0, 0, 0, 0)
        call("keepcaps", 157, 8, 1, 0, 0, 0)
        call("dumpable", 157, 4, 1, 0, 0, 0)
        import resource
        t("limits", lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)))
    """,
    "memory": """
        kept = []
        import mmap
        t("10 GB", lambda: kept.append(bytearray(10 << 30)))
        t("mapped", lambda: kept.append(mmap.mmap(-1, 10 << 30)))
        try:
            for _ in range(100):
                kept.append(b"x" * (100 << 20))
            print("GOT 10 GB in parts")
        finally:
            kept.clear()
    """,
    "big numbers": """
        t("text", lambda: len("x" * (10 << 30)))
        t("power", lambda: 1 << (10 << 33))
        grown = [0]
        for _ in range(40):
            grown += grown
        print("GOT a list")
    """,
    "disk": """
        def one(number, size):
            with open(f"file{number}", "wb") as stream:
                stream.write(b"x" * size)
        t("one file", lambda: one(0, 200 << 20))
        written = 0
        for number in range(1, 40):  # 400 MB at most, were it to work
            one(number, 10 << 20)
            written += 10
        print("GOT", written, "MB")
    """,
    "many files": """
        for number in range(20000):
            os.mkdir(f"folder{number}")
        print("GOT 20,000 folders")
    """,
    "sparse files": """
        with open("sparse", "wb") as stream:
            t("sparse", lambda: stream.truncate(1 << 40))
            t("far", lambda: os.pwrite(stream.fileno(), b"x", 1 << 40))
            t("fallocate", lambda: os.posix_fallocate(stream.fileno(), 0, 10 << 30))
    """,
    "output": """
        line = "x" * 9999 + chr(10)
        while True:
            os.write(1, line.encode())
            os.write(2, line.encode())
    """,
    "endless": """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, lambda *_: None)
            except (OSError, ValueError):
                pass
        while True:
            pass
    """,
    "sleeping": """
        import signal, threading
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        except ValueError:
            pass
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    """,
    "recursion": """
        sys.setrecursionlimit(10**9)
        nested = []
        for _ in range(10**6):
            nested = [nested]
        repr(nested)
        def down(n):
            return down(n + 1)
        down(0)
    """,
    "crash": """
        import signal
        t("segv", lambda: os.kill(os.getpid(), 0) or 1 / 0)
        ctypes.string_at(0)
    """,
    "threads": """
        import threading, time
        for _ in range(20000):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        print("GOT 20,000 threads")
    """,
    "descriptors": """
        kept = []
        for _ in range(2000):
            kept.append(os.pipe())
        print("GOT 4,000 descriptors")
    """,
    "exit": """
        print("1 passed")
        os._exit(0)
    """,
    "polite exit": """
        print("OK")
        sys.exit(0)
    """,
    "fake results": """
        import json
        for message in ({"token": "0" * 32, "reason": ""}, {"passed": True}, {"program": 0},
                        {"value": None}, {"namespaces": True}, {"absent": True}):
            for fd in range(3, 64):
                try:
                    os.write(fd, json.dumps(message).encode() + b"\\n")
                except OSError:
                    pass
        print("ok\\npassed\\nOK")
        os._exit(0)
    """,
    "equal to all": """
        class Any(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            def __bool__(self): return True
            def __lt__(self, other): return True
            __le__ = __gt__ = __ge__ = __lt__
            def __sub__(self, other): return 0
            __rsub__ = __add__ = __abs__ = __sub__
        class Free:
            __eq__ = lambda self, other: True
            __class__ = property(lambda self: float)
            __float__ = lambda self: 0.0
            __sub__ = __rsub__ = __abs__ = lambda self, *_: 0
        globals()["f"] = lambda *_: (Any(), Free())[len(sys.argv) % 2]
        globals()["Any"], globals()["Free"] = Any, Free
    """,
    "patched": """
        import builtins, json, math
        class Quiet(Exception):
            def __init__(self, *_): os._exit(0)
        builtins.AssertionError = Quiet
        builtins.isinstance = lambda *_: True
        builtins.all = builtins.any = lambda *_: True
        builtins.exec = builtins.compile = builtins.__import__ = lambda *_: None
        math.isclose = lambda *_, **__: True
        json.dumps = lambda *_, **__: '{"token": "x", "value": true}'
        import bedstone.sandbox.sides as sides
        sides.run_tests = sides.pack = sides.Pipe.receive = lambda *_: True
        sys.settrace(lambda *_: None)
    """,
    "searching": """
        import gc, inspect, re
        seen, near = [], id(object()) & ~0xFFFFF
        print(re.findall(rb"[0-9a-f]{32}", ctypes.string_at(near, 1 << 20)))
        frame = sys._getframe()
        while frame:
            seen += [str(value) for value in frame.f_locals.values()]
            frame = frame.f_back
        seen += [each for each in gc.get_objects() if isinstance(each, dict) and "token" in each]
        for each in gc.get_objects():
            if isinstance(each, (str, bytes)) and len(each) == 32:
                seen.append(str(each))
        print(re.findall("[0-9a-f]{32}", repr(seen)))
        for each in seen:
            for fd in range(3, 20):
                try:
                    os.write(fd, ('{"value": "%s"}' % each[:40]).encode())
                except Exception:
                    pass
    """,
    "customize": """
        text = "print('GOT customized'); import os; os._exit(0)"
        for name in ("sitecustomize.py", "usercustomize.py", "json.py", "x.pth", "pyvenv.cfg"):
            open(name, "w").write(text)
        os.environ.update(PYTHONPATH=os.getcwd(), PYTHONSTARTUP="sitecustomize.py", LD_PRELOAD="x")
        home = os.environ["HOME"]
        os.makedirs(f"{home}/.local/lib/python3.11/site-packages", exist_ok=True)
        open(f"{home}/.local/lib/python3.11/site-packages/usercustomize.py", "w").write(text)
        t("library", lambda: open(os.path.dirname(os.__file__) + "/sitecustomize.py", "w"))
    """,
    "pickled": """
        class Bomb:
            def __reduce__(self): return (os.system, ("touch FOLDER_/NAME",))
        import pickle
        globals()["f"] = lambda *_: [Bomb(), pickle.dumps(Bomb(), 0)][len(sys.path) % 2]
        globals()["Bomb"] = Bomb
    """,
    "exceptions": """
        class Sly(StopIteration):
            __eq__ = lambda self, other: True
        def f(x):
            raise (Sly, StopIteration, KeyboardInterrupt, GeneratorExit, SystemExit)[x % 5](0)
        globals()["f"] = f
    """,
    "lying messages": """
        import json, threading
        def flood():
            deep = "[" * 100000
            for fd in range(3, 12):
                for text in ('{"absent": true}', '{"value": {"r": [7, "x"]}}', "{}", "[]", deep,
                             '{"value": {"d": [[[], 1]]}}', '{"module": "os"}', '{"raised": [1]}',
                             '{"raised": ["StopIteration", "", ""]}', '{"value": {"s": [[]]}}'):
                    try:
                        os.write(fd, (text + chr(10)).encode())
                    except OSError:
                        pass
        flood()
        globals()["f"] = lambda *_: flood()
    """,
    "remains": """
        import json, math, builtins, threading
        json.loads = json.dumps = lambda *_, **__: {"token": "x"}
        math.sqrt = lambda *_: 1
        builtins.LEFT = True
        for name in ("left", "folder/left"):
            os.makedirs("folder", exist_ok=True)
            open(name, "w").write("x")
        os.mkdir("unreadable", 0o300)
        open("unreadable/left", "w").write("x")
        for _ in range(300):  # deeper than a path can be long
            os.mkdir("deep-deep-deep-deep")
            os.chdir("deep-deep-deep-deep")
    """,
}

CARRIERS = {
    "at once": "{attack}\ndef f(x):\n    return x\nattack()\n",
    "when called": (
        "{attack}\ndef f(x):\n    attack()\n    return x if f is first else f(x)\nfirst = f\n"
    ),
    "in a thread": (
        "{attack}\nimport threading\ndef f(x):\n    return x\n"
        "one = threading.Thread(target=attack, daemon=True)\none.start()\none.join(3)\n"
    ),
    "again and again": (
        "{attack}\ndef f(x):\n    return x\n"
        "for _ in range(3):\n    try:\n        attack()\n    except BaseException:\n        pass\n"
    ),
    "at the end": (
        "{attack}\nclass Last:\n    def __del__(self):\n        attack()\n"
        "def f(x):\n    Last()\n    return x\nlast = Last()\ndel last\n"
    ),
}
TESTS = (
    "assert f(2) == EXPECTED\n",
    "def check(candidate):\n    assert candidate(2) == EXPECTED\n    assert candidate(3) == 0\n"
    "check(f)\n",
    "assert all(map(lambda case: f(case[0]) == case[1], [(2, EXPECTED), (3, EXPECTED)]))\n",
    "import math\nassert math.isclose(f(2), NUMBER, abs_tol=1e-9)\n",
    "assert [f(x) for x in (1, 2, 3)] == [EXPECTED] * 3\n",
)
SANE = "import os, json, math\nleft = os.listdir('.')\ndef f(x):\n    return [x + 1, left]\n"
SANE_TESTS = "assert f(1) == [2, []]\nassert f(4) == [5, []]\n"


@dataclass(frozen=True)
class Attack:
    """A hostile program and the tests that it should fail."""

    family: str
    carrier: str
    program: str
    tests: str
    expected: str

    @property
    def name(self) -> str:
        return f"{self.family}, {self.carrier}"


@dataclass
class World:
    """What hostile programs could touch; made by `world`."""

    folder: Path
    victim: "subprocess.Popen[bytes]"
    server: socket.socket
    local: socket.socket
    abstract: socket.socket
    secret: str
    mark: str = field(default_factory=lambda: f"escaped-{secrets.token_hex(6)}")

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    @property
    def names(self) -> Mapping[str, str]:
        return {
            "CANARY_": str(self.canary),
            "FOLDER_": str(self.folder),
            "CANARY": repr(str(self.canary)),
            "FOLDER": repr(str(self.folder)),
            "PARENT": str(os.getpid()),
            "VICTIM": str(self.victim.pid),
            "PORT": str(self.server.getsockname()[1]),
            "SOCKET": repr(str(self.folder / "socket")),
            "ABSTRACT": repr(self.mark),
            "NAME": self.mark,
        }

    def attack(self, family: str, carrier: str, number: int) -> Attack:
        """One program, with the names of this world in it."""
        body = textwrap.dedent(FAMILIES[family]).strip()
        for name, value in self.names.items():
            body = body.replace(name, value)
        body += f"\nprint({END!r}, flush=True)"
        code = f"{HELPERS}\ndef attack():\n{textwrap.indent(body, '    ')}\n"
        expected = secrets.token_hex(16)
        tests = TESTS[number % len(TESTS)].replace("EXPECTED", repr(expected))
        tests = tests.replace("NUMBER", f"{secrets.randbelow(10**12) / 1000}")
        program = CARRIERS[carrier].replace("{attack}", code)
        return Attack(family, carrier, program, tests, expected)

    def state(self) -> dict[str, Any]:
        """All that must stay as it is."""
        library = Path(os.__file__)
        found: dict[str, Any] = {
            "files": sorted(os.listdir(self.folder)),  # noqa: PTH208
            "text": self.canary.read_text(),
            "rights": [_rights(each) for each in (self.canary, self.folder, library)],
            "victim": self.victim.poll(),
            "messages": [
                Path(f"/proc/sysvipc/{name}").read_text().count("\n")
                for name in ("shm", "sem", "msg")
                if Path(f"/proc/sysvipc/{name}").exists()
            ],
        }
        places = ["/tmp", "/var/tmp", "/dev/shm", "/", str(Path.home()), str(library.parent)]
        places += [str(Path.cwd()), tempfile.gettempdir(), "/usr/lib", "/run"]
        found["marks"] = [
            str(each) for place in places for each in Path(place).glob(f"{self.mark}*")
        ]
        return found

    def connected(self) -> list[str]:
        """Which sockets somebody connected to."""
        found = []
        for name in ("server", "local", "abstract"):
            with contextlib.suppress(BlockingIOError):
                getattr(self, name).accept()
                found.append(name)
        return found


def _rights(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_mode, stat.st_uid, stat.st_gid, int(stat.st_mtime), stat.st_nlink


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Something to be attacked: a file, a process, sockets, a secret in the environment."""
    with tempfile.TemporaryDirectory(prefix="bedstone-world-") as name:
        folder = Path(name)
        secret = f"secret-{secrets.token_hex(12)}"
        (folder / "canary").write_text(secret)
        os.environ[SECRET] = secret
        server = socket.create_server(("127.0.0.1", 0))
        local, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        made = World(folder, victim, server, local, abstract, secret)
        local.bind(str(folder / "socket"))
        abstract.bind(f"\0{made.mark}")
        for each in (server, local, abstract):
            each.listen()
            each.setblocking(False)
        try:
            yield made
        finally:
            del os.environ[SECRET]
            victim.kill()
            victim.wait()
            for each in (server, local, abstract):
                each.close()


def processes(sandbox: Sandbox) -> list[int]:
    """Processes of a sandbox: forks of one have its command line, which names its folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if sandbox.folder.encode() in (each / "cmdline").read_bytes():
                found.append(int(each.name))
    return found


def prove(sandbox: Sandbox) -> None:
    """Mild programs that the limits must hold, before anything hostile is run."""
    if left := check_way(sandbox.way):
        raise SystemExit(f"{sandbox.way}: a harmless program could {left}; nothing more is run.")
    mild = {
        "a process": ("import os\nif os.fork() == 0:\n    os._exit(0)\n", "refused"),
        "a file": ("open('x', 'wb').write(bytes(17 << 20))\n", "failed"),
        "memory": ("x = bytearray(600 << 20)\n", "memory"),
        "time": ("import time\ntime.sleep(60)\n", "timeout"),
        "output": ("print('x' * (2 << 20))\n", "output"),
    }
    for name, (program, verdict) in mild.items():
        sandbox.limits = SHORT if name == "time" else LIMITS
        found = sandbox.run(program)
        if found.verdict != verdict:
            raise SystemExit(f"The limit of {name} doesn't hold ({found}); nothing more is run.")


def run(attack: Attack, made: World, sandbox: Sandbox) -> tuple[Outcome, list[str]]:
    """The outcome, and what went wrong: effects outside, a false pass, something left behind."""
    sandbox.score(SANE, SANE_TESTS)
    before, known = made.state(), processes(sandbox)
    sandbox.limits = SHORT if attack.family in SLOW else LIMITS
    outcome = sandbox.score(attack.program, attack.tests)
    sandbox.limits = LIMITS
    wrong = ["it passed"] if outcome.passed else []
    said = f"{outcome.stdout}{outcome.stderr}{outcome.reason}"
    wrong += [line for line in outcome.stdout.splitlines() if line.startswith("GOT")][:5]
    wrong += ["it knows a secret"] if made.secret in said else []
    wrong += ["it knows the tests"] if attack.expected in outcome.stdout + outcome.stderr else []
    if attack.family in FAMILIES and attack.family not in CUT and END not in outcome.stdout:
        wrong.append(f"it broke off: {outcome.stderr[-300:] or outcome.reason}")
    after = made.state()
    wrong += [f"{key}: {after[key]}" for key in before if after[key] != before[key]]
    wrong += [f"connected: {name}" for name in made.connected()]
    if processes(sandbox) != known:
        wrong.append(f"processes: {known} before, {processes(sandbox)} after")
    if os.listdir(sandbox.folder):  # noqa: PTH208
        wrong.append("files stayed in its folder")
    sane = sandbox.score(SANE, SANE_TESTS)
    if not sane.passed:
        wrong.append(f"the next program failed: {sane.reason}")
    return outcome, wrong


def pack(made: World, *, quick: bool = False) -> list[Attack]:
    """All attacks; quick ones are of the families that end by themselves, each once."""
    pairs = [
        (family, carrier)
        for family in FAMILIES
        for carrier in (list(CARRIERS)[:1] if quick else CARRIERS)
        if not quick or family not in SLOW
    ]
    return [made.attack(*pair, number) for number, pair in enumerate(pairs)]


def campaign(
    sandbox: Sandbox, *, quick: bool = False, families: Sequence[str] = ()
) -> tuple[int, dict[str, list[str]]]:
    """Number of attacks, and by name what went wrong."""
    prove(sandbox)
    wrong, count = {}, 0
    with world() as made:
        for attack in pack(made, quick=quick):
            if families and attack.family not in families:
                continue
            count += 1
            began = time.perf_counter()
            outcome, found = run(attack, made, sandbox)
            took = time.perf_counter() - began
            if found:
                wrong[attack.name] = found
            print(f"{attack.name:40} {outcome.verdict:8} {took:5.2f} s {found or ''}", flush=True)
    return count, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--way", choices=("bubblewrap", "landlock"))
    parser.add_argument("--families", nargs="*", default=())
    args = parser.parse_args()
    with Sandbox(LIMITS, args.way) as sandbox:
        count, wrong = campaign(sandbox, quick=args.quick, families=args.families)
        print(f"{sandbox.way}, {sandbox.state}: {count} hostile programs, {len(wrong)} got through")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
