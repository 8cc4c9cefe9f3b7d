"""Running a script of `benchmarks/peers` in its own environment, through Dagster Pipes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.framework.stage import Job, Request
from rarec.data.sources.files import sha256_of
from rarec.errors import InputError
from resources.workers.whole_lines import WholeLineReader

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "peers"
# What `rarec.training.engine.keep_freed_memory` is to our trainings, and huge pages: sampled softmax allocates hundreds
# of MiB a step, and an epoch of eSASRec took 1.4 times as long without this. C libraries other than glibc ignore it.
MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(100 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def require_peers(request: Request[Any]) -> None:
    """Check that the environment of the peers has been built.

    Raises:
        InputError: It has not.
    """
    python = request.workspace.peers_python
    if not python.is_file():
        raise InputError(f"there is no environment of the peers ({python}); build it with `make peers`")


def versions_of(script: str) -> dict[str, str]:
    """What a peer's figures depend on besides data and settings: the libraries and the script."""
    return {name: sha256_of(SCRIPTS / name) for name in ("requirements.txt", script)}


def run_peer(job: Job[Any], script: str, given: Mapping[str, Any], name: str) -> Path:
    """Run a script with what is ``given``, and return the folder ``name`` of its files. Its log goes to Dagster.

    Its ``checkpoint`` is a folder that the next attempt finds again.
    """
    output, checkpoint = job.folder / name, job.workdir / name / "checkpoint"
    output.mkdir()
    checkpoint.mkdir(parents=True, exist_ok=True)
    file = output / "job.json"
    file.write_text(json.dumps({**given, "output": str(output), "checkpoint": str(checkpoint)}))
    command = [str(job.workspace.peers_python), str(SCRIPTS / script), str(file)]
    reader = WholeLineReader(str(output / "messages"))
    dg.PipesSubprocessClient(message_reader=reader).run(command=command, context=job.context, env=MEMORY)
    file.unlink()
    return output
