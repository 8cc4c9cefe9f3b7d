"""Declarations that several files repeat, or that a later edit could break silently, agree with what is there."""

import os
import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT
from setuptools import find_packages

from pipelines.definitions import build_defs
from rarec.data.spec import builtin_specs
from resources.settings import Installation

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# docs: architecture, "The graph". Names are fixed; a stage that is not built yet is absent.
GROUPS = {
    "raw": {"incoming_interactions", "raw_interactions", "item_catalog", "user_profiles", "interactions"},
    "text": {"ctr_samples", "textual_samples"},
    "semantic": {"base_language_model", "semantic_item_vectors"},
    "index": {"item_index"},
    "instruction": {"retrieval_enhanced_samples", "mixed_reit_samples"},
    "language": {"lora_checkpoint", "ctr_predictions"},
    "sequences": {"user_sequences"},
    "recommender": {"raserec_pretrained", "memory_bank", "raserec_finetuned", "recommendations"},
    "operations": {
        "raserec_candidate",
        "raserec_champion",
        "rella_candidate",
        "rella_champion",
        "refreshed_memory",
        "refreshed_finetuned",
        "drift_report",
        "rella_drift_report",
    },
    "sweeps": {"raserec_sweep", "rella_sweep"},
    "peers": {"peer_rankings", "peer_metrics", "peer_predictions", "click_predictions", "peer_ctr_metrics"},
    "baselines": {"ctr_baselines", "ranking_baselines", "raserec_controls"},
    "reports": {"ctr_metrics", "ranking_metrics", "comparison_report"},
}
RASEREC = GROUPS["raw"] | GROUPS["sequences"] | GROUPS["recommender"] | {"ranking_baselines", "ranking_metrics"}


@pytest.fixture(scope="module")
def defs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return build_defs(Installation.from_environment({"RAREC_HOME": str(home)}))


@pytest.fixture(scope="module")
def nodes(defs):
    graph = defs.resolve_asset_graph()
    return {key.to_user_string(): graph.get(key) for key in graph.materializable_asset_keys}


def test_workspace_and_dg_table_name_the_same_location():
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    project = PROJECT["tool"]["dg"]["project"]
    assert entry["python_module"] == {
        "module_name": project["code_location_target_module"],
        "location_name": project["code_location_name"],
    }
    assert project["code_location_target_module"].split(".")[0] == project["root_module"]
    assert (ROOT / "pipelines" / "definitions.py").is_file()


def test_every_package_is_installed():
    settings = PROJECT["tool"]["setuptools"]
    found = set(find_packages(str(ROOT), include=settings["packages"]["find"]["include"]))
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("rarec", "assets", "resources", "pipelines")
        for path in (ROOT / top).rglob("*.py")
    }
    assert found == on_disk  # also: no folder of modules without its __init__.py
    for package, patterns in settings["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package}: {pattern}"


def test_every_data_file_of_a_package_is_installed():
    declared = {
        path
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    there = {
        path
        for top in ("rarec", "assets", "resources", "pipelines")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert there == declared


def test_cpu_and_gpu_extras_exclude_each_other():
    extras = PROJECT["project"]["optional-dependencies"]
    assert {Requirement(text).name for text in extras["cpu"]} == {"faiss-cpu"}
    assert {Requirement(text).name for text in extras["gpu"]} == {"faiss-gpu"}
    assert [{"extra": "cpu"}, {"extra": "gpu"}] in PROJECT["tool"]["uv"]["conflicts"]
    assert not any(Requirement(text).name.startswith("faiss") for text in PROJECT["project"]["dependencies"])


def test_constraints_pin_every_dependency_as_wanted():
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), f"{pin} is no plain pin"  # no +cpu, no path
        assert not re.match(r"(nvidia|cuda|triton|faiss-gpu|rarec)", pin.name), pin
        versions[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(one for extra in extras if extra != "gpu" for one in extras[extra]),
    ]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_continuous_integration_runs_what_contributors_run():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[-1] == "make test"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "test", "test-all", "lint", "ui", "bench", "help"} <= targets


@pytest.mark.parametrize("before", [True, False])
def test_settings_of_make_count_before_and_behind_it(before):
    settings = {"NPROC": "2", "DATASET": "ml-100k", "TRACK": "rella", "CONFIG": '{"a": {}}'}
    show = "show: ; @echo $$RAREC_NPROC '$(DATASET)' '$(TRACK)' \"$$CONFIG\""
    command = ["make", "-s", f"--eval={show}", "show"]
    if not before:
        command += [f"{name}={value}" for name, value in settings.items()]
    outside = {name: value for name, value in os.environ.items() if name not in (*settings, "RAREC_NPROC", "MAKEFLAGS")}
    environment = {**outside, **(settings if before else {})}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown == '2 ml-100k rella {"a": {}}\n'


def test_assets_have_the_fixed_names_and_groups(nodes):
    groups = {name: node.group_name for name, node in nodes.items()}
    known = {name: group for group, names in GROUPS.items() for name in names}
    assert groups == {name: known.get(name) for name in groups}
    assert set(groups) >= RASEREC


def test_every_asset_tells_what_it_is_and_who_owns_it(nodes):
    for name, node in nodes.items():
        assert node.description, name
        assert node.owners, name
        assert node.code_version, name


def test_every_builtin_data_set_is_a_partition_of_every_asset(nodes):
    assert len(builtin_specs()) >= 9
    for name, node in nodes.items():
        assert set(node.partitions_def.get_partition_keys()) == set(builtin_specs()), name


def test_definitions_can_be_loaded(defs):
    defs.validate_loadable(defs)
