"""The Dagster home of `make run` and `make ui`: the embedded one under RAREC_HOME, or the user's own."""

import os
import re
from pathlib import Path

import yaml

from rarec.errors import InputError, one_line
from resources.disk import require_address, require_room
from resources.settings import Installation

LAUNCHER = "pipelines.run_launcher_local"
OLD_LAUNCHER = re.compile(r"(\bmodule:\s*[\"']?)pipelines\.launcher(?![\w.])")  # what older versions call it
LEAST_BYTES = 10_000_000  # the databases of Dagster and MLflow


def prepare_dagster_home(installation: Installation, least_bytes: int = LEAST_BYTES) -> Path:
    """Create the home, point DAGSTER_HOME to it, and return it. If the user's own exists, nothing in it changes.

    A dagster.yaml that is already there keeps the user's changes. Only the old name of our run launcher is replaced.

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
    if settings.exists():
        text = settings.read_text(encoding="utf-8")
        current = OLD_LAUNCHER.sub(rf"\g<1>{LAUNCHER}", text)
    else:
        text, current = "", (Path(__file__).parent / "dagster.yaml").read_text(encoding="utf-8")
    if current != text:  # whole or not at all: another process may be reading it
        beside = settings.with_name(f".dagster.yaml.{os.getpid()}")
        beside.write_text(current, encoding="utf-8")
        beside.replace(settings)
