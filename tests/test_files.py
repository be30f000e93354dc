"""Files and folders whole or not at all, wherever a save is cut; and manifests."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bedstone import files
from bedstone.errors import BedstoneError
from bedstone.files import (
    atomic_file,
    atomic_folder,
    inside,
    manifest,
    process_folder,
    verify_manifest,
    write_json,
    write_text,
)
from bedstone.reading import read_json
from faults import disk_calls, every_cut, killed, needs_fork, raised, steps, syncs_by_fsync

OLD = {"a.txt": "old", "state/b.txt": "old too", "only-old": "x"}
NEW = {"a.txt": "new and longer", "state/b.txt": "new", "state/c.txt": "more"}


def fill(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as file:
            file.write(text)


def content(folder: Path) -> dict[str, str]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_text() for p in found}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path: Path, what: dict[str, str]) -> None:
    with atomic_folder(path) as folder:
        fill(folder, what)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize(
    "run", [raised, pytest.param(killed, marks=[needs_fork, pytest.mark.slow])]
)
def test_folder_is_old_or_new_wherever_cut(tmp_path, run, before, exchange):
    base, path = tmp_path / "runs", tmp_path / "runs" / "model"

    def prepare():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        if before:
            put(path, before)

    def check():
        files.recover_folder(path)
        found = content(path) if path.exists() else None
        assert found in (before, NEW)
        put(path, OLD)
        assert content(path) == OLD
        assert names(base) == ["model"]

    assert every_cut(run, prepare, lambda: put(path, NEW), check, exchange) > 20


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("run", [raised, pytest.param(killed, marks=needs_fork)])
def test_file_is_old_or_new_wherever_cut(tmp_path, run, before):
    path = tmp_path / "base" / "config.json"

    def prepare():
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        if before:
            write_text(path, before)

    def check():
        assert (path.read_text() if path.exists() else None) in (before, "new text")
        write_text(path, "next")
        assert content(path.parent) == {"config.json": "next"}

    assert every_cut(run, prepare, lambda: write_text(path, "new text"), check) >= 9


def test_all_is_on_disk_before_it_takes_its_place(tmp_path):
    put(tmp_path / "model", OLD)
    with steps(0, "before", lambda: None, exchange=True) as log:
        put(tmp_path / "model", NEW)
    swap = log.index("exchange")
    assert {"fsync a.txt", "fsync b.txt", "fsync c.txt", "fsync state"} < set(log[:swap])
    assert log[swap - 1].startswith("fsync .model.tmp-")  # the folder itself, last
    assert log[swap + 1] == f"fsync {tmp_path.name}"
    assert log[swap + 2].startswith("remove .model.tmp-")


@syncs_by_fsync
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_synced_before_its_rename_and_its_folder_after(tmp_path, before):
    if before:
        write_text(tmp_path / "a.txt", before)
    with disk_calls() as log:
        write_text(tmp_path / "a.txt", "new")
    assert log == ["fsync ~a.txt", "rename ~a.txt a.txt", f"fsync {tmp_path.name}"]


@syncs_by_fsync
def test_folders_made_on_the_way_are_synced_into_those_above(tmp_path):
    with disk_calls() as log:
        write_text(tmp_path / "one" / "two" / "a.txt", "new")
    assert log == [
        f"fsync {tmp_path.name}",
        "fsync one",
        "fsync ~a.txt",
        "rename ~a.txt a.txt",
        "fsync two",
    ]


INSIDE = [  # each file before its folder, the whole last
    {"fsync b.txt", "fsync c.txt"},
    {"fsync state"},
    {"fsync a.txt"},
    {"fsync ~model"},
]
PLACED = {
    "new": ["rename ~model model", "fsync runs"],
    "exchange": ["exchange ~model model", "fsync runs", "remove ~model"],
    "two renames": [
        "remove .model.previous",
        "rename model .model.previous",
        "rename ~model model",
        "fsync runs",
        "remove .model.previous",
    ],
}


@syncs_by_fsync
@pytest.mark.parametrize("way", PLACED)
def test_a_folder_is_synced_before_it_takes_its_place_and_its_parent_after(tmp_path, way):
    path = tmp_path / "runs" / "model"
    path.parent.mkdir()
    if way != "new":
        put(path, OLD)
    with disk_calls(exchange=way == "exchange") as log:
        put(path, NEW)
    at = 0
    for group in INSIDE:
        assert set(log[at : at + len(group)]) == group
        at += len(group)
    assert log[at:] == PLACED[way]
    assert content(path) == NEW


@syncs_by_fsync
def test_a_folder_brought_back_is_synced(tmp_path):
    put(tmp_path / "model", OLD)
    (tmp_path / "model").rename(tmp_path / ".model.previous")
    with disk_calls() as log:
        files.recover_folder(tmp_path / "model")
    assert log == ["rename .model.previous model", f"fsync {tmp_path.name}"]
    assert content(tmp_path / "model") == OLD


@syncs_by_fsync
def test_a_folder_to_remove_loses_its_name_first(tmp_path):
    put(tmp_path / "model", OLD)
    with disk_calls() as log:
        files.remove_folder(tmp_path / "model")
    assert log == ["rename model ~model", "remove ~model"]
    assert names(tmp_path) == []


def test_the_kernel_swaps_here():
    if sys.platform not in ("linux", "darwin"):
        pytest.skip("no exchange on this system")
    here = Path("one").absolute()
    with pytest.raises(OSError, match="No such file"):
        files._exchange(here / "missing", here / "neither")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM])
def test_a_refused_exchange_falls_back(tmp_path, monkeypatch, number):
    class Library:
        def __getattr__(self, name):
            return lambda *arguments: -1

    monkeypatch.setattr(files.ctypes, "CDLL", lambda *a, **k: Library())
    monkeypatch.setattr(files.ctypes, "get_errno", lambda: number)
    put(tmp_path / "model", OLD)
    put(tmp_path / "model", NEW)
    assert content(tmp_path / "model") == NEW
    assert names(tmp_path) == ["model"]


def test_a_folder_that_another_process_makes_meanwhile(tmp_path, monkeypatch):
    rename = files._rename

    def late(source, target):
        monkeypatch.setattr(files, "_rename", rename)
        put(tmp_path / "model", OLD)  # between the look and the rename
        rename(source, target)

    monkeypatch.setattr(files, "_rename", late)
    put(tmp_path / "model", NEW)
    assert content(tmp_path / "model") == NEW
    assert names(tmp_path) == ["model"]


def test_an_exception_in_the_block_changes_nothing(tmp_path):
    put(tmp_path / "model", OLD)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as folder:
        fill(folder, NEW)
        raise KeyboardInterrupt
    assert content(tmp_path / "model") == OLD
    assert names(tmp_path) == ["model"]


def leftover(path: Path, process: int, host: str = files._HOST) -> Path:
    found = path.with_name(f".{path.name}.tmp-{process}-{host}-0badcafe")
    found.mkdir()
    return found


def test_only_dead_or_old_leftovers_are_swept(tmp_path):
    path = tmp_path / "model"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = leftover(path, ended.pid)
    own = leftover(path, os.getpid())  # of an earlier life with the same number
    elsewhere = leftover(path, ended.pid, "00000000")
    other = leftover(tmp_path / "model-2", ended.pid)
    alive = leftover(path, os.getppid())
    old = leftover(path, 1)
    os.utime(old, (0, 0))
    put(path, NEW)
    assert not dead.exists() and not own.exists() and not old.exists()
    assert alive.exists() and elsewhere.exists() and other.exists()


def test_two_threads_writing_the_same_target_leave_one_whole(tmp_path):
    path, faults = tmp_path / "model", []

    def work(text):
        try:
            for _ in range(20):
                put(path, {"one": text, "two": text})
        except Exception as error:  # a thread's failure must reach the test
            faults.append(error)

    put(path, {"one": "0", "two": "0"})
    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    found = content(path)
    assert found["one"] == found["two"]


def test_links_and_modes_stay(tmp_path):
    real = tmp_path / "real.json"
    write_json(real, 1)
    real.chmod(0o600)
    (tmp_path / "link.json").symlink_to(real)
    write_json(tmp_path / "link.json", {"é": [1.5]})
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(real) == {"é": [1.5]}
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


def refuse(number):
    def act():
        raise OSError(number, os.strerror(number))

    return act


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_refusing_disk_is_one_clear_paragraph(tmp_path, number):
    path = tmp_path / "model"
    put(path, OLD)
    for mode in ("before", "half"):
        with (
            steps(1, mode, refuse(number), exchange=True),
            pytest.raises(BedstoneError, match=r"model: can't be written.*is whole") as caught,
            atomic_folder(path) as folder,
        ):
            write_text(folder / "a.txt", "x" * 12345)
        assert content(path) == OLD
        assert "\n" not in str(caught.value)
        if number in (errno.ENOSPC, errno.EDQUOT):
            assert "12,345 bytes needed" in str(caught.value)
            assert "bytes free" in str(caught.value)


def test_others_errors_are_not_ours_to_explain(tmp_path):
    with pytest.raises(PermissionError), atomic_file(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "denied", "/somewhere/else")
    with pytest.raises(BedstoneError, match="is a folder"):
        write_text(tmp_path, "x")
    write_text(tmp_path / "file", "x")
    with pytest.raises(BedstoneError, match="is a file"):
        put(tmp_path / "file", NEW)
    with pytest.raises(BedstoneError, match="Not a directory"):
        write_text(tmp_path / "file" / "below", "x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
def test_forbidden_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BedstoneError, match="Permission denied"):
        write_text(tmp_path / "locked" / "x", "x")


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk(tiny_disk):
    path = tiny_disk / "model"
    put(path, OLD)
    with (
        pytest.raises(BedstoneError, match=r"2,000,000 bytes needed.*is whole"),
        atomic_folder(path) as folder,
    ):
        write_text(folder / "big", "x" * 2_000_000)
    assert content(path) == OLD
    put(path, NEW)
    assert content(path) == NEW
    assert names(tiny_disk) == ["model"]


def test_bad_json_is_named(tmp_path):
    for text in (b"{", b"\xff", b"[" * 100_000, b"1" * 5000):
        (tmp_path / "x.json").write_bytes(text)
        with pytest.raises(BedstoneError, match=r"x\.json: is not valid JSON"):
            read_json(tmp_path / "x.json")
    with pytest.raises(BedstoneError, match="can't be read"):
        read_json(tmp_path / "missing.json")


def test_manifest_sees_every_change(tmp_path):
    put(tmp_path / "m", NEW)
    expected = json.loads(json.dumps(manifest(tmp_path / "m")))
    assert set(expected) == set(NEW)
    verify_manifest(tmp_path / "m", expected)
    for name in NEW:
        path = tmp_path / "m" / name
        data = path.read_bytes()
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(BedstoneError, match="content was changed"):
                verify_manifest(tmp_path / "m", expected)
        path.write_bytes(data[:-1])
        with pytest.raises(BedstoneError, match=f"truncated.* {len(data) - 1} bytes found"):
            verify_manifest(tmp_path / "m", expected)
        path.unlink()
        with pytest.raises(BedstoneError, match="is missing"):
            verify_manifest(tmp_path / "m", expected)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "..\\x", "C:\\x", "a\0b", "é" * 200, 3],
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(BedstoneError, match="leads out"):
        inside(tmp_path, name)


def test_symlinks_are_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "outside").write_text("x")
    (tmp_path / "m" / "link").symlink_to("../outside")
    (tmp_path / "m" / "up").symlink_to("..")
    for name in ("link", "up/outside"):
        with pytest.raises(BedstoneError, match="leads out"):
            verify_manifest(tmp_path / "m", {name: {"size": 1, "sha256": "0"}})
    with pytest.raises(BedstoneError, match="symlink"):
        manifest(tmp_path / "m")


@pytest.mark.parametrize(
    "entry", [None, {}, {"size": "x", "sha256": 1}, {"size": [1], "sha256": ""}]
)
def test_damaged_manifest_entries_are_refused(tmp_path, entry):
    (tmp_path / "a").write_text("x")
    with pytest.raises(BedstoneError, match="entry of the manifest for 'a' is damaged"):
        verify_manifest(tmp_path, {"a": entry})


# What is no plain file is never replaced.


def _device(path):
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("devices can't be made here")


def test_a_device_is_written_into(tmp_path):
    _device(tmp_path / "null")
    write_text(tmp_path / "null", "x")
    (tmp_path / "link").symlink_to("null")
    write_json(tmp_path / "link", {})
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode) and (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link", "null"]


def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "x" * 200_000)
    reader.join(10)
    assert got == ["x" * 200_000] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_pipe_that_nobody_reads_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BedstoneError, match="nobody reads this pipe"):
        write_text(tmp_path / "pipe", "x")
    assert names(tmp_path) == ["pipe"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_socket_is_refused(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        with pytest.raises(BedstoneError, match="is a socket, which can't be written"):
            write_text(tmp_path / "s", "x")
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800"])
def test_names_that_no_file_has_are_refused(tmp_path, name):
    with pytest.raises(BedstoneError, match="Mend the name"):
        write_text(f"{tmp_path}/{name}", "x")
    assert names(tmp_path) == []


def test_a_full_device_is_told():
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with pytest.raises(BedstoneError, match="No space left"):
        write_text("/dev/full", "x" * 100_000)


@pytest.mark.skipif(os.name == "nt", reason="asks whether processes live")
def test_temporary_folders_of_dead_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "from bedstone.files import process_folder; print(process_folder('made'))"
    dead = Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                       env={**os.environ, "TMPDIR": str(tmp_path)}, check=True).stdout.strip()
    )  # fmt: skip
    (dead / "session").mkdir()
    assert dead.parent == tmp_path
    others = [dead.with_name(dead.name.replace("made", "else", 1)), tmp_path / "made-by-hand"]
    elsewhere = dead.with_name(dead.name.replace(files._HOST, "0" * 8))
    for each in (*others, elsewhere):
        each.mkdir()
    own = process_folder("made")
    again = process_folder("made")
    assert own != again and stat.S_IMODE(own.stat().st_mode) == 0o700
    assert {*tmp_path.iterdir()} == {own, again, elsewhere, *others}


def test_a_manifest_leaves_out_a_folder_that_others_write(tmp_path):
    fill(tmp_path, {"a": "x", "shards/b": "y", "shards.txt": "z", "deep/shards/c": "w"})
    assert set(manifest(tmp_path, leave_out="shards")) == {"a", "shards.txt", "deep/shards/c"}
    assert "shards/b" in manifest(tmp_path)
