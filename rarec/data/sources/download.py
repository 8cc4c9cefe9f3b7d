"""Finding a data set's files: in the user's folder, in an archive lying there, or in the publisher's archive."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pooch

from rarec.data.sources.archives import find_archives, unpack
from rarec.data.sources.demo import GENERATOR_VERSION, DemoSettings, generate_demo
from rarec.data.sources.files import whole_folder
from rarec.data.spec import DatasetSpec, SourceSpec
from rarec.errors import InputError

INCOMING = "incoming"  # folder of a data set in which new files arrive; what lies there was not published


@dataclass(frozen=True)
class Located:
    """Where a data set's files are, and which of its sources they are."""

    folder: Path
    source: SourceSpec


def find_source(spec: DatasetSpec, folder: Path) -> SourceSpec | None:
    """The first source of `spec` whose files all lie in `folder`."""
    for source in spec.sources:
        if all((folder / name).is_file() for name in spec.files(source).values()):
            return source
    return None


def locate_source(spec: DatasetSpec, data_root: Path | None, cache: Path) -> Located:
    """Where the data set's files are; fetches, unpacks or generates them into `cache` if need be.

    Looked through in this order: `data_root/<name>`, its direct subfolders, archives lying in it, the publisher's
    archive.

    Args:
        spec: the data set.
        data_root: the user's folder of data sets (RAREC_DATA); None if there is none. Never written to.
        cache: folder for what is unpacked, fetched or generated.

    Raises:
        InputError: nothing found and nothing to fetch; lists the files and the folder they belong in.
    """
    synthetic = next((source for source in spec.sources if source.demo), None)
    if synthetic and synthetic.demo:
        return Located(_generated(synthetic.demo, cache), synthetic)
    folder = data_root / spec.name if data_root else None
    wanted = {name for source in spec.sources for name in spec.files(source).values()}
    wanted |= {name for source in spec.sources for name in spec.optional_files(source).values()}
    if folder and folder.is_dir():
        nested = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != INCOMING)
        for place in (folder, *nested):
            if source := find_source(spec, place):
                return Located(place, source)
        for archive in find_archives(folder):
            unpacked = unpack(archive, wanted, cache)
            if source := find_source(spec, unpacked):
                return Located(unpacked, source)
        if any((folder / name).exists() for name in wanted):
            # Half a data set of the user's own is a mistake to be told, not a reason to fetch another copy.
            raise InputError(_not_found(spec, folder, "some others of it are there"))
    if not spec.download:
        raise InputError(_not_found(spec, folder, "no public archive of it is known here"))
    unpacked = unpack(_fetch(spec, folder, cache), wanted, cache)
    if source := find_source(spec, unpacked):
        return Located(unpacked, source)
    raise InputError(_not_found(spec, folder, f"{spec.download.url} does not hold them"))


def _generated(settings: DemoSettings, cache: Path) -> Path:
    """Folder with the demo files; whole or not there, and named after its settings and the generator's version."""
    identity = {"version": GENERATOR_VERSION, **settings.model_dump()}
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    target = cache / "generated" / f"demo-{digest}"
    if target.is_dir():
        return target
    with whole_folder(target) as folder:
        generate_demo(settings, folder)
    return target


def _fetch(spec: DatasetSpec, folder: Path | None, cache: Path) -> Path:
    assert spec.download is not None
    url = spec.download.url
    try:
        path = pooch.retrieve(
            url, known_hash=spec.download.checksum, fname=url.rsplit("/", 1)[-1], path=cache / "downloads" / spec.name
        )
    # requests and pooch raise many unrelated types for a network out of reach, a wrong checksum or a full disk.
    except Exception as error:
        raise InputError(_not_found(spec, folder, f"fetching {url} failed ({error})")) from error
    return Path(path)


def _not_found(spec: DatasetSpec, folder: Path | None, why: str) -> str:
    forms = [", ".join(spec.files(source).values()) for source in spec.sources]
    homepage = f" (from {spec.homepage})" if spec.homepage else ""
    where = f"into {folder}" if folder else f"into <folder>/{spec.name} and set RAREC_DATA to <folder>"
    lacking = []
    if folder and folder.is_dir():
        # The form that is nearest to complete is the one the user means.
        lacking = min(
            (
                [name for name in spec.files(source).values() if not (folder / name).is_file()]
                for source in spec.sources
            ),
            key=len,
        )
    missing = f"; missing there: {', '.join(lacking)}" if lacking else ""
    gone = "" if folder is None or folder.parent.is_dir() else f" (RAREC_DATA is {folder.parent}, which does not exist)"
    return (
        f"{spec.name}: its files were not found{gone}, and {why}. Put {' or '.join(forms)}{homepage} {where}{missing}."
    )
