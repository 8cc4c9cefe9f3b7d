"""The Dagster home of `make run` and `make ui`: the embedded one under RAREC_HOME, or the user's own."""

import hashlib
import os
import re
from pathlib import Path

import yaml

from rarec.errors import InputError, one_line
from resources.disk import require_address, require_room
from resources.settings import Installation

LAUNCHER = "pipelines.run_launcher_local"
OLD_LAUNCHER = re.compile(r"(\bmodule:\s*[\"']?)pipelines\.launcher(?![\w.])")  # what older versions call it
# The dagster.yaml of older versions (sha256): one that nobody has changed is replaced by the present one.
OLDER = (
    "8e061eae17612d3a66ba5f076c55f5b38c21c9cb01d34525c012eca8b35277e3",
    "3665eef369a605661010c436e37345e00bfa3dd0b001b723ed757d91ab128380",
    "76c2b8b43a138356c426d8fff4bddd542627b2eef0e19099ec8013927bd428a9",
    "e9c8175f389292445d84bc05a93bf03f3a04bc7e3d85b6b8b5f638fcd7295702",
    "80d98778133737d9aaf062facf78b9c35610f86ea265b3cdd0aafc7bd675215e",
)
LEAST_BYTES = 10_000_000  # the databases of Dagster and MLflow


def prepare_dagster_home(installation: Installation, least_bytes: int = LEAST_BYTES) -> Path:
    """Create the home, point DAGSTER_HOME to it, and return it. If the user's own exists, nothing in it changes.

    A dagster.yaml that is already there keeps the user's changes; only the old name of our run launcher is replaced.
    One that an older version made, and nobody changed, becomes the present one.

    Raises:
        InputError: the home or RAREC_HOME cannot be used, the disk has less than ``least_bytes`` free, or the
            dagster.yaml cannot be read.
    """
    given = os.environ.get("DAGSTER_HOME", "").strip()
    require_room(installation.root, "RAREC_HOME", least_bytes)
    # Dagster itself refuses a relative path and a folder that does not exist.
    home = Path(os.path.abspath(os.path.expanduser(given))) if given else installation.dagster
    setting = "DAGSTER_HOME" if given else "RAREC_HOME"
    if given:
        require_room(home, setting, least_bytes)
    try:
        require_address(home)
        if not given or not home.is_dir():
            _make(home)
        yaml.safe_load(_settings(home).read_text(encoding="utf-8-sig") if _settings(home).exists() else "")
    except OSError as error:
        raise InputError(f"{setting}: {error.filename or home}: {error.strerror}; correct it or {setting}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{_settings(home)} is not valid YAML: {one_line(error)}; correct or delete it.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{_settings(home)} is not valid UTF-8; save it as UTF-8, or delete it.") from error
    except ValueError as error:
        raise InputError(f"{setting}: {error}.") from error
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def _settings(home: Path) -> Path:
    return (home / "dagster.yaml").resolve()  # a link stays one


def _make(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    settings = _settings(home)
    text = settings.read_text(encoding="utf-8") if settings.exists() else ""
    if not settings.exists() or hashlib.sha256(text.encode()).hexdigest() in OLDER:
        current = (Path(__file__).parent / "dagster.yaml").read_text(encoding="utf-8")
    else:
        current = OLD_LAUNCHER.sub(rf"\g<1>{LAUNCHER}", text)
    if current != text:  # whole or not at all: another process may be reading it
        beside = settings.with_name(f".dagster.yaml.{os.getpid()}")
        beside.write_text(current, encoding="utf-8")
        beside.replace(settings)
