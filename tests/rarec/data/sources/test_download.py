import functools
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import tracemalloc
import zipfile

import pytest

from rarec.data.raw import read_raw
from rarec.data.sources.archives import LARGEST_RATIO, unpack
from rarec.data.sources.download import locate_source
from rarec.data.spec import DownloadSpec
from rarec.errors import InputError

WANTED = {"ratings.dat", "movies.dat", "users.dat"}


def zip_folder(folder, target, inside="ml-1m"):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"{inside}/{path.name}")
        file.writestr(f"{inside}/README", "not wanted")
    return target


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def archive(samples, tmp_path):
    folder = tmp_path / "data" / "ml-1m"
    folder.mkdir(parents=True)
    return zip_folder(samples / "ml-1m", folder / "ml-1m.zip")


# ---- finding


def test_files_in_the_users_folder(specs, samples, tmp_path):
    located = locate_source(specs["ml-1m"], samples, tmp_path)
    assert located.folder == samples / "ml-1m"
    assert located.source.format == "movielens-dat"
    assert names(tmp_path) == []


def test_files_one_folder_deeper(specs, samples, tmp_path):
    shutil.copytree(samples / "ml-1m", tmp_path / "data" / "ml-1m" / "ml-1m")
    located = locate_source(specs["ml-1m"], tmp_path / "data", tmp_path / "cache")
    assert located.folder == tmp_path / "data" / "ml-1m" / "ml-1m"


def test_archive_is_unpacked_into_the_cache_only(specs, archive, tmp_path):
    located = locate_source(specs["ml-1m"], tmp_path / "data", tmp_path / "cache")
    assert located.folder.is_relative_to(tmp_path / "cache")
    assert names(located.folder) == sorted(WANTED)
    assert names(archive.parent) == ["ml-1m.zip"]
    assert len(read_raw(specs["ml-1m"], located.folder).interactions) == 7
    assert names(located.folder.parent) == [located.folder.name], "nothing half done is left"


def test_demo_is_generated_once_and_needs_no_data_root(specs, tmp_path):
    first = locate_source(specs["demo"], None, tmp_path)
    stamp = (first.folder / "ratings.dat").stat().st_mtime_ns
    second = locate_source(specs["demo"], None, tmp_path)
    assert second == first
    assert (second.folder / "ratings.dat").stat().st_mtime_ns == stamp


def test_half_a_data_set_is_an_error_and_not_downloaded(specs, samples, tmp_path):
    folder = tmp_path / "ml-1m"
    shutil.copytree(samples / "ml-1m", folder)
    (folder / "movies.dat").unlink()
    message = (
        r"ml-1m: its files were not found, and only some of them are there\. "
        r"Put .* into .*; missing there: movies\.dat\."
    )
    with pytest.raises(InputError, match=message):
        locate_source(specs["ml-1m"], tmp_path, tmp_path / "cache")


def test_nothing_there_and_nothing_to_fetch(specs, tmp_path):
    message = (
        r"amazon-beauty: its files were not found, and there is no public archive to download\. "
        r"Put reviews_Beauty_5\.json\.gz, meta_Beauty\.json\.gz or amazon-beauty\.inter "
        r"\(from https://.*\) into "
    )
    with pytest.raises(InputError, match=message + r"<folder>/amazon-beauty and set RAREC_DATA to <folder>\."):
        locate_source(specs["amazon-beauty"], None, tmp_path)
    with pytest.raises(InputError, match=message + str(tmp_path / "amazon-beauty")):
        locate_source(specs["amazon-beauty"], tmp_path, tmp_path)
    with pytest.raises(
        InputError, match=r"not found \(RAREC_DATA is .*/nowhere, which does not exist\), and there is no public"
    ):
        locate_source(specs["amazon-beauty"], tmp_path / "nowhere", tmp_path)


# ---- downloading


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_download_with_checksum(specs, samples, server, tmp_path):
    folder, url = server
    archive = zip_folder(samples / "ml-1m", folder / "ml-1m.zip")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    download = DownloadSpec(url=f"{url}/ml-1m.zip", checksum=f"sha256:{digest}")
    spec = specs["ml-1m"].model_copy(update={"download": download})
    located = locate_source(spec, None, tmp_path / "cache")
    assert len(read_raw(spec, located.folder).interactions) == 7
    archive.unlink()
    assert locate_source(spec, None, tmp_path / "cache") == located, "the second time nothing is fetched"


def test_download_with_wrong_checksum(specs, samples, server, tmp_path):
    folder, url = server
    zip_folder(samples / "ml-1m", folder / "ml-1m.zip")
    spec = specs["ml-1m"].model_copy(
        update={"download": DownloadSpec(url=f"{url}/ml-1m.zip", checksum="md5:" + "0" * 32)}
    )
    with pytest.raises(
        InputError, match=r"downloading .*/ml-1m\.zip failed \(.*hash.*Put ratings\.dat, movies\.dat, users\.dat"
    ):
        locate_source(spec, None, tmp_path / "cache")


def test_download_that_fails_says_what_to_put_where(specs, server, tmp_path):
    _, url = server
    spec = specs["ml-1m"].model_copy(update={"download": DownloadSpec(url=f"{url}/gone.zip")})
    with pytest.raises(
        InputError, match=r"downloading .*/gone\.zip failed .*Put ratings\.dat, .* into .*/data/ml-1m\."
    ):
        locate_source(spec, tmp_path / "data", tmp_path / "cache")


