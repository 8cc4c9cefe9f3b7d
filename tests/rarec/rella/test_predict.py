import tempfile
from pathlib import Path

import numpy as np
import pytest
from callers_data import same_data
from pydantic import ValidationError
from rella_toys import BASE, CPU, save_random_adapter, slow_probability, toy_data

from rarec.data.ctr import draw
from rarec.rella.predict import SCORED, PredictionSettings, Predictor, Variant, controls, predict_all, untuned
from rarec.rella.scoring import score
from rarec.rella.tuning import load_adapter

DATA = toy_data()
SAMPLES = {split: draw(DATA.source.samples, split, 7, seed=1) for split in SCORED}
PREDICTOR = Predictor(DATA.source, DATA.prompts, DATA.answers, CPU, 500)
VARIANTS = [Variant("mixed", 3), Variant("retrieved", 3), Variant("recent", 3)]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, variant in enumerate(VARIANTS):
        save_random_adapter(DATA.model(), folder / variant.name, seed)
    return [(variant, folder / variant.name) for variant in VARIANTS]


def predict(adapters, model=None, report=lambda **_: None):
    with tempfile.TemporaryDirectory() as kept:
        return predict_all(PREDICTOR, model or DATA.model(), adapters, BASE, SAMPLES, report, Path(kept))


def test_every_model_has_a_column_in_every_split(adapters):
    reports = []
    predictions, facts = predict(adapters, report=lambda **values: reports.append(values))
    names = [
        "untuned, recent",
        "untuned, retrieved",
        "tuned on mixed, recent (seed 3)",
        "tuned on mixed, retrieved (seed 3)",
        "tuned on retrieved, retrieved (seed 3)",
        "tuned on recent, recent (seed 3)",
        "tuned on recent, retrieved (seed 3)",
    ]
    assert list(predictions) == ["valid", "test"]
    for split, columns in predictions.items():
        assert list(columns) == names
        values = np.array(list(columns.values()))
        assert values.shape == (7, len(SAMPLES[split]))
        assert len(np.unique(values.round(9), axis=0)) == 7  # no two models say the same
    assert facts["prompts"] == facts["scored"] == 7 * 14
    assert facts["behaviours_dropped"] == 0
    assert facts["seconds"] > 0
    assert list(dict.fromkeys(report["stage"] for report in reports)) == [
        f"{name}, {split}" for name in names for split in SCORED
    ]


def test_predictions_equal_one_prompt_at_a_time(adapters):
    from peft import PeftModel

    predictions, _ = predict(adapters)
    base = DATA.model()
    tuned = PeftModel.from_pretrained(DATA.model(), adapters[0][1]).eval()
    for split, samples in SAMPLES.items():
        for history, retrieved in (("recent", False), ("retrieved", True)):
            texts = [DATA.source.parts.text(row) for row in DATA.source.rows(samples, retrieved)]
            for label, model in ((untuned(history), base), (VARIANTS[0].label(history), tuned)):
                slow = [slow_probability(model, DATA.tokenizer, text) for text in texts]
                np.testing.assert_allclose(predictions[split][label], slow, atol=2e-6)


def test_the_order_of_adapters_does_not_matter_and_nothing_stays(adapters):
    expected, _ = predict(adapters)
    for order in (adapters[::-1], adapters[1:] + adapters[:1]):
        model = DATA.model()
        predictions, _ = predict(order, model)
        for split, columns in expected.items():
            assert predictions[split].keys() == columns.keys()
            for name, values in columns.items():
                np.testing.assert_allclose(predictions[split][name], values, atol=1e-6, err_msg=name)
    # The model that the adapters sat on, last in turn, is the bare one again.
    after, _ = predict([], model)
    for split, columns in after.items():
        assert len(columns) == 2
        for name, values in columns.items():
            np.testing.assert_allclose(values, expected[split][name], atol=1e-6)
    assert same_data(dict(model.state_dict()), dict(DATA.model().state_dict()))


def test_second_attempt_scores_only_what_the_first_did_not_finish(adapters, tmp_path):
    def fail(**values):
        if values["stage"] == "tuned on mixed, retrieved (seed 3), valid":
            raise ConnectionError

    expected, _ = predict(adapters)
    with pytest.raises(ConnectionError):
        predict_all(PREDICTOR, DATA.model(), adapters, BASE, SAMPLES, fail, tmp_path)
    stages = []
    predictions, facts = predict_all(
        PREDICTOR, DATA.model(), adapters, BASE, SAMPLES, lambda **values: stages.append(values["stage"]), tmp_path
    )
    assert stages[0] == "tuned on mixed, retrieved (seed 3), valid"
    assert (facts["prompts"], facts["scored"]) == (7 * 14, 4 * 14)
    for split, columns in expected.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(predictions[split][name], values)


