"""Finding a data set's files: in the user's folder, in an archive there, or in the publisher's archive."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pooch

from rarec.data.source_spec import SourceSpec
from rarec.data.sources.archives import find_archives, unpack
from rarec.data.sources.demo import GENERATOR_VERSION, DemoSettings, generate_demo
from rarec.data.sources.files import find_files, whole_folder
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError

INCOMING = "incoming"  # subfolder of a data set for new files, which were not published


@dataclass(frozen=True)
class Located:
    """Where a data set's files are, and which of its sources they belong to."""

    folder: Path
    source: SourceSpec


def find_source(spec: DatasetSpec, folder: Path) -> SourceSpec | None:
    """The first source of `spec` whose files are all in `folder`."""
    for source in spec.sources:
        if all(find_files(folder, name) for name in spec.files(source).values()):
            return source
    return None


def locate_source(spec: DatasetSpec, data_root: Path | None, cache: Path) -> Located:
    """Locate the data set's files; download, unpack or generate them into `cache` if need be.

    The search goes through `data_root/<name>`, its direct subfolders, archives in it, and the publisher's archive.

    Args:
        spec: The data set.
        data_root: The user's folder of data sets (RAREC_DATA), or None. Nothing is ever written there.
        cache: Folder for what is downloaded, unpacked or generated.

    Raises:
        InputError: The files were not found and cannot be downloaded. The message lists them and where to put them.
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
        if any(find_files(folder, name) for name in wanted):
            # An incomplete data set of the user's is a mistake to report, not a reason to download another copy.
            raise InputError(_not_found(spec, folder, "only some of them are there"))
    if not spec.download:
        raise InputError(_not_found(spec, folder, "there is no public archive to download"))
    unpacked = unpack(_fetch(spec, folder, cache), wanted, cache)
    if source := find_source(spec, unpacked):
        return Located(unpacked, source)
    raise InputError(_not_found(spec, folder, f"{spec.download.url} does not contain them"))


def _generated(settings: DemoSettings, cache: Path) -> Path:
    """Folder with the demo files, named after the settings and the generator's version."""
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
    # requests and pooch raise many unrelated types if there is no network, the checksum is wrong or the disk is full.
    except Exception as error:
        raise InputError(_not_found(spec, folder, f"downloading {url} failed ({error})")) from error
    return Path(path)


def _not_found(spec: DatasetSpec, folder: Path | None, why: str) -> str:
    forms = [", ".join(spec.files(source).values()) for source in spec.sources]
    homepage = f" (from {spec.homepage})" if spec.homepage else ""
    where = f"into {folder}" if folder else f"into <folder>/{spec.name} and set RAREC_DATA to <folder>"
    lacking = []
    if folder and folder.is_dir():
        # The user most likely means the form that is nearest to complete.
        lacking = min(
            ([name for name in spec.files(source).values() if not find_files(folder, name)] for source in spec.sources),
            key=len,
        )
    missing = f"; missing there: {', '.join(lacking)}" if lacking else ""
    gone = "" if folder is None or folder.parent.is_dir() else f" (RAREC_DATA is {folder.parent}, which does not exist)"
    return (
        f"{spec.name}: its files were not found{gone}, and {why}. Put {' or '.join(forms)}{homepage} {where}{missing}."
    )
