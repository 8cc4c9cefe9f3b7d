"""New files: judged once each, whatever their names, and never before they are complete."""

import errno
import hashlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from rarec.data.incoming.ledger import Ledger, Seen
from rarec.data.spec import builtin_specs
from rarec.errors import InputError
from resources import incoming
from resources.incoming import IncomingFiles, Ingestion, ingest, withdraw

SPEC = builtin_specs()["ml-100k"]


class Arrivals:
    def __init__(self, folder, store=""):
        self.folder = folder / "incoming"
        self.folder.mkdir()
        self.source = IncomingFiles(f"{store}{self.folder}")
        self.ledger = Ledger(folder / "ledger")

    def drop(self, name, rows):
        pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]).to_csv(
            self.folder / name, index=False
        )

    def take_in(self, spec=SPEC, **options):
        settled, _ = self.ledger.look(self.source.listing(), 0.0, 0.0)
        return ingest(self.source, self.ledger, spec, settled, **options)

    def rows(self):
        table = self.ledger.read(self.ledger.state()).rows
        return sorted(zip(table["user_id"], table["item_id"], table["timestamp"], strict=True))


@pytest.fixture
def arrivals(tmp_path):
    return Arrivals(tmp_path)


@pytest.fixture
def remote(tmp_path, shaky):
    return Arrivals(tmp_path, "shaky://")


ROWS = [(str(user), "50", 4, 893_000_000 + user) for user in range(1, 11)]
TOLD = [(str(user), "50", 893_000_000 + user) for user in range(1, 11)]


def test_every_file_is_taken_in_once_under_whatever_name(arrivals):
    arrivals.drop("a.csv", ROWS)
    arrivals.drop("b.csv", ROWS)
    arrivals.drop(".c.csv", ROWS)
    first = arrivals.take_in()
    assert len(first.table) == 2
    assert arrivals.rows() == sorted(TOLD)
    version = arrivals.ledger.state().version
    assert arrivals.take_in().judged == []
    assert arrivals.ledger.state().version == version != ""


def test_a_file_that_grew_adds_only_what_is_new(arrivals):
    arrivals.drop("a.csv", ROWS[:6])
    arrivals.take_in()
    arrivals.drop("a.csv", ROWS)
    arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD)


def test_a_judged_file_may_be_deleted_and_come_again(arrivals):
    arrivals.drop("a.csv", ROWS)
    arrivals.take_in()
    version = arrivals.ledger.state().version
    (arrivals.folder / "a.csv").unlink()
    assert arrivals.take_in().judged == []
    assert arrivals.rows() == sorted(TOLD)
    arrivals.drop("b.csv", ROWS)
    assert len(arrivals.take_in().table) == 1
    assert arrivals.rows() == sorted(TOLD)
    assert arrivals.ledger.state().version == version


def test_bad_rows_are_set_aside_and_the_others_kept(arrivals):
    bad = [(user, "" if int(user) <= 3 else item, rating, time) for user, item, rating, time in ROWS]
    arrivals.drop("a.csv", bad)
    (judged,) = arrivals.take_in().judged
    assert (judged["rows"], judged["bad_rows"]) == (7, 3)
    assert arrivals.rows() == sorted(TOLD[3:])
    aside = arrivals.ledger.read(arrivals.ledger.state()).bad
    assert aside["line"].tolist() == [2, 3, 4]


def test_a_file_of_mostly_bad_rows_is_refused_as_a_whole(arrivals):
    arrivals.drop("a.csv", [(user, "", rating, time) for user, _, rating, time in ROWS])
    arrivals.take_in()
    assert arrivals.rows() == []
    files = arrivals.ledger.files()
    assert files["refused"].iloc[0] != ""
    assert arrivals.take_in().judged == []  # and not looked at again


WIDE = SPEC.model_copy(update={"rating_scale": (1, 10)})
RATED = [(user, item, 4 if int(user) <= 8 else 9, moment) for user, item, _, moment in ROWS]


