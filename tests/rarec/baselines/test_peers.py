import json

import numpy as np
import pytest
from raserec_toys import sequences_of

from rarec.baselines.peers import PeerLists, PeerRankingSettings, save_sequences
from rarec.data.sequences import UserSequences
from rarec.errors import InputError

TRAINED = {"epochs": 1, "best_epoch": 1, "seconds": 3.0, "peak_memory_mib": 9.0, "validation": [0.1]}


def written(folder, **lists):
    np.savez(folder / "lists.npz", **lists)
    (folder / "training.json").write_text(json.dumps(TRAINED))


def test_a_targets_rank_is_its_place_in_the_list_or_last(tmp_path):
    sequences = sequences_of([[4, 3, 1, 2], [4, 2, 1, 0], [3, 4, 2, 0]], 5)
    best = np.array([[3, 2, 0], [1, 3, -1], [0, 1, 2]])
    masked = np.array([[2, 0, -1], [3, 0, -1], [-1, -1, -1]])
    written(tmp_path, valid_unmasked=best, valid_masked=best, test_unmasked=best, test_masked=masked)
    lists = PeerLists.load(tmp_path)
    found = lists.ranking("test", sequences)
    assert found.rank.tolist() == [2, 5, 1]
    assert found.rank_masked.tolist() == [1, 2, 5]
    assert lists.training == TRAINED


def test_a_target_seen_before_stays_a_candidate(tmp_path):
    """RecTools leaves it out of the masked list; the item before it was seen, too."""
    sequences = sequences_of([[4, 3, 1, 4]], 5)
    unmasked = np.array([[2, 3, 4, 0]])
    masked = np.array([[2, 0, -1, -1]])
    written(tmp_path, valid_unmasked=unmasked, valid_masked=masked, test_unmasked=unmasked, test_masked=masked)
    found = PeerLists.load(tmp_path).ranking("test", sequences)
    assert (found.rank.tolist(), found.rank_masked.tolist()) == ([3], [2])


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
    settings = PeerRankingSettings(factors=32, heads=2, blocks=3)
    job = settings.job("esasrec", 0.1)
    shape = {name: job["settings"][name] for name in ("n_factors", "dropout_rate", "n_blocks", "n_heads")}
    assert shape == {"n_factors": 32, "dropout_rate": 0.1, "n_blocks": 3, "n_heads": 2}
    assert "n_blocks" not in settings.job("bert4rec", 0.1)["settings"]
    with pytest.raises(ValueError, match="factors = 256 is not a multiple of heads = 3"):
        PeerRankingSettings(heads=3)
