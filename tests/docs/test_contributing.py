"""What docs/contributing.md tells to type works."""

import re
import sys
import textwrap
import types

import dagster as dg
import numpy as np
import pytest
import torch
from declarations import TINY
from places import ROOT
from plant import Plant, failures
from raserec_toys import chain_sequences

from assets.framework import stage as framework
from assets.framework.stage import STAGES
from rarec.raserec import encoders
from rarec.raserec.settings import EncoderSettings
from rarec.training.dropout import DropoutBits

PAGE = (ROOT / "docs" / "contributing.md").read_text()


def code(section):
    """The blocks of Python in a section."""
    part = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [textwrap.dedent(block) for block in re.findall(r" *```python\n(.*?)\n *```", part, re.DOTALL)]


def as_module(name, source, monkeypatch):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), vars(module))
    return module


def test_the_asset_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(framework, "STAGES", dict(STAGES))
    computation, declaration = code("An asset")
    as_module("rarec.baselines.item_counts", computation, monkeypatch)
    asset = as_module("assets.baselines.item_counts", declaration, monkeypatch).item_counts
    partitions = dg.StaticPartitionsDefinition(["tiny"])
    (bound,) = dg.map_asset_specs(lambda spec: spec.replace_attributes(partitions_def=partitions), [asset])
    with dg.DagsterInstance.ephemeral() as instance:
        plant = Plant(tmp_path, instance, tiny=TINY)
        before = ["raw_interactions", "interactions", "item_catalog", "user_profiles", "user_sequences"]
        assert plant.run(only=before).success
        result = dg.materialize(
            [bound], partition_key="tiny", instance=instance, resources=dict(plant.defs.resources),
            run_config={"ops": {"item_counts": {"config": {"least": 5}}}}, raise_on_error=False,
        )  # fmt: skip
        assert result.success, failures(result)
        counts = np.load(plant.artifact(result, "item_counts").file("counts.npy"))
    assert counts.max() > 5
    assert set(counts[counts < 5]) <= {0}


@pytest.mark.usefixtures("single_process")
def test_the_encoder_encodes(monkeypatch):
    (source,) = code("An encoder")
    exec(compile(source, "encoder", "exec"), vars(encoders))
    kind = vars(encoders).pop("MeanOfItems")
    sequences = chain_sequences()
    encoder = kind(sequences.n_items, EncoderSettings(dim=8, heads=1, max_length=50), DropoutBits())
    prefixes = sequences.prefixes("train")
    encoded = encoder.encode(sequences, prefixes)
    user = np.searchsorted(sequences.offsets, prefixes, side="right") - 1
    items = torch.from_numpy(sequences.items)
    for row, (prefix, start) in enumerate(zip(prefixes.tolist(), sequences.offsets[user].tolist(), strict=True)):
        mean = encoder.item_embedding[items[start : prefix + 1]].mean(0)
        assert torch.allclose(encoded[row], encoder.project(mean), atol=1e-5)


def test_the_track_is_registered_as_shown():
    (line,) = code("A track")
    assert line.startswith("(toy_candidate, toy_champion, toy_drift_report), not_worse = champion_stages(ToyTrack())")