def test_what_was_judged_by_a_wrong_scale_is_judged_again_when_asked_for(arrivals):
    arrivals.drop("bad-rows.csv", RATED)
    arrivals.drop("refused.csv", [(user, "51", 9, moment) for user, _, _, moment in ROWS])
    arrivals.drop("good.csv", [(user, "52", 4, moment) for user, _, _, moment in ROWS])
    arrivals.drop("gone.csv", [(user, "53", 9, moment) for user, _, _, moment in ROWS])
    arrivals.take_in()
    (arrivals.folder / "gone.csv").unlink()
    before, held = arrivals.ledger.state(), arrivals.rows()
    assert len(held) == 8 + 10
    assert arrivals.take_in(WIDE).judged == []
    assert arrivals.ledger.state() == before
    report = arrivals.take_in(WIDE, judge_again=True)
    assert [(one["file"], one["rows"], one["bad_rows"], one["verdict"]) for one in report.judged] == [
        ("bad-rows.csv", 10, 0, "judged again, accepted"),
        ("refused.csv", 10, 0, "judged again, accepted"),
    ]
    after = arrivals.ledger.state()
    assert after.version != before.version
    assert arrivals.rows() == sorted([*TOLD, *((user, item, at) for item in ("51", "52") for user, _, at in TOLD)])
    assert arrivals.ledger.read(after).bad.empty
    read = arrivals.ledger.read(before).rows  # a run that began before still reads what it began with
    assert sorted(zip(read["user_id"], read["item_id"], read["timestamp"], strict=True)) == held
    assert arrivals.take_in(WIDE, judge_again=True).judged == []  # none is doubtful any more
    assert arrivals.ledger.state() == after


def test_other_rows_of_a_content_judged_again_are_another_version(arrivals):
    arrivals.drop("a.csv", RATED)
    arrivals.take_in()
    before = arrivals.ledger.state()
    other = SPEC.model_copy(update={"rating_scale": (4.5, 9)})  # as many rows of the second file, and others
    arrivals.drop("b.csv", [(user, item, 4 if int(user) <= 5 else 9, moment) for user, item, _, moment in ROWS])
    arrivals.take_in()
    counts = arrivals.ledger.files().set_index("entry")["rows"].to_dict()
    assert counts == {1: 8, 2: 5}
    halves = arrivals.ledger.state()
    arrivals.take_in(other, judge_again=True)
    assert {row[0] for row in arrivals.rows()} == {"6", "7", "8", "9", "10"}  # of b.csv; a.csv is refused now
    versions = {before.version, halves.version, arrivals.ledger.state().version}
    for spec in (SPEC, other):
        arrivals.take_in(spec, judge_again=True)
        versions.add(arrivals.ledger.state().version)
    assert len(versions) == 5


def test_a_grown_file_refused_when_judged_again_gives_back_what_it_superseded(arrivals):
    arrivals.drop("a.csv", RATED[:8])
    arrivals.take_in()
    arrivals.drop("a.csv", RATED)
    arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD[:8])
    assert arrivals.ledger.files()["superseded_by"].tolist()[0] == 2
    arrivals.take_in(WIDE, judge_again=True)
    assert arrivals.rows() == sorted(TOLD)
    assert arrivals.ledger.files()["superseded_by"].tolist()[:2] == [3, 3]
    arrivals.drop("b.csv", RATED[:7] + [(user, item, 9, moment) for user, item, _, moment in RATED[:3]])
    arrivals.drop("c.csv", RATED[:6])
    arrivals.take_in()
    arrivals.drop("c.csv", RATED[:6] + RATED[8:])
    arrivals.take_in()
    held = len(arrivals.rows())
    narrow = SPEC.model_copy(update={"rating_scale": (1, 2)})
    arrivals.take_in(narrow, judge_again=True)
    files = arrivals.ledger.files().set_index("names")["refused"]
    assert files["b.csv"] != ""
    assert len(arrivals.rows()) == held - 7  # those of b.csv; c.csv has what it had before it grew


