from fake_run import FakeRun

from assets.framework.training import training_outcome


def history(**summary):
    epochs = [{"epoch": 1.0, "loss": 2.0, "AUC": 0.5, "train_seconds": 4.0, "validation_seconds": 1.0}]
    least = {"history": epochs, "best_epoch": 0, "seconds": 5.04, "peak_memory_mib": 100.4, "world_size": 2}
    return training_outcome(FakeRun(), {**least, **summary}, ("AUC",), ("AUC",))


def test_a_training_tells_what_it_took():
    ranks = [
        {"rank": 0, "seconds": 5.0, "samples": 40, "peak_memory_mib": 100.0},
        {"rank": 1, "seconds": 5.0, "samples": 40, "peak_memory_mib": 90.0},
    ]
    outcome = history(samples=80, ranks=ranks)
    shown = {name: outcome.values[name] for name in ("seconds", "samples", "samples_per_s", "peak_memory_mib")}
    assert shown == {"seconds": 5.0, "samples": 80.0, "samples_per_s": 20.0, "peak_memory_mib": 100.4}
    assert outcome.metrics["samples_per_s"] == 20.0
    assert outcome.markdown["ranks"].splitlines()[3].split(" | ")[-1] == "90.0 |"
    assert "gpu_seconds" not in outcome.values
    on_gpus = [{**rank, "gpu_seconds": 4.5, "gpu_peak_memory_mib": 2000 + rank["rank"]} for rank in ranks]
    values = history(samples=80, ranks=on_gpus).values
    assert (values["gpu_seconds"], values["gpu_peak_memory_mib"]) == (9.0, 2001.0)


def test_a_training_that_tells_little_is_shown_too():
    outcome = history()
    assert outcome.values["seconds"] == 5.0
    assert not {"samples", "samples_per_s", "gpu_seconds"} & outcome.values.keys()
    assert set(outcome.markdown) == {"history"}
