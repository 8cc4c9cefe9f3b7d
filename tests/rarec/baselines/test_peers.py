import json

import numpy as np
import pytest

from rarec.baselines.peers import PeerLists, PeerRankingSettings, save_sequences
from rarec.data.sequences import UserSequences
from rarec.errors import InputError

TRAINED = {"history": [{"epoch": 0, "NDCG@10": 0.1, "seconds": 2.0}], "best_epoch": 0, "seconds": 3.0}


def written(folder, **lists):
    np.savez(folder / "lists.npz", **lists)
    (folder / "training.json").write_text(json.dumps(TRAINED))


def test_a_targets_rank_is_its_place_in_the_list_or_last(tmp_path):
    best = np.array([[4, 2, 0], [1, 3, -1], [0, 1, 2], [0, 1, 2]])
    masked = best[:, ::-1]
    written(tmp_path, valid_unmasked=best, valid_masked=best, test_unmasked=best, test_masked=masked)
    lists = PeerLists.load(tmp_path)
    found = lists.ranking("test", np.array([2, 0, 0, -1]), n_items=5)
    assert found.rank.tolist() == [2, 5, 1, -1]
    assert found.rank_masked.tolist() == [2, 5, 3, -1]
    assert lists.training == TRAINED


def test_other_lists_are_refused(tmp_path):
    written(tmp_path, test_unmasked=np.zeros((1, 3), int))
    with pytest.raises(InputError, match=r"lists.npz holds test_unmasked, not the lists of both splits"):
        PeerLists.load(tmp_path)


def test_peers_get_the_training_parts_and_the_users_who_are_evaluated(tmp_path):
    sequences = UserSequences(np.array([0, 4, 6, 9]), np.arange(9) % 5, np.arange(9), 5)
    save_sequences(sequences, tmp_path)
    with np.load(tmp_path / "sequences.npz") as given:
        assert given["train_ends"].tolist() == [2, 6, 7]  # the last two items of users 0 and 2 are held out
        assert given["users"].tolist() == [0, 2]
        assert given["items"].tolist() == sequences.items.tolist()


def test_settings():
    job = PeerRankingSettings(factors=32, heads=2).job("esasrec", "in", "out", 50)
    assert job["settings"]["n_factors"] == 32
    assert (job["model"], job["top_n"]) == ("esasrec", 50)
    with pytest.raises(ValueError, match="factors = 64 is not a multiple of heads = 3"):
        PeerRankingSettings(heads=3)