def test_a_ledger_that_cannot_be_written_keeps_what_was_judged_before(arrivals, monkeypatch):
    arrivals.drop("a.csv", RATED)
    arrivals.take_in()
    before, files = arrivals.ledger.state(), arrivals.ledger.files()

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("rarec.data.incoming.ledger.as_parquet", full)
    with pytest.raises(OSError, match="No space"):
        arrivals.take_in(WIDE, judge_again=True)
    assert arrivals.ledger.state() == before
    assert arrivals.ledger.files().equals(files)
    assert arrivals.rows() == sorted(TOLD[:8])


WRONG = [(user, "60", 1, moment) for user, _, _, moment in ROWS]


def sha256(arrivals, name):
    return hashlib.sha256((arrivals.folder / name).read_bytes()).hexdigest()


def test_a_correction_takes_the_place_of_what_is_withdrawn(arrivals):
    arrivals.drop("a.csv", ROWS[:4])
    arrivals.take_in()
    right = arrivals.ledger.state()
    arrivals.drop("b.csv", [*WRONG, ("1", "secret-item", 17, 5)])
    wrong = sha256(arrivals, "b.csv")
    arrivals.take_in()
    before = arrivals.ledger.state()
    assert len(arrivals.rows()) == 14
    assert b"secret-item" in (arrivals.ledger.folder / "ledger.sqlite").read_bytes()
    assert withdraw(arrivals.ledger, ["b.csv"]) == ["b.csv"]
    assert arrivals.ledger.state() == right
    assert arrivals.rows() == sorted(TOLD[:4])
    assert b"secret-item" not in (arrivals.ledger.folder / "ledger.sqlite").read_bytes()
    with sqlite3.connect(arrivals.ledger.folder / "ledger.sqlite") as database:
        parts = [pd.read_parquet(io.BytesIO(content)) for (content,) in database.execute("SELECT content FROM parts")]
    assert [len(part) for part in parts] == [4]
    with pytest.raises(InputError, match="1 files were withdrawn just before this run could read them; run it again"):
        arrivals.ledger.read(before)
    line = arrivals.ledger.files().set_index("names").loc["b.csv"]
    assert (line["sha256"], line["rows"], line["withdrawn"][:3]) == (wrong, 10, "202")
    arrivals.drop("b.csv", ROWS)  # under the same name, and no extension
    arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD[:4] + TOLD)
    corrected = arrivals.ledger.state()
    assert withdraw(arrivals.ledger, [wrong[:8].upper(), wrong]) == []  # it is already, and a retry may ask again
    with pytest.raises(InputError, match=r"'b.csv' matches 2 contents; give the beginning of a hash instead.*withdr"):
        withdraw(arrivals.ledger, ["b.csv"])
    assert arrivals.ledger.state() == corrected


def test_a_withdrawn_content_comes_back_when_it_is_judged_again_only(arrivals):
    arrivals.drop("a.csv", WRONG)
    arrivals.take_in()
    held, before = arrivals.rows(), arrivals.ledger.state()
    withdraw(arrivals.ledger, ["a.csv"])
    arrivals.drop("b.csv", WRONG)
    (judged,) = arrivals.take_in().judged
    assert judged["verdict"].startswith("withdrawn 202")
    assert judged["verdict"].endswith("not accepted again")
    assert arrivals.rows() == []
    assert withdraw(arrivals.ledger, ["b.csv"]) == []
    (judged,) = arrivals.take_in(judge_again=True).judged  # one file a content
    assert judged["verdict"] == "judged again, accepted"
    assert arrivals.rows() == held
    assert arrivals.ledger.state().version not in ("", before.version)
    assert arrivals.take_in(judge_again=True).judged == []
    withdraw(arrivals.ledger, ["a.csv"])
    for name in ("a.csv", "b.csv"):
        (arrivals.folder / name).unlink()
    arrivals.drop("c.csv", WRONG)
    (judged,) = arrivals.take_in(judge_again=True).judged
    assert judged["verdict"] == "judged again, accepted"
    assert arrivals.rows() == held


