"""Results on real file systems: links, mount points, pipes, devices, simple disks."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin.errors import OptionError, SavingError
from rerank_plugin.io import sync
from rerank_plugin.io.atomic import write_json, write_text, writing
from rerank_plugin.io.disk_errors import saving
from rerank_plugin.io.locks import locked
from rerank_plugin.io.outputs import check_output
from rerank_plugin.io.paths import real_path
from rerank_plugin.io.probes import try_file
from rerank_plugin.io.publishing import fill_folder, publish_folder, staging_folder
from rerank_plugin.io.streams import is_stream

from ..factories import mount, unmount

LAST = ("rerank.json", "config.json")


def refusing(number: int, *, folders: bool = True, files: bool = True) -> Callable[[int], None]:
    """`os.fsync` of a file system that cannot sync."""

    def fsync(descriptor: int) -> None:
        if folders if stat.S_ISDIR(os.fstat(descriptor).st_mode) else files:
            raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF])
def test_files_that_cannot_be_synced_are_written(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sync.warn_of_no_sync.cache_clear()
    monkeypatch.setattr(os, "fsync", refusing(number))
    for _ in range(2):
        write_text(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text() == "{}"
    assert len(caplog.messages) == 1 and "cannot be synced" in caplog.text


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_sync_that_loses_data_is_an_error(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        write_text(tmp_path / "a.json", "{}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "make sure that the disk works"),
        (errno.ESTALE, "make sure that the disk works"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_advice_follows_the_error(tmp_path: Path, number: int, advice: str) -> None:
    with pytest.raises(SavingError) as error, saving(tmp_path / "model"):
        raise OSError(number, os.strerror(number))
    message = str(error.value)
    assert advice in message and os.strerror(number) in message
    assert message.endswith("start the same command again")


def test_an_error_of_writing_weights_gets_advice_too(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "file").write_text("")
    with pytest.raises(SavingError, match=r"make .* again"), saving(tmp_path / "model"):
        save_file({"a": torch.zeros(2)}, tmp_path / "file" / "a.safetensors")


def test_a_file_is_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link, second, dangling = (tmp_path / name for name in ("link", "second", "dangling"))
    (tmp_path / "data" / "a.jsonl").write_text("old")
    link.symlink_to("data/a.jsonl")
    second.symlink_to("link")
    dangling.symlink_to("data/b.jsonl")
    for path in (link, second, dangling):
        check_output(path, [], overwrite=True)
        write_text(path, path.name)
        assert path.is_symlink() and path.read_text() == path.name
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"a.jsonl", "b.jsonl"}


def test_a_loop_of_links_is_an_error_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OptionError, match="--fix: "):
        check_output(tmp_path / "a", [], overwrite=False, option="fix")


def test_a_pipe_is_written_line_by_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    check_output(pipe, [], overwrite=False)
    with writing(pipe) as file:
        file.write("a line\n")
    reader.join()
    assert received == ["a line\n"] and list(tmp_path.iterdir()) == [pipe]


def test_devices_and_open_files_are_streams(tmp_path: Path) -> None:
    check_output(Path("/dev/null"), [], overwrite=False)
    write_text(Path("/dev/null"), "gone")
    with (tmp_path / "all").open("w") as file:
        path = Path(f"/dev/fd/{file.fileno()}")
        os.write(file.fileno(), b"before, ")
        check_output(path, [], overwrite=False)
        write_text(path, "a result, ")
        os.write(file.fileno(), b"behind")
    assert (tmp_path / "all").read_text() == "before, a result, behind"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert not is_stream(tmp_path / "all") and not is_stream(tmp_path / "none")


def test_a_mounted_file_is_written_in_place(mounts: Path, tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside.json", mounts / "inside.json"
    outside.write_text("old")
    inside.touch()
    mount(outside, inside, "--bind")
    try:
        check_output(inside, [], overwrite=True)
        write_text(inside, "new")
    finally:
        unmount(inside)
    assert outside.read_text() == "new" and [path.name for path in mounts.iterdir()] == [
        inside.name
    ]


def unwritable(folder: Path, kind: str) -> Path:
    """Return the path of a file that cannot be written."""
    if kind == "read-only disk":
        mount("tmpfs", folder, "-o", "ro")
    elif kind == "full disk":
        mount("tmpfs", folder, "-o", "size=4k")
        (folder / "all").write_bytes(bytes(4096))
    elif kind == "long name":
        return folder / ("é" * 126)
    elif kind == "below a file":
        (folder / "file").touch()
        return folder / "file" / "a.jsonl"
    return folder / "a.jsonl"


UNWRITABLE = ["read-only disk", "full disk", "long name", "below a file"]


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_a_file_that_cannot_be_written_is_an_error_of_its_option(mounts: Path, kind: str) -> None:
    with pytest.raises(OptionError, match=r"^--fix: "):
        check_output(unwritable(mounts, kind), [], overwrite=False, option="fix")


def test_checking_that_a_file_can_be_written_leaves_no_file(tmp_path: Path) -> None:
    try_file(tmp_path / "a")
    staging_folder(tmp_path / "b", ".run", option="o")
    (tmp_path / "c").mkdir()
    staging_folder(tmp_path / "c", ".run", option="o")
    assert list(tmp_path.iterdir()) == [tmp_path / "c"] and not list((tmp_path / "c").iterdir())


def finished(work: Path, text: str, *more: str) -> Path:
    """Write a folder to be published."""
    folder = work / "model"
    (folder / "runs" / "today").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "rerank.json", "runs/today/log", *more):
        (folder / name).write_text(f"{text} {name}")
        (folder / name).chmod(0o600)
    return folder


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def path_of_kind(tmp_path: Path, mounts: Path, kind: str) -> Path:
    """Return a path to publish a folder to."""
    if kind == "missing":
        return tmp_path / "missing" / "parents" / "out"
    if kind == "mount point":
        mount("tmpfs", mounts)
        (mounts / "lost+found").mkdir()
        return mounts
    if kind == "bind mount":
        (tmp_path / "volume").mkdir()
        mount(tmp_path / "volume", mounts, "--bind")
        return mounts
    if kind == "read-only parent":
        (mounts / "out").mkdir()
        (tmp_path / "volume").mkdir()
        mount(mounts, mounts, "--bind")
        mount(tmp_path / "volume", mounts / "out", "--bind")
        mount(mounts, mounts, "--bind", "-o", "remount,ro")
        return mounts / "out"
    target = tmp_path / "out"
    if kind == "link":
        (tmp_path / "disk").mkdir()
        target.symlink_to("disk/out")
        (tmp_path / "disk" / "out").mkdir()
    if kind == "dangling link":
        target.symlink_to("disk/out")
    if kind == "link to a mount point":
        mount("tmpfs", mounts)
        target.symlink_to(mounts)
    if kind == "long name":
        target = tmp_path / ("n" * 252)
        target.mkdir()
    return target


KINDS = {
    "new": "out.run",
    "missing": "out.run",
    "link": "out.run",
    "dangling link": "out.run",
    "mount point": ".run",
    "bind mount": ".run",
    "read-only parent": ".run",
    "link to a mount point": ".run",
    "long name": ".run",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_published_to_any_kind_of_path(tmp_path: Path, mounts: Path, kind: str) -> None:
    path = path_of_kind(tmp_path, mounts, kind)
    is_link = path.is_symlink()
    for text, more in (("first", ["old.txt"]), ("second", [])):
        target = real_path(path)
        work = staging_folder(target, ".run", option="finetune_model_dir")
        assert work.name == KINDS[kind]
        folder = finished(work, text, *more)
        expected = files(folder)
        publish_folder(folder, target, last=LAST)
        shutil.rmtree(work)
        assert files(path) == expected
        rights = {(path / name).stat().st_mode & 0o777 for name in expected}
        assert rights == {0o666 & ~current_umask()}
    assert path.is_symlink() == is_link
    left = {path.name for path in target.parent.iterdir()} if kind != "bind mount" else set()
    assert not any(".run" in name or "test" in name for name in left)
    if kind == "mount point":
        assert (path / "lost+found").is_dir()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("kind", ["read-only mount", "file", "full disk", "below a file"])
def test_a_folder_that_cannot_be_written_is_an_error_of_its_option(
    tmp_path: Path, mounts: Path, kind: str
) -> None:
    target = mounts
    if kind == "read-only mount":
        mount("tmpfs", mounts, "-o", "ro")
    elif kind == "full disk":
        mount("tmpfs", mounts, "-o", "size=4k")
        (mounts / "all").write_bytes(bytes(4096))
        target = mounts / "out"
    else:
        (tmp_path / "file").touch()
        target = tmp_path / "file" / ("out" if kind == "below a file" else "")
    with pytest.raises(OptionError, match=r"^--output_dir: .* cannot be written: "):
        staging_folder(target, ".part", option="output_dir")


class Killed(BaseException):
    """Raised like a kill: nothing is cleaned up afterwards."""


def test_a_folder_that_is_filled_is_a_model_only_at_the_end(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill it before each of its changes, and repeat it: readers never see half a model."""
    mount("tmpfs", mounts)
    first = files(publish(mounts, "first"))
    changes = 0
    while True:
        changes += 1
        left = changes

        def counted(change: Any) -> Any:
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    raise Killed
                return change(*arguments, **options)

            return run

        with monkeypatch.context() as patched:
            for name in ("unlink", "touch", "hardlink_to", "mkdir"):
                patched.setattr(Path, name, counted(getattr(Path, name)))
            patched.setattr(shutil, "rmtree", counted(shutil.rmtree))
            try:
                fill_folder(mounts / ".run" / "model", mounts, LAST)
                break
            except Killed:
                pass
        contents = files(mounts)
        contents = {name: text for name, text in contents.items() if not name.startswith(".")}
        if "config.json" in contents:
            assert contents in (first, files(mounts / ".run" / "model"))
    assert changes > 10
    shutil.rmtree(mounts / ".run")
    assert set(files(mounts)) == set(first)
    assert all(text.startswith("second") for text in files(mounts).values())


