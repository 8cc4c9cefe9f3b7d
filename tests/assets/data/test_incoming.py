"""New files through the assets: the ledger's materialisation, and what stands in `raw_interactions` afterwards."""

import time

import dagster as dg
import pandas as pd
import pytest
from declarations import OWN_FILES
from plant import failures, materialised

from assets.data.raw import load_raw
from resources.workspace import Workspace

OWN = OWN_FILES.replace('domain = "products"', 'domain = "products"\nrating_scale = [1, 5]\nduplicates = "keep-last"')
TRACK = "tables"
T = 1_000_000_000
PUBLISHED = [(1, 10, 4.0, T + 500), (1, 11, 3.0, T + 600), (2, 10, 5.0, T + 700)]
AHEAD = "(seconds since 1970, from 1990 to a day ahead of now, are expected)"


class Shop:
    """A plant whose data set `own` gets new files through a store that can be away."""

    def __init__(self, root, plant):
        self.plant = plant
        self.home = home = self.plant.home
        self.folder = root / "arrivals" / "own" / "incoming"
        self.folder.mkdir(parents=True)
        self.workspace = Workspace(
            data=str(home.data), datasets=str(home.datasets), cache=str(home.cache), work=str(home.work),
            incoming=f"shaky://{root}/arrivals", ledgers=str(home.ledgers), settle_s=0,
        )  # fmt: skip
        published = home.data / "own" / "own.inter"
        published.parent.mkdir(parents=True)
        columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
        pd.DataFrame(PUBLISHED, columns=columns).to_csv(published, sep="\t", index=False)

    def drop(self, name, rows):
        table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"], dtype=object)
        table.to_csv(self.folder / name, index=False)

    def run(self, *assets, **config):
        return self.plant.run("own", only=assets, resources={"workspace": self.workspace}, **config)

    def take_in(self, **config):
        """Metadata of the ledger, plain values."""
        result = self.run("incoming_interactions", incoming_interactions=config)
        assert failures(result) == {}
        self.checks = result.get_asset_check_evaluations()
        return materialised(result)["incoming_interactions"]

    def raw(self):
        result = self.run("raw_interactions")
        assert failures(result) == {}
        return load_raw(self.plant.artifact(result, "raw_interactions"))


@pytest.fixture
def shop(tmp_path, shaky, seed, copies):
    return Shop(tmp_path, copies(seed.plant, own=OWN))


def test_late_future_bad_and_repeated_rows_end_where_they_belong(shop):
    now = int(time.time())
    shop.drop(
        "a.csv",
        [
            (1, 12, 2, T + 550),  # late: between two published ones
            (1, 10, 4, T + 500),  # published already
            (2, 12, 1, now + 3600),  # a clock an hour ahead
            (2, 13, 1, now + 3 * 86_400),
            (3, 10, 9, T + 800),
            (3, "x9", 3, T + 800),
            (1, 12, 2, T + 550),  # twice in the file
            (3, 10, 2, T + 1),
        ],
    )
    shop.drop("b.csv", [(1, 12, 2, T + 550), (3, 11, 5, T + 900)])  # part of it again
    shop.drop("c.csv", [(3, 10, 9, T + 800), (3, 11, 9, T + 900)])
    told = shop.take_in()
    assert (told["files"], told["files_refused"], told["bad_rows"]) == (2, 1, 2)
    assert told["dagster/row_count"] == 8
    assert "2 of 2 rows cannot be read" in told["refused"]
    assert "c.csv" in told["refused"]
    ((check, warned),) = [(one.check_name, one) for one in shop.checks]
    assert (check, warned.passed, warned.severity) == ("files_accepted", False, dg.AssetCheckSeverity.WARN)
    assert warned.metadata["reasons"].value.startswith("c.csv: 2 of 2 rows cannot be read")
    raw = shop.raw()
    added = [(1, 12, 2.0, T + 550), (2, 12, 1.0, now + 3600), (3, 10, 2.0, T + 1), (3, 11, 5.0, T + 900)]
    assert list(raw.interactions.itertuples(index=False, name=None)) == [*PUBLISHED, *added]
    assert raw.incoming_rows == len(added)
    aside = raw.quarantine.sort_values(["file", "line"])
    assert aside[["file", "line"]].to_numpy().tolist() == [["incoming/a.csv", line] for line in (5, 6, 7)]
    reasons = aside["reason"].tolist()
    assert reasons[0].endswith(AHEAD)
    assert reasons[1:] == [
        "rating '9' is outside 1 to 5",
        "item_id 'x9' is not a whole number like the data set's other ids",
    ]
    # The same again under other names changes neither the ledger nor what rests on it.
    for name in ("a.csv", "b.csv", "c.csv"):
        (shop.folder / name).rename(shop.folder / f"again-{name}")
    told = shop.take_in()
    assert told["files_judged_now"] == 3
    assert told["judged now"].count("already known") == 3
    result = shop.run("raw_interactions")
    assert materialised(result)["raw_interactions"]["reused"]