def test_with_a_file_that_grew_goes_what_it_began_as(arrivals):
    for count in (3, 6, 10):
        arrivals.drop("a.csv", ROWS[:count])
        arrivals.take_in()
    arrivals.drop("b.csv", WRONG[:1])
    arrivals.take_in()
    assert withdraw(arrivals.ledger, ["a.csv"]) == ["a.csv"]
    assert arrivals.rows() == [("1", "60", ROWS[0][3])]
    assert arrivals.ledger.files()["withdrawn"].notna().tolist() == [True, True, True, False]
    assert withdraw(arrivals.ledger, ["a.csv"]) == []
    arrivals.drop("a.csv", ROWS[:3])  # as it was before something wrong was written behind it
    assert "not accepted again" in arrivals.take_in().judged[0]["verdict"]
    arrivals.take_in(judge_again=True)
    assert arrivals.rows() == sorted([*TOLD[:3], ("1", "60", ROWS[0][3])])
    arrivals.drop("a.csv", ROWS[:5])
    arrivals.take_in()
    assert arrivals.rows() == sorted([*TOLD[:5], ("1", "60", ROWS[0][3])])


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (
            "c.csv",
            r"'c.csv' is neither the name of a file nor the beginning \(4 characters or more\) of a content's hash",
        ),
        ("", "'' is neither"),
        ("0", "'0' is neither"),
        ("twice.csv", "'twice.csv' matches 2 contents; give the beginning of a hash instead"),
        ("refused.csv", "'refused.csv' is neither"),
    ],
)
def test_what_names_nothing_or_two_withdraws_nothing(arrivals, wanted, problem):
    arrivals.drop("twice.csv", ROWS)
    arrivals.take_in()
    arrivals.drop("twice.csv", WRONG)
    arrivals.drop("good.csv", ROWS[:2])
    arrivals.drop("refused.csv", [(user, "", 4, moment) for user, _, _, moment in ROWS])
    arrivals.take_in()
    before = arrivals.ledger.state()
    known = rf"{sha256(arrivals, 'twice.csv')[:12]} \(twice.csv: 10 rows, recorded 20.*Nothing was withdrawn"
    with pytest.raises(InputError, match=f"^withdraw: {problem}.*{known}"):
        withdraw(arrivals.ledger, ["good.csv", wanted])
    assert arrivals.ledger.state() == before
    assert len(arrivals.rows()) == 22


def test_nothing_can_be_withdrawn_before_anything_is_taken_in(arrivals):
    with pytest.raises(InputError, match=r"withdraw: 'a.csv' is unknown, as no file has been ingested yet"):
        withdraw(arrivals.ledger, ["a.csv"])
    arrivals.ledger.look([Seen("a.csv", 1, "")], 0.0, 0.0)
    with pytest.raises(InputError, match=r"'a.csv' is neither .* Known contents: none\. Nothing was withdrawn"):
        withdraw(arrivals.ledger, ["a.csv"])


def test_a_hash_beginning_of_two_contents_withdraws_neither(arrivals, monkeypatch):
    monkeypatch.setattr("rarec.data.incoming.withdrawal.HASH_LEAST", 0)
    arrivals.drop("a.csv", ROWS)
    arrivals.drop("b.csv", WRONG)
    arrivals.take_in()
    with pytest.raises(InputError, match=r"withdraw: '' matches 2 contents.*\(b.csv: .*\(a.csv: "):
        withdraw(arrivals.ledger, [""])
    assert len(arrivals.rows()) == 20


