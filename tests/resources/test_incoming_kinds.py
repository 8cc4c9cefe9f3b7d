"""Which files of `incoming/` are taken, and why the others are not: nothing is skipped without a word."""

import gzip
import os

import pandas as pd
import pytest

from rarec.data.incoming.ledger import Ledger
from rarec.data.spec import builtin_specs
from resources.incoming import UNFINISHED, IncomingFiles, ingest

SPEC = builtin_specs()["ml-100k"]
HEADER = "user_id,item_id,rating,timestamp\n"


def row(user):
    return f"{user},50,4,{893_000_000 + user}\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def take_in(folder):
    """Users whose rows were taken, and why other files were not."""
    source, ledger = IncomingFiles(str(folder)), Ledger(folder.parent / "ledger")
    settled, _ = ledger.look(source.listing(), 0.0, 0.0)
    report = ingest(source, ledger, SPEC, settled)
    users = sorted(map(int, ledger.read(ledger.state()).rows["user_id"]))
    return users, source.left_out() | report.refused


def test_every_kind_of_table_in_every_place_is_taken(folder):
    (folder / "plain.csv").write_text(HEADER + row(1))
    (folder / "Upper.CSV").write_text(HEADER + row(2))
    (folder / "packed.csv.gz").write_bytes(gzip.compress((HEADER + row(3)).encode()))
    (folder / "tabs.tsv").write_text((HEADER + row(4)).replace(",", "\t"))
    (folder / "Export\u00a02024.csv").write_text(HEADER + row(5))
    (folder / "objects.jsonl").write_text('{"userId": 6, "movieId": 50, "rating": 4, "timestamp": 893000006}\n')
    (folder / "2024-01-02").mkdir()
    (folder / "2024-01-02" / "dated.csv").write_text(HEADER + row(7))
    (folder / "day.parquet").mkdir()
    for part in range(2):
        table = pd.DataFrame({"user_id": [8 + part], "item_id": [50], "rating": [4], "timestamp": [893_000_000]})
        table.to_parquet(folder / "day.parquet" / f"part-0000{part}.parquet")
    assert take_in(folder) == (list(range(1, 10)), {})


def test_every_other_file_is_named_with_the_reason(folder):
    elsewhere = folder.parent / "elsewhere.csv"
    elsewhere.write_text(HEADER + row(1))
    (folder / "linked.csv").symlink_to(elsewhere)
    (folder / "dangling.csv").symlink_to(folder / "nowhere.csv")
    (folder / "_part-0001.csv").write_text(HEADER + row(2))
    (folder / "being-written.csv.tmp").write_text(HEADER)
    (folder / "notes.docx").write_text("no table")
    (folder / "bad.csv").write_text("a,b\n1,2\n")
    (folder / "sheet.csv").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "good.csv").write_text(HEADER + row(3))
    with open(os.fsencode(folder) + b"/caf\xe9.csv", "w") as file:
        file.write(HEADER + row(4))
    users, why = take_in(folder)
    assert users == [3]
    link = "it is a link; put the file itself there"
    assert {name: reason for name, reason in why.items() if reason == link} == {
        "linked.csv": link,
        "dangling.csv": link,
    }
    assert [name for name, reason in why.items() if reason == UNFINISHED] == [
        "_part-0001.csv",
        "being-written.csv.tmp",
    ]
    assert why["caf\\xe9.csv"] == "its name is not UTF-8; rename it"
    assert why["notes.docx"].startswith("its ending is none of .csv, .tsv,")
    assert why["bad.csv"].startswith("the first line has no column 'user_id'; split at ',', it has 'a', 'b'.")
    assert why["sheet.csv"] == "the file is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV."
    assert len(why) == 8
