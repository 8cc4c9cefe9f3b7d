"""What to do if MLflow cannot be used."""

import pytest

from resources.mlflow.advice import deleted_experiment, unusable

SERVER = "http://mlflow:5000"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "MLflow at URI cannot be used. Disk full: "),
        (
            PermissionError(13, "Permission denied", "FOLDER/mlflow.db"),
            "FOLDER/mlflow.db cannot be written to. Ch",
        ),
        (
            ValueError("attempt to write a readonly database"),
            "A database in FOLDER cannot be written to. Change",
        ),
        (
            ValueError("file is not a database"),
            "The MLflow store FOLDER/mlflow.db is damaged (file is not a database)",
        ),
        (
            ValueError("x table runs already exists [SQL: y]"),
            "is damaged (table runs already exists). Restore it from",
        ),
        (
            ValueError("\n  bad\n"),
            "MLflow at URI cannot be used: ValueError: bad. Start the tracking server, corre",
        ),
    ],
)
def test_an_error_of_a_local_store_has_its_own_advice(tmp_path, error, message):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    if isinstance(error, PermissionError):
        error.filename = f"{tmp_path}/mlflow.db"
    text = str(unusable(uri, error, "RAREC_HOME"))
    assert message.replace("URI", uri).replace("FOLDER", str(tmp_path)) in text
    assert "\n" not in text


def test_a_server_is_not_judged_by_the_disks_of_this_machine():
    text = str(unusable(SERVER, OSError(28, "No space left on device")))
    assert text.startswith(f"MLflow at {SERVER} cannot be used: OSError: [Errno 28] No space left on device. Start the")


def test_the_experiment_of_a_server_is_restored_through_it_and_deleted_in_its_database():
    text = str(deleted_experiment(SERVER, "rarec", "7"))
    assert f"MLFLOW_TRACKING_URI={SERVER} .venv/bin/mlflow experiments restore --experiment-id 7 ; or" in text
    assert text.endswith(".venv/bin/mlflow gc --backend-store-uri '<its database>' --experiment-ids 7")