def test_a_store_that_is_away_is_one_sentence_and_nothing_is_lost(shop, shaky):
    for number in range(4):
        shop.drop(f"{number}.csv", [(7, number, 3, T + number)])
    shaky.away = "Connection refused"
    result = shop.run("incoming_interactions")
    url = f"shaky://{shop.folder}"
    assert failures(result) == {
        "incoming_interactions": f"new files in {url} cannot be ingested: could not connect to the endpoint: "
        "Connection refused; finished files are kept. Run again to go on"
    }
    shaky.away, shaky.opens_left = "", 2
    result = shop.run("incoming_interactions")
    assert failures(result)["incoming_interactions"].startswith(f"new files in {url} cannot be ingested: could not")
    shaky.away, shaky.opens_left = "", None
    told = shop.take_in()
    assert (told["files_judged_now"], told["files"]) == (2, 4)
    ledger = shop.workspace.ledger("own")
    assert ledger.read(ledger.state()).rows["item_id"].tolist() == ["0", "1", "2", "3"]
    assert shaky.opened == ("0.csv", "1.csv", "2.csv", "3.csv")


def test_a_file_that_may_not_be_read_is_named_and_the_others_go_on(shop, shaky):
    for number in range(3):
        shop.drop(f"{number}.csv", [(7, number, 3, T + number)])
    shaky.forbidden = ("1.csv",)
    told = shop.take_in()
    assert told["files_judged_now"] == 2
    assert told["files_not_readable"].startswith("1.csv ([Errno 13] Permission denied: ")
    assert shop.checks[0].metadata["reasons"].value.startswith("1.csv: [Errno 13] Permission denied: ")
    shaky.forbidden = ()
    told = shop.take_in()
    assert [one.passed for one in shop.checks] == [True]
    assert (told["files_judged_now"], told["files"]) == (1, 3)
    assert "files_not_readable" not in told


def test_a_corrected_scale_takes_effect_on_what_was_refused_when_asked_for(shop):
    shop.drop("a.csv", [(7, 10, 9, T)])
    assert shop.take_in()["files_refused"] == 1
    declared = shop.workspace.spec("own")
    (shop.plant.home.datasets / "own.toml").write_text(
        OWN.format(name="own").replace("rating_scale = [1, 5]", "rating_scale = [1, 10]")
    )
    assert shop.workspace.spec("own") != declared
    assert shop.take_in()["files_judged_now"] == 0
    told = shop.take_in(judge_again=True)
    assert (told["files_judged_now"], told["files"], told["files_refused"]) == (1, 1, 0)
    assert shop.raw().incoming_rows == 1


def test_a_withdrawn_file_is_told_and_its_rows_leave_the_raw_tables(shop):
    shop.drop("a.csv", [(7, 10, 4, T)])
    shop.drop("b.csv", [(8, 10, 1, T), (8, 11, 1, T + 1)])
    assert shop.take_in()["files_withdrawn"] == 0
    assert shop.raw().incoming_rows == 3
    result = shop.run("incoming_interactions", incoming_interactions={"withdraw": ["b.csv"], "judge_again": True})
    assert failures(result)["incoming_interactions"].endswith(
        "withdraw and judge_again contradict each other; set one of them per run"
    )
    result = shop.run("incoming_interactions", incoming_interactions={"withdraw": ["c.csv"]})
    assert failures(result)["incoming_interactions"].startswith("withdraw: 'c.csv' is neither the name of a file nor")
    told = shop.take_in(withdraw=["b.csv"])
    assert (told["reused"], told["files"], told["files_withdrawn"], told["dagster/row_count"]) == (False, 1, 1, 1)
    assert "b.csv" in told["withdrawn"]
    assert shop.raw().incoming_rows == 1
    shop.drop("c.csv", [(8, 10, 1, T), (8, 11, 1, T + 1)])
    told = shop.take_in()
    assert "not accepted again" in told["judged now"]
    assert told["files"] == 1
    assert shop.take_in(judge_again=True)["files"] == 2
