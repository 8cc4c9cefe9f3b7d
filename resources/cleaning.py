"""What may be deleted: artifacts and working folders that are old and that nothing refers to."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from resources.artifacts import ArtifactStore, Manifest

Identity = tuple[str, str, str]
"""Asset, partition, fingerprint."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of an artifact or a working folder: ``kept_for`` says why it stays; empty if it may go."""

    what: str
    bytes: int
    kept_for: str


def judge_artifacts(
    manifests: Iterable[Manifest],
    in_use: Iterable[Identity],
    days: float,
    damaged: Mapping[str, Sequence[str]] | None = None,
) -> dict[Identity, Verdict]:
    """A verdict on every artifact.

    Args:
        manifests: of all artifacts in the store.
        in_use: what is in use itself; all that it was made from, directly or not, is kept with it.
        days: younger artifacts stay, too.
        damaged: partition -> its manifests that cannot be read; any other artifact there may be what one was made
            from, so all of them stay.
    """
    damaged = damaged or {}
    every = {(one.asset, one.partition, one.fingerprint): one for one in manifests}
    by_version: dict[tuple[str, str], list[Identity]] = {}
    for identity, manifest in every.items():
        for version in (manifest.data_version, manifest.fingerprint):  # inputs are told by one or the other
            by_version.setdefault((manifest.partition, version), []).append(identity)
    kept: dict[Identity, str] = {}
    pending = [(identity, "in use") for identity in in_use]
    while pending:
        identity, why = pending.pop()
        if identity in kept or identity not in every:
            continue
        kept[identity] = why
        manifest = every[identity]
        for version in manifest.inputs.values():
            made_from = by_version.get((manifest.partition, version), [])
            pending += [(one, f"{manifest.asset} {manifest.fingerprint[:8]} was made from it") for one in made_from]
    limit = datetime.now(UTC) - timedelta(days=days)
    verdicts = {}
    for identity, manifest in every.items():
        young = "" if datetime.fromisoformat(manifest.created) < limit else f"younger than {days:g} days"
        size = sum(record.bytes for record in manifest.files.values())
        needed = "".join(f"may be needed: {path} is damaged" for path in damaged.get(manifest.partition, [])[:1])
        verdicts[identity] = Verdict("/".join(identity), size, kept.get(identity) or young or needed)
    return verdicts


def judge_work(work: Path, days: float, is_busy: Callable[[Path], bool]) -> dict[Path, Verdict]:
    """A verdict on every working folder, ``work/<asset>/<fingerprint>``."""
    verdicts = {}
    for folder in sorted(work.glob("*/*")):
        if not folder.is_dir():
            continue
        files = [path for path in folder.rglob("*") if path.is_file()]
        newest = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
        age_days = (time.time() - newest) / 86_400
        why = "a run works in it" if is_busy(folder) else f"younger than {days:g} days" if age_days < days else ""
        verdicts[folder] = Verdict(
            f"work/{folder.parent.name}/{folder.name}", sum(p.stat().st_size for p in files), why
        )
    return verdicts


def remove(store: ArtifactStore, artifacts: dict[Identity, Verdict], folders: dict[Path, Verdict]) -> int:
    """Delete whatever may go; the bytes that were freed."""
    freed = 0
    for identity, verdict in artifacts.items():
        if not verdict.kept_for:
            store.remove(*identity)
            freed += verdict.bytes
    for folder, verdict in folders.items():
        if not verdict.kept_for:
            shutil.rmtree(folder)
            freed += verdict.bytes
    return freed