def test_archive_without_the_files(specs, server, tmp_path):
    folder, url = server
    with zipfile.ZipFile(folder / "x.zip", "w") as file:
        file.writestr("other.txt", "x")
    spec = specs["ml-1m"].model_copy(update={"download": DownloadSpec(url=f"{url}/x.zip")})
    with pytest.raises(InputError, match=r"/x\.zip does not contain them\. Put ratings\.dat"):
        locate_source(spec, None, tmp_path / "cache")


# ---- archives


def make_zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def make_tar(path, *members, kind=tarfile.REGTYPE, link=""):
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, link
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../ratings.dat", "/tmp/ratings.dat", "a/../../ratings.dat", "..\\ratings.dat"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_path_leading_outside(tmp_path, make, name):
    archive = make(tmp_path / ("x.zip" if make is make_zip else "x.tgz"), (name, b"1"))
    with pytest.raises(InputError, match=r"not unpacked, as .* is a link or a path that leads outside"):
        unpack(archive, WANTED, tmp_path / "cache" / "deep")
    assert not list(tmp_path.rglob("ratings.dat"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_link_in_a_tar(tmp_path, kind):
    archive = make_tar(tmp_path / "x.tar.gz", ("ratings.dat", b""), kind=kind, link="/etc/passwd")
    with pytest.raises(InputError, match=r"not unpacked, as 'ratings\.dat' is a link"):
        unpack(archive, WANTED, tmp_path / "cache")


def test_link_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("ratings.dat")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=r"not unpacked, as 'ratings\.dat' is a link"):
        unpack(tmp_path / "x.zip", WANTED, tmp_path / "cache")


def test_size_is_bounded(tmp_path):
    archive = make_zip(tmp_path / "x.zip", ("ratings.dat", b"0" * (8 << 20)))
    with pytest.raises(InputError, match=f"its files are more than {LARGEST_RATIO} times as large as the archive"):
        unpack(archive, WANTED, tmp_path / "cache")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_what_surrounds_the_files_is_bounded_too(tmp_path, kind):
    """Headers of 64 MiB, which tarfile would read whole, and a file that nobody wants."""
    archive = make_tar(tmp_path / "x.tgz", ("other", b"0" * (64 << 20)), ("ratings.dat", b"1"), kind=kind)
    tracemalloc.start()
    with pytest.raises(InputError, match=f"its files are more than {LARGEST_RATIO} times as large as the archive"):
        unpack(archive, WANTED, tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_are_unpacked_without_bound(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as file:
        file.writestr("ratings.dat", b"1::2::3::4\n")
    with pytest.raises(
        InputError, match=r"damaged or incomplete \(ratings\.dat is compressed by a method other than deflate\)"
    ):
        unpack(tmp_path / "x.zip", WANTED, tmp_path / "cache")


def test_two_files_of_one_name(tmp_path):
    archive = make_zip(tmp_path / "x.zip", ("a/ratings.dat", b"1"), ("b/ratings.dat", b"2"))
    with pytest.raises(InputError, match=r"holds two files named 'ratings\.dat'"):
        unpack(archive, WANTED, tmp_path / "cache")


@pytest.mark.parametrize("cut", [30, -300])
def test_truncated_zip(archive, tmp_path, cut):
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"ml-1m\.zip: damaged or incomplete .*; get a complete copy"):
        unpack(archive, WANTED, tmp_path / "cache")
    assert not (tmp_path / "cache" / "unpacked").exists() or names(tmp_path / "cache" / "unpacked") == []


def test_altered_zip(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[120] ^= 0xFF
    archive.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"ml-1m\.zip: damaged or incomplete"):
        unpack(archive, WANTED, tmp_path / "cache")


def test_truncated_tar(samples, tmp_path):
    noise = hashlib.sha256(b"x").digest() * 2000
    archive = make_tar(tmp_path / "x.tgz", ("ratings.dat", bytes(b ^ (i % 251) for i, b in enumerate(noise))))
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"x\.tgz: damaged or incomplete"):
        unpack(archive, WANTED, tmp_path / "cache")


def test_empty_archive_file(tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(InputError, match=r"x\.zip: the file is empty"):
        unpack(tmp_path / "x.zip", WANTED, tmp_path / "cache")


def test_tar_is_read_like_a_zip(tmp_path):
    archive = make_tar(tmp_path / "x.tar.gz", ("ml/ratings.dat", b"1::2::3::4\n"), ("ml/other", b"x"))
    folder = unpack(archive, WANTED, tmp_path / "cache")
    assert names(folder) == ["ratings.dat"]
    assert (folder / "ratings.dat").read_bytes() == b"1::2::3::4\n"


def test_unpacked_folder_is_reused_and_follows_the_content(archive, tmp_path):
    first = unpack(archive, WANTED, tmp_path / "cache")
    stamp = (first / "ratings.dat").stat().st_mtime_ns
    assert unpack(archive, WANTED, tmp_path / "cache") == first
    assert (first / "ratings.dat").stat().st_mtime_ns == stamp
    make_zip(archive, ("ratings.dat", b"1::1::1::1\n"))
    assert unpack(archive, WANTED, tmp_path / "cache") != first
