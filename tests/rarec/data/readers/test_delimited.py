"""Delimited text: what DuckDB rejects, and on which lines."""

import gzip
import time

import numpy as np
import pytest

from rarec.data.readers import rows as rows_module
from rarec.data.readers.connection import connection
from rarec.data.readers.delimited import Dialect, read_delimited
from rarec.data.readers.text import prepare

CSV = Dialect(",", quote='"')


def read_text(tmp_path, content, dialect=CSV, names=("text", "user", "n"), suffix=".csv", encoding="utf-8"):
    """Rows as read, numbers of their lines, and (line, reason) of the bad ones."""
    path = tmp_path / f"new{suffix}"
    header = dialect.delimiter.join(names).encode(encoding) + b"\n" if dialect.header else b""
    whole = header + content
    path.write_bytes(gzip.compress(whole) if suffix.endswith(".gz") else whole)
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    with connection(tmp_path) as database:
        read = read_delimited(database, prepare(path, scratch, encoding), dialect, "new", scratch, 100)
        table = database.sql("SELECT * FROM new ORDER BY n").fetchall()
    lines = read.lines(np.array([row[0] for row in table], dtype=np.int64)).tolist()
    assert read.total == len(table) + len(read.bad)
    return [list(row[1:]) for row in table], lines, [row[:2] for row in read.bad]


BROKEN = [
    # (lines, rows, their lines, bad lines)
    (b'"a\nb",u0,1\nc,u1,2\n', [["a\nb", "u0", "1"], ["c", "u1", "2"]], [2, 4], []),
    (b'"a\r\nb",u0,1\r\nc,u1,2\r\n', [["a\nb", "u0", "1"], ["c", "u1", "2"]], [2, 4], []),
    (b'c,u1,2\n"a ""q""\n\n, b\n",u0,1', [["c", "u1", "2"], ['a "q"\n\n, b\n', "u0", "1"]], [2, 3], []),
    (b'c,u1,9\nx,"u\n2",9\nc,u3,3\n', [["c", "u1", "9"], ["x", "u\n2", "9"], ["c", "u3", "3"]], [2, 3, 5], []),
    (b'"a\nb",u0\nc,u1,2\n', [["c", "u1", "2"]], [4], [2]),  # whole, and a value too few: one bad row
    (b'"a\n\xffb",u0,1\nc,u1,2\n', [["c", "u1", "2"]], [4], [2]),
    (b'"\xffa\nb",u0,1\nc,u1,2\n', [["c", "u1", "2"]], [4], [2]),
    (b'"a,u0,1\nc,u1,2\n"d\nd",u2,3\n', [["c", "u1", "2"], ["d\nd", "u2", "3"]], [3, 4], [2]),
    (b'c,u1,2\n"a,u0,1\n', [["c", "u1", "2"]], [2], [3]),
    (b'c,u1,2\nd,u0,"1', [["c", "u1", "2"]], [2], [3]),
    # An open quote, and a stray one far below: the rows between are no text.
    (
        b'"a,u0,1\n' + b"c,u1,2\n" * 5 + b'd",u2,3\ne,u3,4\n',
        [*[["c", "u1", "2"]] * 5, ['d"', "u2", "3"], ["e", "u3", "4"]],
        [3, 4, 5, 6, 7, 8, 9],
        [2],
    ),
]


@pytest.mark.parametrize(("content", "rows", "lines", "bad"), BROKEN)
def test_a_line_break_in_quotes_is_part_of_the_value(tmp_path, content, rows, lines, bad):
    read = read_text(tmp_path, content)
    assert read[:2] == (rows, lines)
    assert [line for line, _ in read[2]] == bad


def test_lines_do_not_depend_on_the_size_of_pieces(tmp_path, monkeypatch):
    content = b"".join(content for content, *_ in BROKEN if content.endswith(b"\n"))
    expected = read_text(tmp_path, content)
    for size in (7, 64):
        monkeypatch.setattr(rows_module, "PIECE", size)
        assert read_text(tmp_path, content) == expected


