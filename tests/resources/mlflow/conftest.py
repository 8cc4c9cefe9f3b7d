import pytest

from resources.mlflow.tracking import MlflowTracking


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory):
    """Folder of the embedded store that the tests share."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def tracking(store_folder):
    """An embedded store, created once."""
    tracking = MlflowTracking(
        tracking_uri=f"sqlite:///{store_folder}/db/mlflow.db",
        ui_url="http://127.0.0.1:5000/",
        artifact_root=str(store_folder / "artifacts"),
    )
    tracking.check()
    return tracking
