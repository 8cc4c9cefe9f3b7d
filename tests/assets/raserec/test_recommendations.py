"""The lists of the model in use, and models that do not belong together."""

import pandas as pd
from plant import failures, metadata


def test_recommendations_are_unseen_ranked_and_titled(plant, first):
    table = pd.read_parquet(plant.artifact(first, "recommendations").file("recommendations.parquet"))
    seen = pd.read_parquet(plant.artifact(first, "interactions").file("interactions.parquet"))
    items = pd.read_parquet(plant.artifact(first, "item_catalog").file("items.parquet")).set_index("item_id")
    assert table["user_id"].nunique() == 60
    assert set(table["chosen_by"]) == {"model"}
    assert metadata(first)["recommendations"]["users_by_popularity"] == 0
    assert len(table.merge(seen, on=["user_id", "item_id"])) == 0
    for _, part in table.groupby("user_id"):
        assert part["rank"].tolist() == list(range(1, 21))
        assert part["score"].is_monotonic_decreasing
        assert part["item_id"].is_unique
    assert table["title"].tolist() == items["title"].loc[table["item_id"]].tolist()


def test_a_memory_bank_of_another_encoder_is_refused(plant, first):
    tables, models = ("item_catalog", "user_profiles"), ("user_sequences", "raserec_pretrained", "memory_bank")
    made_from = {"user_sequences": tables, "raserec_finetuned": models}
    for name in (*tables, *models, "raserec_finetuned"):
        inputs = {other: plant.artifact(first, other).data_version for other in made_from.get(name, ())}
        plant.put(name, "borrowed", plant.artifact(first, name).path, {}, inputs)
    result = plant.run("borrowed", only=["recommendations"])
    owner = metadata(first)["raserec_pretrained"]["fingerprint"]
    message = failures(result)["recommendations"]
    assert f"the memory bank was made by encoder {owner} and cannot serve encoder" in message
    assert "materialise `memory_bank` again" in message
