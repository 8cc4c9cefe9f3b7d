"""A small data set for the scratch language model: the first four of eight films are liked by all."""

import numpy as np
import pandas as pd

from rarec.data.ctr import CtrSettings, build_ctr_samples
from rarec.data.templates import TEMPLATES
from rarec.text.prompts import Catalogue, build_parts

USERS, ITEMS = 12, 8
LENGTHS = np.array([9, 7, 12, 6, 0, 8, 30, 7, 9, 6, 11, 8])
OFFSETS = np.concatenate([[0], LENGTHS.cumsum()])
NAMES = [f"Film {letter}" for letter in "abcdefgh"]
CATALOGUE = Catalogue(NAMES, [f"{name}: drama" for name in NAMES])


def small_llama_data():
    """Parts of prompts, item, rating and time of each interaction, samples."""
    rng = np.random.default_rng(0)
    items = pd.DataFrame(
        {
            "item_id": np.arange(ITEMS), "title": NAMES,
            "genres": None, "category": None, "author": None, "publisher": None,
            "year": pd.array([None] * ITEMS, dtype="Int64"),
        }
    )  # fmt: skip
    users = pd.DataFrame({name: [None] * USERS for name in ("gender", "age_group", "age", "occupation", "location")})
    item = rng.integers(0, ITEMS, LENGTHS.sum())
    rating = np.where(item < ITEMS // 2, 5.0, 1.0)  # the first four films are liked, the others are not
    times = np.concatenate([np.sort(rng.integers(0, 1000, n)) for n in LENGTHS])
    parts = build_parts(TEMPLATES["movies"], items, users, item, rating)
    user = np.repeat(np.arange(USERS), LENGTHS)
    samples = build_ctr_samples(user, times, rng.random(len(user)) < 0.5, USERS, "clock", CtrSettings())
    return parts, item, rating, times, samples