def test_a_process_killed_while_it_withdraws_has_withdrawn_nothing(arrivals):
    arrivals.drop("a.csv", ROWS)
    arrivals.drop("b.csv", [*WRONG, ("1", "", 4, 5)])
    arrivals.drop("c.csv", ROWS[:5])
    arrivals.take_in()
    before, files, rows = arrivals.ledger.state(), arrivals.ledger.files(), arrivals.rows()
    bad = arrivals.ledger.read(before).bad
    assert len(bad) == 1
    kill = (  # when bad rows are deleted and good ones are not yet
        "import os, signal, sys; from pathlib import Path; from rarec.data.incoming import ledger, withdrawal; "
        "withdrawal.as_parquet = lambda _: os.kill(os.getpid(), signal.SIGKILL); "
        "ledger.Ledger(Path(sys.argv[1])).withdraw(['b.csv'])"
    )
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", kill, str(arrivals.ledger.folder)], cwd=root, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert arrivals.ledger.state() == before
    assert arrivals.ledger.files().equals(files)
    assert arrivals.rows() == rows
    assert arrivals.ledger.read(before).bad.equals(bad)
    assert withdraw(arrivals.ledger, ["b.csv"]) == ["b.csv"]
    assert arrivals.rows() == sorted(TOLD + TOLD[:5])


def test_what_is_being_judged_again_is_withdrawn_after_that(arrivals):
    arrivals.drop("a.csv", RATED)
    arrivals.take_in()
    held, begun, end = [], threading.Event(), threading.Event()
    listing = arrivals.source.listing

    def slow():
        begun.set()
        assert end.wait(60)
        return listing()

    arrivals.source.listing = slow
    settled: list[Seen] = []
    judging = threading.Thread(
        target=lambda: ingest(arrivals.source, Ledger(arrivals.ledger.folder), WIDE, settled, judge_again=True)
    )
    judging.start()
    assert begun.wait(60)
    withdrawing = threading.Thread(target=lambda: held.extend(withdraw(Ledger(arrivals.ledger.folder), ["a.csv"])))
    withdrawing.start()
    withdrawing.join(0.3)
    assert withdrawing.is_alive()
    end.set()
    judging.join()
    withdrawing.join()
    assert held == ["a.csv"]
    assert arrivals.ledger.state().entries == ()
    assert arrivals.ledger.files()["withdrawn"].notna().tolist() == [True, True]


def test_a_file_that_changes_has_not_settled_whatever_the_clock_says(arrivals):
    arrivals.drop("a.csv", ROWS[:5])
    assert arrivals.ledger.look(arrivals.source.listing(), 1000.0, 60) == ([], arrivals.source.listing())
    arrivals.drop("a.csv", ROWS)
    changed = arrivals.source.listing()
    assert arrivals.ledger.look(changed, 1100.0, 60) == ([], changed)  # other content since the last look
    assert arrivals.ledger.look(changed, 1159.0, 60) == ([], changed)
    assert arrivals.ledger.look(changed, 1161.0, 60) == (changed, [])


def test_what_was_seen_and_has_changed_since_is_left_for_later(arrivals):
    arrivals.drop("a.csv", ROWS[:5])
    settled, _ = arrivals.ledger.look(arrivals.source.listing(), 0.0, 0.0)
    arrivals.drop("a.csv", ROWS)
    report = ingest(arrivals.source, arrivals.ledger, SPEC, settled)
    assert report.changing == ["a.csv"]
    assert arrivals.rows() == []


def test_a_name_with_other_content_is_another_file(arrivals):
    arrivals.drop("a.csv", ROWS[:4])
    arrivals.take_in()
    arrivals.drop("a.csv", ROWS[4:])
    arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD)
    assert arrivals.ledger.files()["superseded_by"].isna().all()
    version = arrivals.ledger.state().version
    arrivals.drop("a.csv", ROWS[:4])  # as at first: nothing new
    (judged,) = arrivals.take_in().judged
    assert judged["verdict"] == "already known, under another name or from an earlier ingestion"
    assert arrivals.ledger.state().version == version