def test_many_open_quotes_are_not_each_searched_to_the_end(tmp_path):
    lines = [b'"a,u,1\n'] + [b'"",u,2\n'] * 40_000
    began = time.process_time()
    rows, _, bad = read_text(tmp_path, b"".join(lines) * 3)
    assert len(rows) == 120_000
    assert [line for line, _ in bad] == [2, 40_003, 80_004]
    assert time.process_time() - began < 20  # about 1 s


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    rows, lines, bad = read_text(tmp_path, b'a,u,1\n\n\nb,u,2\n  \nc\n"d\n\nd",u,3\r\n\r\ne,u,4')
    assert [row[2] for row in rows] == ["1", "2", "3", "4"]
    assert lines == [2, 5, 8, 12]
    assert bad == [(7, "1 values instead of 3 when split at ','")]


def test_text_behind_a_closing_quote_is_one_bad_row(tmp_path):
    rows, lines, bad = read_text(tmp_path, b'a,u,1\n"b" x,u,2\nc 23" TV,u,3\n')
    assert (rows, lines) == ([["a", "u", "1"], ['c 23" TV', "u", "3"]], [2, 4])
    assert bad == [(3, "quotes do not match (text behind a closing quote)")]


def test_old_line_ends_of_apple(tmp_path):
    rows, lines, bad = read_text(
        tmp_path, b'"a, b",u,1\rc,u,2\r', Dialect(",", ("text", "user", "n"), quote='"', header=False)
    )
    assert (rows, lines, bad) == ([["a, b", "u", "1"], ["c", "u", "2"]], [1, 2], [])


def test_a_lone_return_is_white_space_where_lines_end_otherwise(tmp_path):
    rows, lines, _ = read_text(tmp_path, b"a\rb,u,1\nc,u,2\r\n")
    assert (rows, lines) == ([["a b", "u", "1"], ["c", "u", "2"]], [2, 3])


def test_a_long_value_is_kept(tmp_path):
    text = b"x" * 3_000_000
    rows, *_ = read_text(tmp_path, b"a," + text + b',1\n"' + text + b'",u,2\n')
    assert [len(row[0]) + len(row[1]) for row in rows] == [3_000_001, 3_000_001]


@pytest.mark.parametrize(
    ("dialect", "encoding"),
    [
        (Dialect("\t", header=False, names=("id", "text", "n")), "utf-8"),
        (Dialect("::", header=False, names=("id", "text", "n")), "latin-1"),
        (Dialect(",", quote='"', header=False, names=("id", "text", "n")), "utf-8"),
        (Dialect(";", quote='"', escape="\\", header=False, names=("id", "text", "n")), "latin-1"),
        (Dialect("|", header=False, names=("id", "text", "n")), "cp1252"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_rows_of_another_width_are_named_with_their_line(tmp_path, dialect, encoding, suffix):
    rng = np.random.default_rng(4)
    lines = []
    for number in range(400):
        good = dialect.delimiter.join([str(number), "é" * rng.integers(5), str(rng.integers(1, 6))])
        lines.append({0: "junk", 1: good + dialect.delimiter, 2: ""}.get(rng.integers(8), good))
    rows, at, bad = read_text(tmp_path, "\n".join(lines).encode(encoding), dialect, suffix=suffix, encoding=encoding)
    expected = [number for number, line in enumerate(lines) if line.count(dialect.delimiter) == 2]
    assert [int(row[0]) for row in rows] == expected
    assert at == [number + 1 for number in expected]
    wrong = [number + 1 for number, line in enumerate(lines) if line and number not in expected]
    assert [line for line, _ in bad] == wrong


def test_an_even_number_of_quotes_may_leave_one_open(tmp_path):
    """Then the value goes on in the next lines, and later rows keep their line numbers."""
    lines = b'5" disc,"open,1\nx,y,2\nd,x",3\ne,u,4,more\nf,u,5\n'
    rows, at, bad = read_text(tmp_path, lines)
    assert rows == [['5" disc', "open,1\nx,y,2\nd,x", "3"], ["f", "u", "5"]]
    assert at == [2, 6]
    assert [line for line, _ in bad] == [5]


def test_names_that_are_patterns_stand_for_themselves(tmp_path):
    for name in ("d[1]", "d1"):
        (tmp_path / name).mkdir()
        rows, *_ = read_text(tmp_path / name, f"{name},u,1\n".encode(), suffix="[?*].csv")
        assert rows == [[name, "u", "1"]]
