"""A disk that is full or write-protected is told in words."""

import errno
import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from rarec.errors import InputError
from resources.disk import in_words, is_full_disk, require_address, require_room


@pytest.fixture
def free(monkeypatch, tmp_path):
    """Sets how many bytes are free: everywhere, or by folder."""
    usage = shutil.disk_usage(tmp_path)

    def set_free(everywhere, **by_name):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=by_name.get(path.name, everywhere)))

    return set_free


@pytest.fixture
def places(tmp_path):
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    return {"RAREC_HOME": tmp_path / "home", "TMPDIR": tmp_path / "temporary"}


def full_database(folder):
    """What SQLite raises when its file cannot grow."""
    with closing(sqlite3.connect(folder / "x.db")) as database:
        database.execute("PRAGMA max_page_count = 1")
        try:
            database.execute("CREATE TABLE t (x)")
        except sqlite3.OperationalError as error:
            return error
    raise AssertionError


def caused(error):
    """The error as libraries hand it on."""
    try:
        raise RuntimeError("the event could not be stored") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_fullest_folder_and_the_way_out(places, free, number):
    free(5_000_000, temporary=1_400_000)
    error = caused(OSError(number, os.strerror(number)))
    assert in_words(error, places) == (
        f"Disk full: 1.4 MB are free in {places['TMPDIR']} (TMPDIR). Free some space there, or set TMPDIR to a "
        "folder on a larger disk, and run again."
    )


def test_a_limit_is_told_from_a_full_disk(places, free):
    free(10**10)
    words = in_words(OSError(errno.EDQUOT, "Disk quota exceeded"), places)
    assert words.startswith("Disk full: 10,000.0 MB are free in ")
    assert "so a quota or a limit of the file size applies" in words


def test_sqlite_on_a_full_disk(places, free):
    free(3_000_000)
    error = full_database(places["RAREC_HOME"])
    assert is_full_disk(error)
    assert in_words(caused(error), places).startswith("Disk full: 3.0 MB are free in ")
    # With no room at all, SQLite cannot enlarge its shared memory, and says less.
    vague = sqlite3.OperationalError("disk I/O error")
    assert in_words(vague, places) == ""
    free(4096)
    assert in_words(vague, places).startswith("Disk full: 0.0 MB are free in ")


def test_a_protected_folder_is_named_with_its_setting(places, free):
    free(10**10)
    file = places["RAREC_HOME"] / "work" / "job.json"
    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        assert in_words(caused(OSError(number, os.strerror(number), str(file))), places) == (
            f"{file} cannot be written to. Change its permissions, or set RAREC_HOME to another folder."
        )
    above = in_words(PermissionError(errno.EACCES, "no", str(places["RAREC_HOME"].parent)), places)
    assert above.startswith(f"{places['RAREC_HOME'].parent} cannot be written to. ")  # a folder to be made first
    assert in_words(PermissionError(errno.EACCES, "no", "/elsewhere/file"), places) == ""
    assert in_words(sqlite3.OperationalError("attempt to write a readonly database"), places) == (
        f"A database in {places['RAREC_HOME']} cannot be written to. Change its permissions, or set RAREC_HOME to "
        "another folder."
    )


def test_other_errors_are_not_for_the_disk_to_explain(places, free):
    free(0)
    assert in_words(ValueError("row 3 is bad"), places) == ""
    assert in_words(FileNotFoundError(errno.ENOENT, "No such file", "x"), places) == ""


def test_room_is_checked_before_a_folder_is_made(tmp_path, free, monkeypatch):
    free(30_000_000)
    new = tmp_path / "a" / "b"
    require_room(new, "RAREC_HOME", 30_000_000)
    with pytest.raises(InputError, match=r"RAREC_HOME is .*/a/b, where 30\.0 MB are free; at least 31 MB are needed\."):
        require_room(new, "RAREC_HOME", 31_000_000)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(InputError, match=f"RAREC_HOME is {new}, but {tmp_path} cannot be written to; change its perm"):
        require_room(new, "RAREC_HOME", 0)
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match=f"RAREC_HOME is {new}, but {tmp_path}/a is not a folder; set RAREC_HOME"):
        require_room(new, "RAREC_HOME", 0)


@pytest.mark.parametrize("name", ["a b", "ü", "a#b", "50%", "a[1]*", "a'b\"c", "a:b", "a::b", "$a{b}"])
def test_sqlite_opens_a_database_under_any_other_name(tmp_path, name):
    assert require_address(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize(("name", "found"), [("a?b", "'?'"), ("a%20b", "'%20'"), ("%C3", "'%C3'")])
def test_names_that_sqlites_addresses_cannot_express(tmp_path, name, found):
    with pytest.raises(ValueError, match="under which no SQLite database can be opened") as caught:
        require_address(tmp_path / name)
    assert f"contains {found}" in str(caught.value)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"/\?\?lf is not UTF-8; set PYTHONUTF8=1, or choose a folder of"):
        require_address(tmp_path / os.fsdecode(b"\xc3\xf6lf"))
