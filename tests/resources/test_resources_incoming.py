"""New files: judged once each, whatever their names, and never before they are complete."""

import pandas as pd
import pytest

from rarec.data.ledger import Ledger
from rarec.data.spec import builtin_specs
from resources.incoming import IncomingFiles, ingest

SPEC = builtin_specs()["ml-100k"]


class Arrivals:
    def __init__(self, folder):
        self.folder = folder / "incoming"
        self.folder.mkdir()
        self.source = IncomingFiles(str(self.folder))
        self.ledger = Ledger(folder / "ledger")

    def drop(self, name, rows):
        pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]).to_csv(
            self.folder / name, index=False
        )

    def take_in(self):
        settled, _ = self.ledger.look(self.source.listing(), 0.0, 0.0)
        return ingest(self.source, self.ledger, SPEC, settled)

    def rows(self):
        table = self.ledger.read(self.ledger.state()).rows
        return sorted(zip(table["user_id"], table["item_id"], table["timestamp"], strict=True))


@pytest.fixture
def arrivals(tmp_path):
    return Arrivals(tmp_path)


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