def publish(target: Path, text: str) -> Path:
    """Publish a folder, and write another to be published."""
    fill_folder(finished(target / ".run", text), target, LAST)
    shutil.rmtree(target / ".run")
    there = shutil.copytree(target, target.with_name("copy"))
    finished(target / ".run", "second")
    return there


def test_a_disk_without_links_gets_copies(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    mount("tmpfs", mounts)
    folder = finished(mounts / ".run", "first")
    expected = files(folder)
    for name in ("hardlink_to", "chmod"):
        monkeypatch.setattr(Path, name, refuse)
    publish_folder(folder, mounts, last=LAST)
    shutil.rmtree(mounts / ".run")
    assert files(mounts) == expected


def test_an_earlier_folder_is_restored_when_its_replacement_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    publish_folder(finished(tmp_path / "out.run", "first"), target, last=LAST)
    before = files(target)
    folder = finished(tmp_path / "out.run", "second")
    rename = Path.rename

    def fails(path: Path, other: Path) -> Path:
        if path == folder:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        publish_folder(folder, target, last=LAST)
    assert files(target) == before


def test_a_folder_that_no_rename_can_replace_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a folder of a container's image is on some file systems."""
    target = tmp_path / "out"
    publish_folder(finished(tmp_path / "out.run", "first", "old.txt"), target, last=LAST)
    folder = finished(tmp_path / "out.run", "second")
    expected = files(folder)

    def fails(path: Path, other: Path) -> None:
        raise OSError(errno.EXDEV, f"Invalid cross-device link: {path} {other}")

    monkeypatch.setattr(Path, "rename", fails)
    publish_folder(folder, target, last=LAST)
    assert files(target) == expected


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "é"})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"text": "é"}


