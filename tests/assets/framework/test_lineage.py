"""An asset reads what belongs together: of its own run, of one lineage, undamaged; else it says what to make again."""

import pytest
from plant import built, failures

from rarec.retrieval.memory import MemoryBank


def test_assets_ask_for_what_they_need(plant):
    assert failures(plant.run("borrowed", only=["user_sequences"])) == {
        "user_sequences": "interactions has not been materialised for borrowed; materialise it first "
        "(job `raserec` or `rella`: make run DATASET=borrowed TRACK=raserec)"
    }


@pytest.mark.parametrize(
    ("track", "asset", "message"),
    [
        (
            "raserec",
            "ranking_metrics",
            "user_sequences has not been materialised for borrowed; materialise it first "
            "(job `raserec`: make run DATASET=borrowed TRACK=raserec)",
        ),
        (
            "promote_rella",
            "rella_candidate",
            "lora_checkpoint has not been materialised for borrowed; materialise it first "
            "(job `rella`: make run DATASET=borrowed TRACK=rella)",
        ),
        (
            "promote",
            "raserec_champion",
            "raserec_candidate has not been materialised for borrowed; materialise it first",
        ),
    ],
)
def test_what_is_missing_names_the_job_that_makes_it(plant, track, asset, message):
    assert failures(plant.run("borrowed", track=track, only=[asset])) == {asset: message}


def test_a_damaged_input_is_refused_and_the_whole_run_heals_it(plant, first):
    artifact = plant.artifact(first, "user_sequences")
    name = next(name for name in artifact.manifest.files if name.endswith(".npy"))
    file = artifact.file(name)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = plant.run(only=["ranking_metrics"], ranking_metrics={"force": True})
    assert list(failures(refused)) == ["ranking_metrics"]
    assert f"{file} was altered after it was written" in failures(refused)["ranking_metrics"]
    healed = plant.run()
    assert healed.success, failures(healed)
    assert built(healed) == {"user_sequences"}
    assert file.read_bytes() == content


def test_a_run_goes_on_with_its_own_artifacts(plant, first, monkeypatch):
    """Another run that materialises the same asset with other settings meanwhile changes nothing here."""
    build = MemoryBank.build

    def overtaken(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBank, "build", build)
            other = plant.run(only=["raserec_pretrained"], raserec_pretrained={"seed": 8, "epochs": 1})
            assert built(other) == {"raserec_pretrained"}
        return build(*arguments)

    monkeypatch.setattr(MemoryBank, "build", overtaken)
    steps = ["raserec_pretrained", "memory_bank", "raserec_finetuned"]
    result = plant.run(only=steps, raserec_pretrained={"seed": 9, "epochs": 1}, raserec_finetuned={"epochs": 1})
    assert failures(result) == {}
    assert built(result) == set(steps)
    encoder = plant.artifact(result, "raserec_pretrained")
    assert encoder.manifest.config["seed"] == 9
    assert plant.artifact(result, "raserec_finetuned").manifest.inputs["encoder"] == encoder.fingerprint
