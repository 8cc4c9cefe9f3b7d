"""What an MLflow model needs besides its files."""

from importlib import metadata


def pinned(*names: str) -> list[str]:
    """Pip requirements with the installed versions, without local tags such as +cpu; absent packages are unpinned."""
    found = {name: _version(name) for name in names}
    return [f"{name}=={version.split('+')[0]}" if version else name for name, version in found.items()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