def test_what_an_attempt_left_damaged_is_scored_again(adapters, tmp_path, capsys):
    def attempt():
        return predict_all(PREDICTOR, DATA.model(), adapters, BASE, SAMPLES, lambda **_: None, tmp_path)

    first, _ = attempt()
    files = sorted(tmp_path.glob("*.npz"))
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-30])
    files[2].write_bytes(b"no such format")
    again, facts = attempt()
    assert facts["scored"] == sum(len(SAMPLES["test" if "test" in file.name else "valid"]) for file in files[:3])
    assert capsys.readouterr().out.count("is damaged") == 3
    for split, columns in first.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(again[split][name], values)
    assert {file.suffix for file in tmp_path.iterdir()} == {".npz"}


def test_behaviours_left_out_are_added_up(tmp_path):
    from rarec.text.tokens import PromptTokens

    whole = [DATA.prompts.prompts(DATA.source.rows(s, r)).lengths for s in SAMPLES.values() for r in (False, True)]
    limit = int(max(lengths.max() for lengths in whole)) - 1
    short = PromptTokens.of(DATA.source.parts, DATA.tokenizer, limit)
    predictor = Predictor(DATA.source, short, DATA.answers, CPU, 500)
    _, facts = predict_all(predictor, DATA.model(), [], BASE, SAMPLES, lambda **_: None, tmp_path)
    expected = sum(int((lengths > limit).sum()) for lengths in whole)  # one behaviour each has to go
    assert facts["behaviours_dropped"] == expected > 0


def test_variants_are_known_by_their_names():
    for variant in [*VARIANTS, Variant("mixed", 0), Variant("retrieved", 123456)]:
        assert Variant.named(variant.name) == variant
    assert Variant("mixed", 42).name == "mixed-42"
    assert len({variant.label(h) for variant in VARIANTS for h in variant.histories()}) == 5


def test_settings_bound_each_split():
    settings = PredictionSettings(valid_samples=5, test_samples=12, seed=9)
    assert [settings.most(split) for split in SCORED] == [5, 12]
    for split in SCORED:
        drawn = draw(DATA.source.samples, split, settings.most(split), settings.seed)
        rows = DATA.source.samples.rows(split)
        assert len(drawn) == settings.most(split) < rows.stop - rows.start
        assert rows.start <= drawn.min() <= drawn.max() < rows.stop
    for wrong in ({"valid_samples": 1}, {"test_samples": 1}, {"batch_tokens": 10}, {"seed": -1}):
        with pytest.raises(ValidationError):
            PredictionSettings(**wrong)


def test_a_random_control_is_asked_with_random_histories_and_compared(adapters):
    """The mixed adapter with random histories, too: what similarity is worth in prompts alone."""
    control = Variant("mixed-random", 3)
    folders = [(adapters[0][0], adapters[0][1]), (control, adapters[1][1])]
    predictions, _ = predict(folders)
    drawn = PREDICTOR.source.randomised(3).rows(SAMPLES["test"], True)
    model = load_adapter(DATA.model(), adapters[0][1], BASE)
    expected, _ = score(model, DATA.prompts, drawn, DATA.answers, CPU, PREDICTOR.batch_tokens)
    label = "tuned on mixed, random (seed 3)"
    assert np.allclose(predictions["test"][label], expected, atol=1e-6)
    assert "tuned on mixed-random, random (seed 3)" in predictions["test"]
    candidate = "tuned on mixed, retrieved (seed 3)"
    assert controls([adapters[0][0], control]) == [
        ("tuned on mixed, recent (seed 3)", candidate),
        (label, candidate),
        ("tuned on mixed-random, random (seed 3)", candidate),
    ]


def test_controls_take_one_thing_away():
    """The same prompts but for their histories, or as many prompts."""
    modes = ("mixed-half", "retrieved", "random", "recent", "mixed-random")
    assert controls([Variant(mode, 3) for mode in modes]) == [
        ("tuned on recent, retrieved (seed 3)", "tuned on mixed-half, retrieved (seed 3)"),
        ("tuned on retrieved, retrieved (seed 3)", "tuned on mixed-half, retrieved (seed 3)"),
        ("tuned on random, random (seed 3)", "tuned on retrieved, retrieved (seed 3)"),
    ]
    assert controls([Variant("mixed-half", 3), Variant("recent", 4)]) == []