def test_other_content_of_the_same_size_and_moment_is_noticed(arrivals):
    arrivals.drop("a.csv", ROWS[:4])
    os.utime(arrivals.folder / "a.csv", (1e9, 1e9))
    arrivals.take_in()
    arrivals.drop("a.csv", [(user, "51", rating, moment) for user, _, rating, moment in ROWS[:4]])
    os.utime(arrivals.folder / "a.csv", (1e9, 1e9))
    arrivals.take_in()
    assert len(arrivals.rows()) == 8


def test_a_file_cut_in_mid_row_is_made_good_when_it_grows(arrivals):
    arrivals.drop("a.csv", ROWS)
    whole = (arrivals.folder / "a.csv").read_bytes()
    for size in (len(whole) - 3, len(whole)):  # a timestamp a thousandth of what is meant
        (arrivals.folder / "a.csv").write_bytes(whole[:size])
        arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD)
    assert arrivals.ledger.files()["superseded_by"].tolist()[0] == 2


def test_a_file_appended_to_again_and_again_counts_once(arrivals):
    for count in (2, 5, 7, 10):
        arrivals.drop("a.csv", ROWS[:count])
        arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD)
    assert [entry for entry in arrivals.ledger.files()["superseded_by"].tolist() if entry == entry] == [2, 3, 4]
    fresh = Ledger(arrivals.ledger.folder.parent / "fresh")
    ingest(arrivals.source, fresh, SPEC, arrivals.source.listing())
    assert fresh.state().version == arrivals.ledger.state().version  # as if it had come whole


def test_growing_into_a_refused_file_keeps_what_was_accepted(arrivals):
    arrivals.drop("a.csv", ROWS[:4])
    arrivals.take_in()
    bad = [(user, "", rating, moment) for user, _, rating, moment in ROWS]
    arrivals.drop("a.csv", ROWS[:4] + bad)
    arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD[:4])
    arrivals.drop("a.csv", ROWS[:4] + bad + ROWS[4:] * 3)
    arrivals.take_in()
    assert set(arrivals.rows()) == set(TOLD)
    assert len(arrivals.rows()) == 4 + 6 * 3


def test_a_longer_file_under_another_name_is_one_of_its_own(arrivals):
    arrivals.drop("a.csv", ROWS[:6])
    arrivals.drop("b.csv", ROWS)
    arrivals.take_in()
    assert arrivals.rows() == sorted(TOLD[:6] + TOLD)  # the repetitions go when the tables are made


@pytest.mark.parametrize("moment", [1.0, 4e9], ids=["long ago", "in the future"])
def test_the_store_clock_does_not_matter(arrivals, moment):
    arrivals.drop("a.csv", ROWS)
    os.utime(arrivals.folder / "a.csv", (moment, moment))
    looks = [arrivals.ledger.look(arrivals.source.listing(), now, 60)[0] for now in (1000.0, 1059.0, 1061.0)]
    assert [[file.name for file in files] for files in looks] == [[], [], ["a.csv"]]
    ingest(arrivals.source, arrivals.ledger, SPEC, looks[2])
    assert arrivals.rows() == sorted(TOLD)
    assert arrivals.ledger.look(arrivals.source.listing(), 5e9, 60) == ([], [])


def test_our_clock_set_back_lets_a_file_wait_anew_and_no_longer(arrivals):
    arrivals.drop("a.csv", ROWS)
    looks = [arrivals.ledger.look(arrivals.source.listing(), now, 60)[0] for now in (9000.0, 1000.0, 1059.0, 1061.0)]
    assert [len(files) for files in looks] == [0, 0, 0, 1]


