"""Local folders that assets read from and work in."""

import os
from pathlib import Path

import dagster as dg
from pydantic import Field

from rarec.data.incoming.ledger import Ledger
from rarec.data.sources.download import INCOMING
from rarec.data.spec import DatasetSpec, Declared, load_specs
from resources.incoming import IncomingFiles
from resources.settings import PEERS_PYTHON, SETTLE_S


class Workspace(dg.ConfigurableResource):
    """Where raw data, data set declarations, caches and working folders are."""

    data: str = Field(description="Raw data sets, one folder each (RAREC_DATA).")
    datasets: str = Field(description="Folder of TOML files that declare the user's own data sets; need not exist.")
    cache: str = Field(description="Unpacked, downloaded and generated files; may be deleted at any time.")
    work: str = Field(description="Working folders of trainings: job, log and checkpoint.")
    incoming: str = Field(
        default="", description="Folder or fsspec URL where new files arrive (RAREC_INCOMING). Empty means `data`."
    )
    ledgers: str = Field(description="Ledgers of incoming files, one folder a data set.")
    peers: str = Field(default=PEERS_PYTHON, description="Python of the environment of other libraries (RAREC_PEERS).")
    settle_s: float = Field(
        default=SETTLE_S,
        ge=0,
        description="Seconds that a new file must stay unchanged before it is read (RAREC_SETTLE).",
    )

    @property
    def peers_python(self) -> Path:
        """Python of the environment that `make peers` builds."""
        return Path(__file__).parents[1] / self.peers  # an absolute path stands for itself

    @property
    def hub_cache(self) -> Path:
        """Language models downloaded from a hub."""
        return Path(self.cache) / "hub"

    def workdir(self, asset: str, fingerprint: str) -> Path:
        """Where this artifact is trained. The fingerprint is the key, so that a training resumes after a crash."""
        return Path(self.work) / asset / fingerprint

    def spec(self, name: str) -> DatasetSpec:
        """The declaration of the data set called ``name``."""
        return known_specs(Path(self.datasets)).find(name)

    def incoming_files(self, name: str) -> IncomingFiles:
        """Where new files of the data set called ``name`` arrive."""
        return IncomingFiles(f"{(self.incoming or self.data).rstrip('/')}/{name}/{INCOMING}")

    def ledger(self, name: str) -> Ledger:
        """What was taken in from the new files of the data set called ``name``."""
        return Ledger(Path(self.ledgers) / name)


def known_specs(user_folder: Path) -> Declared:
    """Built-in data sets and those of ``user_folder``, if that exists."""
    return load_specs(*([user_folder] if os.path.lexists(user_folder) else []))
