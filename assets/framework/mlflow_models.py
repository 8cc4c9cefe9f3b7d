"""What an MLflow model needs besides its files, and whether a training has logged one."""

from importlib import metadata

from rarec.errors import InputError
from resources.artifacts.store import Artifact
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED


def pinned(*names: str) -> list[str]:
    """Pip requirements with the installed versions, without local tags such as +cpu; absent packages are unpinned."""
    found = {name: _version(name) for name in names}
    return [f"{name}=={version.split('+')[0]}" if version else name for name, version in found.items()]


def logged_model(trained: Artifact) -> str | None:
    """URI of the model that a training logged; None if MLflow was unavailable then."""
    uri: str = trained.metadata["values"]["mlflow_model"]
    return None if uri == MODEL_NOT_LOGGED else uri


def require_logged(uri: str | None, asset: str) -> str:
    """The URI of a model that had to be logged now. Raises InputError if MLflow was unavailable."""
    if uri is None:
        raise InputError(f"the model was not logged because MLflow was unavailable; materialise {asset} again")
    return uri


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
