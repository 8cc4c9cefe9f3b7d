"""Candidate and champion, whatever the track: compared, promoted, stopped, taken back. Shown with RaSeRec's."""

import re
import shutil
from dataclasses import replace

import pytest
from plant import failed_checks, failures, metadata

from assets.champions.candidate import find_opponent, uncompared
from rarec.champions.promotion import Rule
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.registry import Version

REFRESHED = {"source": "refreshed", "tolerance": 1.0}


def test_the_first_candidate_becomes_champion(promoted, runs):
    told = metadata(runs("promoted")["promote"])
    assert told["raserec_candidate"]["decision"] == "first"
    assert told["raserec_champion"]["moved"] is True
    champion = promoted.registry.champion()
    assert (champion.number, champion.kind, champion.replaced) == (1, "trained", None)
    assert 0 < champion.evidence["candidate"]["NDCG@10"] < 1
    assert champion.evidence["window"]["what"] == "the last event of every user (leave-one-out)"


def test_the_champion_itself_is_no_new_candidate(promoted):
    again = promoted.run("promote")
    assert again.success, failures(again)
    assert metadata(again)["raserec_candidate"]["decision"] == "same"
    assert metadata(again)["raserec_champion"]["moved"] is False
    assert [version.evidence["decision"] for version in promoted.registry.versions()] == ["first"]


def test_what_was_trained_before_new_data_is_compared_as_what_it_was_made_of(promoted):
    promoted.grow(0.8)
    assert promoted.run("ingest").success
    again = promoted.run("promote")
    assert again.success, failures(again)
    assert metadata(again)["raserec_candidate"]["decision"] == "same"
    assert promoted.registry.champion().number == 1


def test_the_alias_stays_where_the_champion_changed_after_the_comparison(promoted, monkeypatch):
    other = replace(promoted.registry.champion(), number=7)
    monkeypatch.setattr("resources.mlflow.registry.ModelRegistry.champion", lambda _: other)
    message = failures(promoted.run("promote", only=["raserec_champion"]))["raserec_champion"]
    assert re.search(
        "changed after the comparison: it was .* and is version 7 now. Nothing was changed; run ras", message
    )


def test_a_worse_candidate_is_stopped_and_the_champion_stays(refreshed, monkeypatch):
    before = refreshed.registry.champion()
    monkeypatch.setattr(Rule, "decide", lambda *_: ("worse", "planted"))
    result = refreshed.run("promote")  # of what was trained first
    assert not result.success
    told = metadata(result)
    ((check, details),) = failed_checks(result).items()
    assert check == ("raserec_candidate", "not_worse")
    assert details["reason"] == told["raserec_candidate"]["reason"] == "planted"
    assert details["next"].startswith(f"nothing to do: version {before.number} stays in use; a larger `tolerance`")
    assert "raserec_champion" not in told
    assert refreshed.registry.champion() == before
    assert not refreshed.run("promote").success  # what was judged stays judged
    direct = refreshed.run("promote", only=["raserec_champion"])
    assert "is worse than the champion, which stays: planted" in failures(direct)["raserec_champion"]


def test_what_was_rolled_back_is_promoted_again_only_by_force(refreshed):
    registry = refreshed.registry

    def refresh(**config):
        return refreshed.run("refresh", raserec_candidate={**REFRESHED, **config})

    def assert_refused(result):
        told = metadata(result)
        assert told["raserec_candidate"]["reused"] is True
        assert not {"raserec_champion", "recommendations"} & told.keys()
        assert not failed_checks(result)  # the comparison is as good as it was
        assert (
            f"version 2 of rarec-own-raserec was rolled back on {registry.versions()[1].rolled_back} in favour "
            "of version 1, so the champion stays: a new candidate is needed" in failures(result)["raserec_champion"]
        )
        assert registry.champion().number == 1

    assert refreshed.roll_back().success
    assert_refused(refresh())
    forced = refresh(force=True)
    assert metadata(forced)["raserec_champion"]["moved"] is True
    champion = registry.champion()
    assert (champion.number, champion.replaced, champion.rolled_back) == (2, 1, "")
    assert refreshed.roll_back().success
    assert_refused(refresh())  # what was forced once is not forced for ever
    assert refreshed.roll_back(version=2).success
    assert registry.champion() == champion


def test_taken_back_step_by_step_and_no_further(refreshed):
    assert refreshed.registry.champion().number == 2
    assert refreshed.roll_back().success
    assert refreshed.registry.champion().number == 1
    assert "has no version before the champion" in failures(refreshed.roll_back())["roll_back"]
    assert refreshed.roll_back(version=2).success
    assert refreshed.registry.champion().number == 2
    assert failures(refreshed.roll_back(track="rarec"))["roll_back"].startswith("track is rarec; it must be")


def test_a_new_candidate_is_promoted_after_a_rollback(refreshed):
    assert refreshed.roll_back().success
    refreshed.grow(0.9)
    result = refreshed.run("refresh", raserec_candidate=REFRESHED)
    assert result.success, failures(result)
    newest = refreshed.registry.versions()[-1]
    assert (newest.number, newest.replaced) == (3, 1)
    assert refreshed.registry.champion() == newest


def test_a_champion_whose_artifact_is_gone_is_told_with_the_way_back(refreshed):
    champion = refreshed.registry.champion()
    name, identity = next(iter(champion.artifacts.items()))
    folder = refreshed.folder(name, identity)
    shutil.rmtree(folder)
    message = failures(refreshed.run("promote", only=["recommendations"]))["recommendations"]
    assert f"version {champion.number} of rarec-own-raserec has lost {name}/own/{identity}" in message
    assert "run the job `rollback` for own" in message
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")  # damaged is as good as lost
    assert failures(refreshed.run("promote", only=["recommendations"]))["recommendations"] == message


def test_no_rollback_to_a_version_whose_artifact_is_gone(refreshed):
    registry = refreshed.registry
    before, champion = registry.versions(), registry.champion()
    folder = refreshed.folder("memory_bank", before[0].artifacts["memory_bank"])
    shutil.rmtree(folder)
    result = refreshed.roll_back(version=1)
    lost = f"version 1 of rarec-own-raserec has lost memory_bank/own/{folder.name} from the artifact store"
    assert failures(result)["roll_back"].startswith(lost)
    assert not result.get_asset_materialization_events()
    assert (registry.champion(), registry.versions()) == (champion, before)


def test_a_lost_champion_gives_way_without_a_comparison_if_that_is_asked_for(tmp_path):
    store = ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    lost = Version("rarec-own-raserec", 3, {"memory_bank": "a" * 32}, "trained")
    assert find_opponent(None, {}, store, "own", False) == (None, "")
    assert find_opponent(lost, lost.artifacts, store, "own", False) == (None, "")
    assert uncompared(None, "") == ("first", "there was no champion before")
    assert uncompared(lost, "") == ("same", "it is the champion")
    with pytest.raises(InputError, match=r"version 3 of rarec-own-raserec has lost memory_bank.*set replace_lost"):
        find_opponent(lost, {"memory_bank": "b" * 32}, store, "own", False)
    found, why = find_opponent(lost, {"memory_bank": "b" * 32}, store, "own", True)
    assert found is None
    assert uncompared(lost, why) == (
        "first", "not compared: the previous champion, version 3, is lost (replace_lost)"
    )  # fmt: skip
