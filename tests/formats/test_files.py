import errno
import fcntl
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.formats import files
from hra_diffusion.formats.files import check_writable, is_portable, replacing, sync, tidy, write_file, write_together
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.tensors import read_tensors


def safetensors(header: str, data: bytes = b"") -> bytes:
    encoded = header.encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
GOOD = save({"a": torch.ones(2)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-1], "no intact safetensors"),
        (GOOD[:5], "no intact safetensors"),
        (GOOD + b"x", "no intact safetensors"),
        (b"", "no intact safetensors"),
        (b"\x80\x04\x95pickle", "pickled files are never read"),
        (safetensors(f'{{"a":{ENTRY},"a":{ENTRY}}}', b"1234"), "these keys more than once: a"),
        (safetensors('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"), "dtype"),
        (safetensors(f'{{"../a":{ENTRY}}}', b"1234"), r"path for a name: '\.\./a'"),
        (safetensors(f'{{"/a":{ENTRY}}}', b"1234"), "path for a name"),
        (save({"fine": torch.ones(1), "bad": torch.tensor([float("nan")])}), "not finite, in bad"),
        (save({"bad": torch.tensor([float("inf")])}), "not finite, in bad"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=message):
        read_tensors(path)


def test_an_intact_file_is_read(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(GOOD)
    assert torch.equal(read_tensors(tmp_path / "w.safetensors")["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"r": 8, "r": 9}', "these keys more than once: r"),
        ("[1]", "must hold a JSON object; found a list"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
    ],
)
def test_ambiguous_or_damaged_json_is_refused(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AdapterFileError, match=message):
        read_json(path)


def test_a_missing_file_is_named(tmp_path):
    for read in (read_json, read_tensors):
        with pytest.raises(AdapterFileError, match=r"Cannot read .*gone.*No such file"):
            read(tmp_path / "gone")


def test_files_are_written_together_without_temporary_files(tmp_path):
    contents = {tmp_path / "sub" / name: name.encode() for name in "ab"}
    write_together(contents)
    assert {path.name: path.read_bytes() for path in (tmp_path / "sub").iterdir()} == {"a": b"a", "b": b"b"}
    write_together({tmp_path / "sub" / "a": b"new"})
    assert (tmp_path / "sub" / "a").read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "sub" / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_unwritable_path_is_named_and_existing_files_are_intact(tmp_path):
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(OutputError, match=r"Cannot write .*file"):
        write_together({tmp_path / "file" / "a": b"", tmp_path / "b": b""})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_concurrent_replacements_of_one_folder_leave_the_last_one(tmp_path):
    with replacing(tmp_path / "folder") as one:
        (one / "file").write_text("one")
        with replacing(tmp_path / "folder") as other:
            (other / "file").write_text("other")
    assert (tmp_path / "folder" / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_temporary_files_of_a_killed_process_are_tidied(tmp_path, monkeypatch):
    def die(*_):
        raise SystemExit

    (tmp_path / "kept").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(Path, "replace", die)
        with pytest.raises(SystemExit):
            write_together({tmp_path / "a": b"a"})
        with pytest.raises(SystemExit):
            write_file(tmp_path / "b.png", lambda path: path.write_bytes(b"b"))
    (tmp_path / "kept").rename(tmp_path / ".0123abcd-old-kept")
    (tmp_path / ".hidden").touch()
    assert len(list(tmp_path.iterdir())) == 4
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "kept"]


def test_a_link_to_a_replaced_folder_stays_a_link(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with replacing(tmp_path / "link") as new:
        (new / "file").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "file").exists()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def windows(monkeypatch):
    """Simulate Windows: fsync refuses folders and read-only handles, and files that are read-only cannot be written."""
    fsync, open_ = os.fsync, os.open

    def fsync_of_windows(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(handle)

    def open_of_windows(path, flags, *arguments, **keywords):
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if os.path.isdir(path) or (writes and os.path.exists(path) and not os.stat(path).st_mode & 0o200):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, flags, *arguments, **keywords)

    monkeypatch.setattr(files, "ON_WINDOWS", True)
    monkeypatch.setattr(os, "fsync", fsync_of_windows)
    monkeypatch.setattr(os, "open", open_of_windows)


def test_files_are_written_where_fsync_refuses_read_only_handles(windows, tmp_path):
    write_together({tmp_path / "a": b"a"})
    write_file(tmp_path / "b", lambda path: path.write_bytes(b"b"))
    with replacing(tmp_path / "folder") as new:
        (new / "c").write_bytes(b"c")
        (new / "c").chmod(0o444)
    assert [path.read_bytes() for path in (tmp_path / "a", tmp_path / "b", tmp_path / "folder" / "c")] == [
        b"a",
        b"b",
        b"c",
    ]


def test_a_read_only_file_is_synced_on_posix(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    open_, opened = os.open, []

    def open_read_only(path, flags):
        if flags == os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        opened.append(flags)
        return open_(path, flags)

    monkeypatch.setattr(os, "open", open_read_only)
    sync(tmp_path / "a")
    assert opened == [os.O_RDONLY]


@pytest.mark.parametrize(
    "name",
    [
        "con",
        "NUL",
        "aux.png",
        "Com1.tar.gz",
        "lpt9",
        "com¹.txt",
        "con .png",
        "a.",
        "a ",
        *("a" + c for c in '<>:"|?*\\\n\udcff'),
    ],
)
def test_names_that_windows_lacks_are_not_portable(name):
    assert not is_portable(name)


@pytest.mark.parametrize("name", ["console", "com", "com10", "a.con", ".hidden", "a b", "é→日"])
def test_other_names_are_portable(name):
    assert is_portable(name)


def test_output_folders_with_reserved_names_are_refused_on_windows(windows, tmp_path):
    with pytest.raises(
        OutputError, match=r"has 'aux\.d', a name that Windows reserves.*choose another with --cache_dir"
    ):
        check_writable(Path("runs/aux.d/x"), "--cache_dir")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_between_the_files_of_one_write_leaves_all_of_them_as_they_were(tmp_path, monkeypatch, failing):
    (tmp_path / "a").write_text("earlier")
    replace, calls = Path.replace, []

    def replace_or_fail(path, target):
        calls.append(path)
        if len(calls) == failing + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    with pytest.raises(OutputError, match="existing files are intact"):
        write_together({tmp_path / name: b"new" for name in "abc"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "earlier"}