def test_a_file_that_grows_is_judged_once_when_it_has_settled(arrivals):
    judged, now = [], 1000.0
    for count in range(1, len(ROWS) + 1):
        arrivals.drop("a.csv", ROWS[:count])
        for _ in range(2):
            settled, settling = arrivals.ledger.look(arrivals.source.listing(), now, 60)
            assert (settled, len(settling)) == ([], 1)
            judged += ingest(arrivals.source, arrivals.ledger, SPEC, settled).judged
            now += 30  # it grows once a minute: never as it was for so long
    settled, _ = arrivals.ledger.look(arrivals.source.listing(), now, 60)
    judged += ingest(arrivals.source, arrivals.ledger, SPEC, settled).judged
    assert [(one["file"], one["rows"]) for one in judged] == [("a.csv", 10)]
    assert arrivals.rows() == sorted(TOLD)


def append(path):
    with path.open("a") as file:
        file.write("99,50,4,893000099\n")


def set_back(path):
    """Another row in place, of the same length, and the file's moment as before."""
    moment = path.stat().st_mtime
    path.write_bytes(path.read_bytes().replace(b"10,50,", b"11,50,"))
    os.utime(path, (moment, moment))


def cut(_):
    """The transfer ends early and says nothing."""
    return "cut"


@pytest.mark.parametrize("change", [append, set_back, os.remove, cut])
def test_a_file_that_changes_while_it_is_copied_is_left_for_later(remote, shaky, change):
    remote.drop("a.csv", ROWS)
    remote.drop("b.csv", ROWS[:1])
    shaky.amid = staticmethod(lambda path: change(path) if path.name == "a.csv" else None)
    report = remote.take_in()
    assert report.changing == ["a.csv"]
    assert [one["file"] for one in report.judged] == ["b.csv"]
    shaky.amid = None
    assert remote.rows() == sorted(TOLD[:1])
    rest = {append: 12, set_back: 11, os.remove: 1, cut: 11}[change]
    remote.take_in()
    assert len(remote.rows()) == rest


def test_what_was_judged_before_the_store_went_away_is_kept(remote, shaky):
    for number, row in enumerate(ROWS):
        remote.drop(f"{number}.csv", [row])
    shaky.opens_left = 7
    with pytest.raises(ConnectionError, match="the line is cut"):
        remote.take_in()
    assert remote.rows() == sorted(TOLD[:7])
    with pytest.raises(ConnectionError):
        remote.take_in()
    shaky.away, shaky.opens_left = "", None
    assert [one["file"] for one in remote.take_in().judged] == ["7.csv", "8.csv", "9.csv"]
    assert remote.rows() == sorted(TOLD)
    assert len(shaky.opened) == len(ROWS)


def test_a_file_that_may_not_be_read_does_not_keep_the_others_waiting(remote, shaky):
    for number, row in enumerate(ROWS):
        remote.drop(f"{number}.csv", [row])
    shaky.forbidden = ("4.csv",)
    report = remote.take_in()
    assert list(report.unreadable) == ["4.csv"]
    assert "Permission denied" in report.unreadable["4.csv"]
    assert remote.rows() == sorted(TOLD[:4] + TOLD[5:])
    shaky.forbidden = ()
    assert [one["file"] for one in remote.take_in().judged] == ["4.csv"]
    assert remote.rows() == sorted(TOLD)


def test_a_file_with_a_bad_block_does_not_keep_the_others_waiting(remote, shaky):
    for number, row in enumerate(ROWS):
        remote.drop(f"{number}.csv", [row])
    shaky.broken = {"4.csv": OSError(errno.EIO, "Input/output error")}
    report = remote.take_in()
    assert report.unreadable == {"4.csv": "[Errno 5] Input/output error"}
    assert remote.rows() == sorted(TOLD[:4] + TOLD[5:])
    shaky.broken = {}
    assert [one["file"] for one in remote.take_in().judged] == ["4.csv"]
    assert remote.rows() == sorted(TOLD)


