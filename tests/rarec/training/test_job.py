from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError
from rella_toys import TEMPLATE

from rarec.champions.rella import AskJob
from rarec.raserec.finetune import FinetuneJob
from rarec.raserec.pretrain import PretrainJob
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.rella.language_model import LanguageModelSettings
from rarec.rella.predict import Adapter, PredictionSettings, PredictJob
from rarec.rella.small_llama import SmallLlamaJob
from rarec.rella.tuning import TuningJob, TuningSettings
from rarec.training.engine_settings import EngineSettings
from rarec.training.job import Place, read_job, write_job

HERE = Path("/artifacts")
ANSWERS = {"yes": "Yes", "no": "No"}
TEXT = {name: HERE / name for name in ("interactions", "ctr_samples", "textual_samples")}
PROMPTS = {
    **TEXT,
    **ANSWERS,
    "base_language_model": HERE / "base_language_model",
    "retrieval_enhanced_samples": HERE / "retrieval_enhanced_samples",
    "base": "c0ffee",
    "cache": HERE / "hub",
}
JOBS = [
    PretrainJob(settings=PretrainSettings(dim=8), sequences=HERE / "sequences"),
    FinetuneJob(
        settings=FinetuneSettings(beta=0.3),
        sequences=HERE / "sequences",
        encoder=HERE / "encoder",
        encoder_fingerprint="c0ffee",
        bank=HERE / "bank",
    ),
    SmallLlamaJob(settings=LanguageModelSettings(layers=1), **TEXT, **ANSWERS, has_clock=True),
    TuningJob(**PROMPTS, settings=TuningSettings(epochs=2), seed=5, training_samples=HERE / "mixed-5"),
    TuningJob(
        **PROMPTS, settings=TuningSettings(), seed=5, training_samples=HERE / "mixed-5", histories=HERE / "histories"
    ),
    PredictJob(
        **PROMPTS,
        settings=PredictionSettings(seed=2),
        adapters=(Adapter(name="mixed-5", folder=HERE / "mixed-5"), Adapter(name="recent-5", folder=HERE / "recent-5")),
    ),
    AskJob(
        name="candidate",
        model={"adapter": HERE / "mixed-5", "item_catalog": HERE / "item_catalog"},
        base="c0ffee",
        template=TEMPLATE,
        behaviours=3,
        cache=HERE / "hub",
        interactions=HERE / "interactions",
        targets=HERE / "targets.npy",
        batch_tokens=500,
    ),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_every_job_comes_back_from_its_file_and_names_its_worker(tmp_path, job):
    place = Place(output=tmp_path / "output", checkpoint=tmp_path / "checkpoint")
    write_job(tmp_path / "job.json", job, place)
    assert read_job(tmp_path / "job.json", type(job)) == (job, place)
    assert job.module == type(job).__module__
    assert callable(import_module(job.module).work)


def test_the_engine_learns_what_was_set_and_what_was_not(tmp_path):
    """`zero_stage` = 0 by default agrees with DeepSpeed's own stage 2; set to 0 it would not."""
    engine = EngineSettings(deepspeed={"zero_optimization": {"stage": 2}})
    write_job(tmp_path / "job.json", JOBS[0], Place(output=tmp_path, checkpoint=tmp_path, engine=engine))
    _, place = read_job(tmp_path / "job.json", PretrainJob)
    assert place.engine == engine
    assert place.engine.stage == 2


def test_a_job_of_another_kind_is_refused(tmp_path):
    write_job(tmp_path / "job.json", JOBS[0], Place(output=tmp_path, checkpoint=tmp_path))
    with pytest.raises(ValidationError, match=r"encoder_fingerprint\n  Field required"):
        read_job(tmp_path / "job.json", FinetuneJob)
    with pytest.raises(ValidationError, match=r"shots\n  Extra inputs are not permitted"):
        PretrainJob(settings=PretrainSettings(), sequences=HERE, shots=HERE)
