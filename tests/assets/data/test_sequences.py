"""Every user's items in time order."""

from plant import STEPS, failures, metadata

from rarec.data.sequences import UserSequences

ROWS = [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x"), ("b", "y")]
FEW = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t{time}\n" for time, (user, item) in enumerate(ROWS, 1_000_000_000)
)


def test_sequences_tell_how_many_test_targets_are_tied(plant, first):
    values = metadata(first)["user_sequences"]
    assert (
        values["tied_test_targets"]
        == UserSequences.load(plant.artifact(first, "user_sequences").path).tied_test_targets()
    )
    assert 0 <= values["tied_test_targets"] < 1


def test_users_with_too_few_interactions_are_named(plant):
    folder = plant.home.data / "own"
    folder.mkdir(parents=True)
    (folder / "own.inter").write_text(FEW)
    result = plant.run("own")
    assert list(failures(result)) == ["user_sequences"]
    assert failures(result)["user_sequences"].startswith(
        "1 users have fewer than three interactions (first: user 'b' with 2)"
    )
    assert set(metadata(result)) == {"raw_interactions", *STEPS}


def test_without_the_last_days_users_may_be_short(plant, first):
    """A window leaves out what happened since; the others keep their order."""
    whole = UserSequences.load(plant.artifact(first, "user_sequences").path)
    result = plant.run(only=["user_sequences"], user_sequences={"window_days": 2})
    told = metadata(result)["user_sequences"]
    cut = UserSequences.load(plant.artifact(result, "user_sequences").path)
    assert told["until"] == whole.timestamps.max() - 2 * 86_400 + 1
    before = whole.timestamps < told["until"]
    assert 0 < (~before).sum() == len(whole.items) - len(cut.items)
    assert cut.items.tolist() == whole.items[before].tolist()
    assert cut.timestamps.tolist() == whole.timestamps[before].tolist()