def other_process(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run a program that reports its progress on stdout in another process."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def being_written(path: Path) -> Iterator[None]:
    """Write a file in another process, which finishes it when the block ends."""
    code = (
        "import sys; from pathlib import Path; from rerank_plugin.io.atomic import writing\n"
        "with writing(Path(sys.argv[1])) as file:\n"
        "    file.write('the first')\n"
        "    print('now', flush=True)\n"
        "    input()\n"
    )
    with other_process(code, path) as first:
        assert first.stdin and first.stdout and first.stdout.readline() == "now\n"
        yield
        first.stdin.write("\n")
    assert first.returncode == 0


def test_two_processes_never_write_one_file(tmp_path: Path) -> None:
    output, link = tmp_path / "a.jsonl", tmp_path / "link"
    link.symlink_to(output)
    with being_written(output):
        with pytest.raises(OSError, match="another command is writing it"):
            write_text(output, "the second")
        with pytest.raises(OptionError, match=r"^--output: .*another command is writing it"):
            check_output(link, [], overwrite=True)
    assert output.read_text() == "the first"
    write_text(output, "the second")
    assert output.read_text() == "the second"
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "link"}


def test_a_lock_on_a_removed_file_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was renamed or removed between opening and locking it."""
    fcntl = pytest.importorskip("fcntl")
    path, flock = tmp_path / "a.part", fcntl.flock
    gone: list[int] = []

    def late(number: int, operation: int) -> None:
        if len(gone) < 2:
            path.unlink() if gone else path.rename(tmp_path / "a")
            gone.append(number)
        flock(number, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(path), pytest.raises(BlockingIOError), locked(path):
        pass
    assert len(gone) == 2


@pytest.mark.parametrize("made", ["a file", "a link", "another's result"])
def test_a_file_that_appears_during_writing_is_kept(tmp_path: Path, made: str) -> None:
    output, result = tmp_path / "a.jsonl", "computed"
    kept = pytest.raises(FileExistsError, match=r"results are in .*a\.jsonl\.part")
    with kept, writing(output) as file:
        file.write(result)
        if made == "a link":
            (tmp_path / "other").write_text("kept")
            output.symlink_to(tmp_path / "other")
        else:
            output.write_text("kept")
    assert output.read_text() == "kept"
    assert (tmp_path / "a.jsonl.part").read_text() == result
