import numpy as np
import pytest
from pydantic import ValidationError

from rarec.data.spec import DatasetSpec, SourceSpec, builtin_specs, find_spec, load_specs
from rarec.errors import InputError

OWN = """
name = "own"
title = "Own"
domain = "songs"
[[sources]]
format = "recbole"
"""


def make_spec(**fields):
    base = {"name": "x", "title": "X", "domain": "movies", "sources": [{"format": "movielens-csv"}]}
    return DatasetSpec.model_validate(base | fields)


def test_builtin_data_sets():
    assert set(builtin_specs()) == {
        "demo",
        "ml-100k",
        "ml-latest-small",
        "ml-1m",
        "ml-25m",
        "bookcrossing",
        "bookcrossing-small",
        "amazon-beauty",
        "amazon-sports",
        "amazon-clothing",
    }


def test_builtin_labels_follow_the_papers():
    specs = builtin_specs()
    ratings = np.array([1, 3, 3.5, 4, 5])
    for name in ("demo", "ml-100k", "ml-latest-small", "ml-1m", "ml-25m"):
        assert specs[name].is_positive(ratings).tolist() == [False, False, True, True, True]
    for name in ("bookcrossing", "bookcrossing-small"):
        assert specs[name].is_positive(ratings).tolist() == [False, False, False, False, True]


def test_label_needs_a_threshold_and_ratings():
    with pytest.raises(InputError, match="x: set `label_threshold`"):
        make_spec().is_positive(np.array([1.0]))
    with pytest.raises(InputError, match="x: some interactions have no rating"):
        make_spec(rating_scale=[1, 5], label_threshold=3).is_positive(np.array([np.nan]))


def test_user_folder_adds_and_replaces(tmp_path):
    (tmp_path / "own.toml").write_text(OWN + "[overrides.raserec_finetuned]\nalpha = 0.5\n[overrides.user_sequences]\n")
    (tmp_path / "demo.toml").write_text(OWN.replace('"own"', '"demo"'))
    specs = load_specs(tmp_path)
    assert specs["own"].overrides == {"raserec_finetuned": {"alpha": 0.5}, "user_sequences": {}}
    assert specs["demo"].title == "Own"
    assert "ml-1m" in specs


def test_unknown_data_set_lists_known_ones():
    with pytest.raises(
        InputError,
        match=r"Unknown data set 'ml-2m' \(did you mean 'ml-25m'\?\); known: amazon-beauty, .*, ml-latest-small\.",
    ):
        find_spec("ml-2m", builtin_specs())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            OWN.replace("domain", "domian"),
            r"own\.toml: domain is missing; domian: no such setting .did you mean .domain.*; known: name",
        ),
        (OWN + "colums = 3\n", r"own\.toml: sources\.0\.colums: no such setting\."),
        (OWN + 'format = "x"\n', r"own\.toml: not valid TOML: "),
        (OWN.replace("recbole", "parquet"), r"own\.toml: sources\.0\.format is parquet; it must be 'recbole', "),
        (OWN.replace('"own"', '"other"'), r"own\.toml: name is 'other', but the file is own\.toml"),
    ],
)
def test_bad_toml_names_file_and_key(tmp_path, text, message):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_specs(tmp_path)


def test_toml_that_is_not_utf8(tmp_path):
    (tmp_path / "own.toml").write_bytes(OWN.replace("Own", "Öwn").encode("latin-1"))
    with pytest.raises(InputError, match=r"own\.toml: not valid UTF-8"):
        load_specs(tmp_path)


def test_missing_folder_of_data_sets(tmp_path):
    with pytest.raises(InputError, match="nowhere: there is no such folder; it should hold data set files"):
        load_specs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_threshold": 3}, "need a `rating_scale`"),
        ({"rating_scale": [5, 1]}, "must be in ascending order"),
        ({"rating_scale": [1, 5], "label_threshold": 7}, r"is outside \[1, 5\]"),
        ({"rating_scale": [0, 10], "implicit_rating": 0}, r"is inside \[0, 10\]"),
        ({"time": "order"}, "`time` is 'order', but movielens-csv files have 'clock'"),
        ({"sources": []}, "`sources` must name at least one form"),
        ({"name": "../x"}, "should match pattern"),
        ({"download": {"url": "https://example.org/x.zip", "checksum": "md5:12"}}, "should match pattern"),
    ],
)
def test_contradictory_data_set(fields, message):
    with pytest.raises(ValidationError, match=message):
        make_spec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "movielens-dat", "encoding": "latin-1"}, "`encoding` can be set only for the recbole format"),
        ({"format": "recbole", "files": {"items": "x.item"}}, "must name a file for `interactions`"),
        ({"format": "recbole", "files": {"interactions": "../x.inter"}}, "must be a plain file name"),
        ({"format": "amazon-2014"}, "has no standard file names"),
        ({"format": "synthetic"}, "`demo` must be set for the synthetic format"),
        ({"format": "recbole", "demo": {}}, "`demo` must be set for the synthetic format"),
    ],
)
def test_contradictory_source(fields, message):
    with pytest.raises(ValidationError, match=message):
        SourceSpec.model_validate(fields)
