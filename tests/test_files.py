"""The door for files and the way out to a terminal."""

import io
import json
import os
import signal
import stat
import tempfile
from contextlib import contextmanager

import pytest
from rich.table import Table

from jaxcnn import files
from jaxcnn.terminal import PatientConsole, one_line, short_line, shown


@contextmanager
def within(seconds: int):
    """Ends a wait that should not be."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_no_regular_file_is_refused_without_a_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, kind in (("pipe", "device or pipe"), ("zero", "device or pipe"), (".", "folder")):
        with within(5), pytest.raises(OSError, match=kind):
            files.read_bytes(tmp_path / name, limit=10)


def test_a_file_may_not_be_larger_than_what_is_asked_for(tmp_path):
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 40)
    with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes, of at most 1,000"):
        files.read_text(sparse, limit=1000)


def test_a_limit_takes_no_memory_of_itself(tmp_path):
    (tmp_path / "small").write_bytes(b"small")
    assert files.read_bytes(tmp_path / "small", limit=1 << 50) == b"small"


def test_text_is_utf8_with_or_without_a_mark_and_keeps_its_ends_of_lines(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\nx\r")
    assert files.read_text(tmp_path / "a") == "café\r\nx\r"
    (tmp_path / "b").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="utf-8"):
        files.read_text(tmp_path / "b")


def test_json_has_no_word_for_what_is_not_finite():
    rows = {"loss": float("nan"), "best": [float("inf"), 1.5], "n": 3, "ok": True}
    assert json.loads(files.to_json(rows)) == {"loss": None, "best": [None, 1.5], "n": 3, "ok": True}
    with pytest.raises(ValueError, match="deep"):
        files.from_json("[" * 100_000)


def test_writing_replaces_a_link_and_leaves_its_target(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    files.write_atomically(tmp_path / "link", "é")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "link").read_bytes() == b"\xc3\xa9"
    assert not (tmp_path / "link").is_symlink()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("before")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(tmp_path / "file", "after")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_write_into_no_folder_names_the_file_asked_for(tmp_path):
    with pytest.raises(OSError, match=r"no/such\.json'"):
        files.write_atomically(tmp_path / "no" / "such.json", "")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="this system has no /dev/shm")
def test_what_lies_in_shared_memory_is_a_file():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for content in ("first", "2"):
            files.write_atomically(os.path.join(folder, "file"), content)
            assert files.read_text(os.path.join(folder, "file")) == content


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_is_written_to_if_somebody_reads_it(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with within(5), pytest.raises(OSError, match="No such device"):
        files.write_atomically(pipe, "x")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomically(pipe, "some text")
    assert os.read(reader, 100) == b"some text"
    os.close(reader)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_device_is_written_to_not_replaced():
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically("/dev/full", "x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_names_reach_a_terminal_as_text():
    written = io.StringIO()
    console = PatientConsole(file=written, width=80)
    table = Table(title="[old] :smile:")
    table.add_column("n[b]ame")
    table.add_row("[/b]\x1b[2J\r")
    console.print(table)
    console.print("[x]\x9b\u202e\udcff")
    text = written.getvalue()
    for part in ("[old] :smile:", "n[b]ame", r"[/b]\x1b[2J\r", r"[x]\x9b\u202e\udcff"):
        assert part in text
    assert not set(text) & set("\x1b\r\x9b\u202e")


def test_a_message_is_one_line():
    assert one_line(ValueError("a\nb\t c\x07")) == r"a b c\x07"
    assert short_line(ValueError("a\n" * 300)) == "a " * 100
    assert shown("plain é 猫\n\t") == "plain é 猫\n\t"
