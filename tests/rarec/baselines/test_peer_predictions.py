import numpy as np
import pandas as pd

from rarec.baselines.peer_predictions import ClickData, PeerPredictionSettings, save_samples
from rarec.data.ctr import CtrSamples


def test_peers_get_fields_and_behaviours_before_the_target(tmp_path):
    samples = CtrSamples(
        np.array([0, 4, 7]), np.array([2, 3, 6]), np.array([True, False, True]), np.array([0, 1, 2, 3])
    )
    items = np.array([0, 1, 2, 1, 2, 0, 1])
    rating = np.array([5, 1, 4, 1, 1, 4, 5])
    missing = {"category": None, "author": None, "publisher": None, "year": None}
    catalogue = pd.DataFrame({"genres": ["a", None, "b"], **missing})
    columns = ("gender", "age_group", "age", "occupation", "location", "zip_code")
    users = pd.DataFrame(dict.fromkeys(columns), index=[0, 1])
    users["gender"] = ["F", "M"]
    save_samples(ClickData(samples, items, rating, rating > 3, catalogue, users, np.array([0])), 2, tmp_path)
    with np.load(tmp_path / "samples.npz") as given:
        assert given["names"].tolist() == ["user", "item", "user gender", "item genres"]
        assert given["sizes"].tolist() == [2, 4, 3, 3]
        assert given["fields"].tolist() == [[0, 3, 1, 2], [0, 2, 1, 0], [1, 2, 2, 0]]
        assert given["history"].tolist() == [[1, 2], [2, 3], [3, 1]]
        assert given["liked"].tolist() == [[1, 0], [0, 3], [0, 1]]
        assert given["rating"].tolist() == [[3, 1], [1, 2], [1, 2]]
        assert given["ratings"] == 4
        assert given["splits"].tolist() == [0, 1, 2, 3]


def test_what_is_tried_goes_with_the_job():
    job = PeerPredictionSettings(models=("din",), epochs=3).job("din", "shots")
    assert job["learning_rates"] == (1e-3, 3e-3)
    assert (job["model"], job["rows"], job["epochs"], "behaviours" in job) == ("din", "shots", 3, False)