class Away(OSError):
    """What some stores raise while they are away: no ConnectionError, and without a number."""


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (Away("no route"), "no route"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), ""),
        (TimeoutError("timed out"), ""),
        (OSError(errno.EMFILE, "Too many open files"), ""),
    ],
    ids=["a store away by its own word", "a line that is cut", "no answer", "this machine"],
)
def test_a_failure_of_more_than_one_file_ends_the_run_and_keeps_what_was_judged(remote, shaky, error, away):
    for number, row in enumerate(ROWS):
        remote.drop(f"{number}.csv", [row])
    shaky.broken = {"4.csv": error}
    reach = shaky._reach

    def reached(store):
        shaky.away = away if "4.csv" in shaky.opened else ""
        reach(store)

    shaky._reach = reached
    with pytest.raises(ConnectionError if away else type(error)):
        remote.take_in()
    shaky._reach, shaky.away, shaky.broken = reach, "", {}
    assert remote.rows() == sorted(TOLD[:4])
    assert len(remote.take_in().judged) == 6


def test_a_full_disk_here_is_none_of_a_file_there(remote, monkeypatch):
    remote.drop("a.csv", ROWS)

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": Full() if mode == "wb" else opened(path, mode))
    with pytest.raises(OSError, match="No space left"):
        remote.take_in()


def test_two_ingestions_at_once_judge_each_file_once(arrivals):
    for number in range(60):
        arrivals.drop(f"{number:02}.csv", [(str(number + 1), "50", 4, 893_000_000)])
    settled, _ = arrivals.ledger.look(arrivals.source.listing(), 0.0, 0.0)
    reports: list[Ingestion] = []

    def work():
        reports.append(ingest(arrivals.source, Ledger(arrivals.ledger.folder), SPEC, settled, batch_files=5))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(report.judged) for report in reports) == [0, 0, 60]
    assert len(arrivals.rows()) == 60


def test_a_broken_shared_database_costs_no_file(arrivals, monkeypatch):
    @contextmanager
    def broken():
        database = duckdb.connect(":memory:")
        database.close()
        yield database

    monkeypatch.setattr(incoming, "in_memory", broken)
    arrivals.drop("one.csv", ROWS)
    arrivals.drop("two.csv", [(str(user), "51", 4, 893_000_000 + user) for user in range(1, 11)])
    assert set(arrivals.take_in().table["verdict"]) == {"accepted"}
    assert len(arrivals.rows()) == 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ten_thousand_small_files(arrivals, kind, monkeypatch):
    rows = []
    for number in range(10_000):
        mine = [(str(row + 1), str(number % 1682 + 1), 4, 890_000_000 + 10 * number + row) for row in range(5)]
        rows += [(user, item, moment) for user, item, _, moment in mine]
        if kind == "csv":
            arrivals.drop(f"{number:05}.csv", mine)
        else:
            columns = ["user_id", "item_id", "rating", "timestamp"]
            table = pa.table(dict(zip(columns, zip(*mine, strict=True), strict=True)))
            pq.write_table(table, arrivals.folder / f"{number:05}.parquet")
    began, spent = time.monotonic(), time.process_time()
    report = arrivals.take_in()
    spent = time.process_time() - spent
    print(f"{kind}: {time.monotonic() - began:.1f} s, {spent:.1f} s of them computing")
    assert (report.table["verdict"] == "accepted").sum() == 10_000
    assert arrivals.rows() == sorted(rows)
    opened = []
    monkeypatch.setattr(LocalFileSystem, "_open", lambda _, path, **options: opened.append(path))
    began = time.process_time()
    for _ in range(3):
        assert arrivals.take_in().judged == []
    assert (time.process_time() - began) / 3 < 2  # about 0.2 s
    assert opened == []
    assert spent < 600  # about 400 s; with a database of its own for each file it took 700
