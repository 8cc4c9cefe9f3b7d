import os

import numpy as np
import pytest
from pydantic import ValidationError

from rarec.data.source_spec import SourceSpec
from rarec.data.spec import DatasetSpec, builtin_specs, find_spec, load_specs
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


def test_sister_data_sets_agree_on_the_language_track():
    """Of one domain and one template, all have the same defaults, but for what a comment in the file explains."""
    stages = ("textual_samples", "base_language_model", "lora_checkpoint", "ctr_predictions", "mixed_reit_samples")
    explained = {("ml-100k", "base_language_model"): "vocabulary"}  # 80,000 ratings teach fewer tokens
    families: dict[str, list[DatasetSpec]] = {}
    for spec in builtin_specs().values():
        if spec.name != "demo":
            families.setdefault(spec.domain, []).append(spec)
    assert {len(family) > 1 for family in families.values()} == {True}
    for family in families.values():
        for stage in stages:
            defaults = [
                {name: value for name, value in spec.overrides.get(stage, {}).items()
                 if name != explained.get((spec.name, stage))}
                for spec in family
            ]  # fmt: skip
            assert all(own == defaults[0] for own in defaults), (stage, [spec.name for spec in family])


def test_label_needs_a_threshold_and_ratings():
    with pytest.raises(InputError, match="x: set `label_threshold`"):
        make_spec().is_positive(np.array([1.0]))
    with pytest.raises(InputError, match="x: some interactions have no rating"):
        make_spec(rating_scale=[1, 5], label_threshold=3).is_positive(np.array([np.nan]))


def test_user_folder_adds_and_replaces(tmp_path):
    (tmp_path / "own.toml").write_text(OWN + "[overrides.raserec_finetuned]\nalpha = 0.5\n[overrides.user_sequences]\n")
    (tmp_path / "demo.toml").write_text(OWN.replace('"own"', '"demo"'))
    declared = load_specs(tmp_path)
    specs = declared.specs
    assert declared.faults == {}
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
        (
            OWN.replace("recbole", "parquet"),
            r"own\.toml: sources\.0\.format is parquet; it must be 'table', 'recbole', ",
        ),
        (OWN.replace('"own"', '"other"'), r"own\.toml: name is 'other', but the file is own\.toml"),
    ],
)
def test_bad_toml_names_file_and_key(tmp_path, text, message):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_specs(tmp_path).find("own")


def own(name):
    return OWN.replace('"own"', f'"{name}"')


def plain(content):
    return lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("bom.toml", plain(b"\xef\xbb\xbf" + own("bom").encode())),
        ("crlf.toml", plain(own("crlf").replace("\n", "\r\n"))),
        ("upper.TOML", plain(own("upper"))),
    ],
)
def test_a_file_is_read_as_editors_save_it(tmp_path, name, make):
    make(tmp_path / name)
    declared = load_specs(tmp_path)
    assert declared.faults == {}
    assert declared.find(name.split(".")[0]).title == "Own"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (".#own.toml", lambda file: file.symlink_to("user@host.1234:1700000000")),  # Emacs, while the file is edited
        ("._own.toml", plain(b"\x00\x05\x16\x07")),  # macOS
        (".own.toml", plain("name =")),
        ("old.toml", lambda file: file.mkdir()),
        ("own.toml~", plain("name =")),
        ("#own.toml#", plain("name =")),
        ("README", plain("Our data sets")),
    ],
)
def test_hidden_and_foreign_files_are_skipped(tmp_path, name, make):
    (tmp_path / "own.toml").write_text(OWN)
    make(tmp_path / name)
    declared = load_specs(tmp_path)
    assert declared.faults == {}
    assert declared.specs.keys() == builtin_specs().keys() | {"own"}


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "latin.toml",
            plain(own("latin").replace("Own", "Öwn").encode("latin-1")),
            "latin.toml: not valid UTF-8; save",
        ),
        ("utf16.toml", plain(own("utf16").encode("utf-16")), "utf16.toml: not valid UTF-8; save the file as UTF-8."),
        ("empty.toml", plain(""), "empty.toml: name is missing; title is missing; "),
        ("number.toml", plain("name = 3"), "number.toml: name is 3, but the file is number.toml; give both the same "),
        ("deep.toml", plain("a = " + "[" * 100_000), "deep.toml: not valid TOML: maximum recursion depth exceeded"),
        ("long.toml", plain("a = " + "1" * 5000), "long.toml: not valid TOML: Exceeds the limit"),
        ("lost.toml", lambda file: file.symlink_to("nowhere"), "lost.toml: not a file, or a link to none; replace or "),
        ("pipe.toml", os.mkfifo, "pipe.toml: not a file, or a link to none; replace or delete it."),
        (
            "My Shop.toml",
            plain(own("My Shop")),
            "My Shop.toml: the file's name is the data set's; rename it to lower-c",
        ),
        ("a\nb.toml", plain(""), "a b.toml: the file's name is the data set's; rename it to lower-case letters"),
        (
            os.fsdecode(b"\xff.toml"),
            plain(""),
            "?.toml: the file's name is the data set's; rename it to lower-case let",
        ),
        ("demo.toml", plain("name = 'demo'"), "demo.toml: title is missing; domain is missing; sources is missing."),
    ],
)
def test_a_wrong_file_is_named_and_stops_no_other(tmp_path, name, make, message):
    (tmp_path / "own.toml").write_text(OWN)
    make(tmp_path / name)
    declared = load_specs(tmp_path)
    ((stem, fault),) = declared.faults.items()
    assert fault.startswith(f"{tmp_path}/{message}")
    assert fault.isprintable()
    assert declared.find("own").title == "Own"
    assert declared.specs.keys() == builtin_specs().keys() - {stem} | {"own"}  # what it was to replace is not used
    assert (stem in declared.names) == stem.isidentifier()
    with pytest.raises(InputError, match=r"\.toml: "):
        declared.find(stem)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text(OWN)

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("rarec.data.spec.Path.read_text", refuse)
    monkeypatch.setattr("rarec.data.spec.builtin_specs", dict)
    assert load_specs(tmp_path).faults == {
        "own": f"{tmp_path}/own.toml: cannot be read: Permission denied; change its permissions or delete it."
    }


def test_a_later_folder_mends_what_an_earlier_one_broke(tmp_path):
    for folder, text in (("one", "name ="), ("two", OWN), ("three", "name =")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.toml").write_text(text)
    one, two, three = (tmp_path / folder for folder in ("one", "two", "three"))
    assert load_specs(one, two).find("own").title == "Own"
    assert load_specs(one, two, three).specs.keys() == builtin_specs().keys()


def test_missing_folder_of_data_sets(tmp_path):
    with pytest.raises(InputError, match="nowhere: there is no such folder; it should hold data set files"):
        load_specs(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: there is no such folder; it should hold data set files"):
        load_specs(tmp_path / "file")


def test_a_folder_of_data_sets_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("rarec.data.spec.Path.iterdir", refuse)
    monkeypatch.setattr("rarec.data.spec.builtin_specs", dict)
    with pytest.raises(InputError, match=r": cannot be listed: Permission denied; change its permissions\."):
        load_specs(tmp_path)


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
        (
            {"format": "movielens-dat", "encoding": "latin-1"},
            "`encoding` can be set only for the format recbole or table",
        ),
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
