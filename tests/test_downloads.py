"""Downloads are by https, checked, limited, and whole or not there; what is packed in them stays in its folder."""

import gzip
import hashlib
import http.server
import io
import os
import stat
import tarfile
import time
import zipfile
from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import CERTIFICATE, served

from advtrain import archives, downloads
from advtrain.archives import gunzip, unpack
from advtrain.data_known import SOURCES
from advtrain.downloads import Remote, download
from advtrain.errors import FileError

CONTENT = bytes(range(256)) * 500
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def answering(answer):
    """A handler of requests that answers each with what `answer(handler)` writes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    return Handler


def says(content=CONTENT, length=None, code=200, **headers):
    """An answer with this content; the length as it is, another one, or none."""

    def answer(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length is not False:
            handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def remote(address, **changes):
    return Remote(**{"url": f"{address}file.bin", "size": len(CONTENT), "checksum": SHA256, **changes})


def refused(address, tmp_path, message, **changes):
    """The download fails with this message; what was there stays, and nothing else comes."""
    for there in (False, True):
        folder = tmp_path / f"folder-{there}"
        folder.mkdir(exist_ok=True)
        if there:
            (folder / "file.bin").write_bytes(b"as it was")
        with pytest.raises(FileError, match=f"cannot download .*file.bin: .*{message}.* Do something else.$"):
            download(remote(address, **changes), folder / "file.bin", advice="Do something else.")
        assert [path.read_bytes() for path in folder.iterdir()] == [b"as it was"] * there


def test_what_is_known_comes_whole(tmp_path, trusted):
    with served(answering(says())) as address:
        path = download(remote(address), tmp_path / "new" / "file.bin")
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ["file.bin"]
    with served(answering(says(length=False))) as address:  # which servers may do
        assert download(remote(address), path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (says(CONTENT[:-1] + b"\0"), f"has the SHA-256 [0-9a-f]{{64}} and not {SHA256}: it is another file by now"),
        (says(CONTENT[:-1]), "has 127999 bytes and not 128,000: it is another file by now"),
        (says(CONTENT + b"\0"), "has 128001 bytes and not 128,000"),
        (says(CONTENT[:1000], length=len(CONTENT)), "ended after 1,000 of 128,000 bytes|broke off"),
        (says(CONTENT[:1000], length=False), "ended after 1,000 of 128,000 bytes"),
        (says(CONTENT * 100, length=False), "sends more than the 128,000 bytes"),
        (says(CONTENT, length="many"), "has many bytes and not 128,000"),
        (says(gzip.compress(CONTENT), Content_Encoding="gzip"), "bytes and not 128,000"),
        (says(b"gone", code=404), "does not answer: HTTP Error 404: Not Found"),
        (says(b"busy", code=503), "does not answer: HTTP Error 503"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n"), "does not answer"),
        (lambda handler: None, "does not answer"),
    ],
    ids=["changed", "short", "long", "cut", "stopped", "endless", "length", "packed", "404", "503", "other", "mute"],
)  # fmt: skip
def test_another_answer_is_refused_and_removed(tmp_path, trusted, answer, message):
    with served(answering(answer)) as address:
        refused(address, tmp_path, message)


def test_the_md5_is_checked_where_no_more_is_known(tmp_path, trusted):
    digest = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    with served(answering(says())) as address:
        assert download(remote(address, checksum=digest), tmp_path / "x").read_bytes() == CONTENT
        refused(address, tmp_path, f"has the MD5 {digest} and not 0000", checksum="0" * 32)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "ftp://127.0.0.1:9/", "file:" + "///etc/", "data:text/plain,", "//x/", ""]
)
def test_no_other_way_than_https_is_tried(tmp_path, monkeypatch, url):
    monkeypatch.setattr(downloads, "opener", lambda: pytest.fail("it was tried"))
    refused(url, tmp_path, "is not an address of https")


def test_the_opener_itself_knows_no_other_way(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("x")
    monkeypatch.setenv("no_proxy", "*")
    for url in ("http://127.0.0.1:9/", "ftp://127.0.0.1:9/x", (tmp_path / "secret").as_uri(), "data:text/plain,x"):
        with pytest.raises(OSError, match="unknown url type"):
            downloads.opener().open(url, timeout=1)


def test_a_server_may_send_on_by_https_and_not_by_http(tmp_path, trusted):
    asked = []
    with (
        served(answering(says())) as last,
        served(answering(lambda handler: asked.append(1)), certificate=None) as open_to_all,
        served(answering(says(b"", code=302, Location=f"{last}other.bin"))) as first,
        served(answering(says(b"", code=302, Location=f"{open_to_all}other.bin"))) as down,
        served(answering(says(b"", code=307, Location="file:" + "///etc/passwd"))) as here,
    ):
        assert download(remote(first), tmp_path / "x").read_bytes() == CONTENT
        refused(down, tmp_path, f"sends on to {open_to_all}other.bin, which is not https")
        refused(here, tmp_path, "not https|HTTP Error 307")
    assert not asked


def test_a_server_that_sends_round_in_circles_is_given_up(tmp_path, trusted):
    def around(handler):
        says(b"", code=302, Location=handler.path + "x")(handler)

    with served(answering(around)) as address:
        refused(address, tmp_path, "does not answer: HTTP Error 302")


def test_a_server_that_nobody_vouches_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with served(answering(says())) as address:
        refused(address, tmp_path, "certificate verify failed")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))  # the control
        assert download(remote(address), tmp_path / "x").read_bytes() == CONTENT


def test_a_server_that_falls_silent_is_given_up(tmp_path, trusted, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)

    def answer(handler):
        says(CONTENT[:100], length=len(CONTENT))(handler)
        handler.wfile.flush()
        time.sleep(0.8)

    with served(answering(answer)) as address:
        refused(address, tmp_path, "broke off: .*timed out")
    with served(answering(lambda handler: time.sleep(0.8))) as address:
        refused(address, tmp_path, "does not answer: .*timed out")


def test_a_server_that_drips_is_given_up(tmp_path, trusted, monkeypatch):
    monkeypatch.setattr(downloads, "PATIENCE", 0)
    monkeypatch.setattr(downloads, "SLOWEST", 10 * len(CONTENT))  # a tenth of a second for all of it

    def answer(handler):
        says(b"", length=len(CONTENT))(handler)
        for byte in CONTENT[:50]:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)

    with served(answering(answer)) as address:
        began = time.monotonic()
        refused(address, tmp_path, "is slower than 1280 kB a second")
        assert time.monotonic() - began < 5


def test_a_full_disk_is_no_fault_of_the_server(tmp_path, trusted, monkeypatch):
    import builtins
    import errno

    own = builtins.open

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "open", lambda path, mode: Full() if "w" in mode else own(path, mode), raising=False)
    with served(answering(says())) as address:
        with pytest.raises(FileError, match=r"cannot write .*file\.bin: No space left on device$"):
            download(remote(address), tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_all_that_is_fetched_is_known_and_comes_by_https():
    for name, source in SOURCES.items():
        assert bool(source.files) == (name != "digits")
        for file in source.files:
            assert file.url.startswith("https://") and 1000 < file.size < 2**28
            assert len(file.checksum) == (32 if name == "tiny-imagenet" else 64) and int(file.checksum, 16)


def test_what_torchvision_knows_of_the_same_files_agrees():
    """Its names, and so its readers; MD5 and SHA-256 of one file cannot be compared without it."""
    from torchvision import datasets

    for source in SOURCES.values():
        if source.torchvision:
            kind = getattr(datasets, source.torchvision)
            names = {file.name for file in source.files}
            if hasattr(kind, "resources"):
                assert names == {name for name, _ in kind.resources}
            elif hasattr(kind, "split_list"):
                assert names == {kind.split_list[part][1] for part in ("train", "test")}
            else:
                assert names == {kind.filename} and source.files[0].url == kind.url


# Archives.


def zipped(path, members, mode=stat.S_IFREG | 0o644):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in members.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = entry.orig_filename = name  # as it is: ZipInfo itself would tidy it up
            entry.external_attr = mode << 16
            packed.writestr(entry, content)
    return path


def tarred(path, members, kind=tarfile.REGTYPE, link=""):
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
            packed.addfile(entry, io.BytesIO(content))
    return path


GOOD = {"set/a.txt": b"a", "set/b/c.txt": b"c" * 70_000, "set/b/empty": b""}
OUTSIDE = [
    "../out.txt", "set/../../out.txt", "/out.txt", "//out.txt", "C:/out.txt", "C:out.txt", "..\\out.txt", "\\out.txt",
    "set\\..\\..\\out.txt", "set/a.txt:stream", "set/line\nbreak", "..", "", ".. /out.txt", "set/.../out.txt",
    "set/nul. ",
]  # fmt: skip


def everything(folder):
    """All files below a folder and what they hold; links as their target."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def stays_packed(path, message, **options):
    """The archive is refused, and there is nothing new anywhere around."""
    folder = path.parent
    before, above = everything(folder), set(folder.parent.iterdir())
    with pytest.raises(FileError, match=message):
        unpack(path, folder / "place" / "set", **options)
    assert everything(folder) == before and set(folder.parent.iterdir()) == above
    assert not list((folder / "place").iterdir())


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_good_archive_is_unpacked_whole(tmp_path, pack):
    unpack(pack(tmp_path / "good", GOOD), tmp_path / "place")
    assert everything(tmp_path / "place") == GOOD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "place"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_member_outside_its_folder_is_refused_by_name(tmp_path, pack, name):
    where = tmp_path / "deep" / "deeper"
    where.mkdir(parents=True)
    path = pack(where / "evil", {**GOOD, name: b"evil", "set/z.txt": b"z"})
    stays_packed(path, "evil holds .*(leads out of its folder|a link)")
    with pytest.raises(FileError) as caught:
        unpack(path, where / "place" / "set")
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "GNUTYPE_SPARSE"])
def test_links_and_devices_in_a_tar_file_are_refused_by_name(tmp_path, kind):
    """A link to a folder outside would make of the next member's harmless name one that leads there."""
    (tmp_path / "outside").mkdir()
    path = tarred(tmp_path / "evil", {"set/link": b""}, getattr(tarfile, kind), str(tmp_path / "outside"))
    stays_packed(path, "holds 'set/link', a link or a device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_file_are_refused_by_name(tmp_path, kind):
    stays_packed(zipped(tmp_path / "evil", {"set/link": b"/etc/passwd"}, kind | 0o777), "holds 'set/link', a link or")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_two_members_of_one_name_are_refused(tmp_path, pack):
    path = pack(tmp_path / "evil", {"a": b"1", "a/b": b"2"})
    stays_packed(path, "evil cannot be unpacked")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_what_unfolds_to_more_than_is_allowed_is_refused_unread(tmp_path, pack, monkeypatch):
    path = pack(tmp_path / "bomb", {f"{i}": b"\0" * 100_000 for i in range(20)})
    stays_packed(path, r"bomb holds \d+ files of [\d,]+ bytes or more: it is not unpacked", most=1_000_000)
    monkeypatch.setattr(archives, "MEMBERS", 10)
    stays_packed(path, "bomb holds .* files")


def test_a_zip_that_lies_about_its_sizes_is_found_out(tmp_path):
    """The size in the list at the end says one byte; behind it are a hundred thousand."""
    with zipfile.ZipFile(tmp_path / "liar", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", b"\0" * 100_000)
        packed.filelist[0].file_size = 1
    stays_packed(tmp_path / "liar", "liar cannot be unpacked: Bad CRC-32")


def test_a_tar_file_of_a_terabyte_is_refused_without_reading_it(tmp_path):
    entry = tarfile.TarInfo("set/huge")
    entry.size = 2**40
    (tmp_path / "bomb").write_bytes(gzip.compress(entry.tobuf() + b"\0" * 10_000))
    began = time.monotonic()
    stays_packed(tmp_path / "bomb", "bomb holds 1 files of 1,099,511,627,776 bytes")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_damaged_archive_leaves_nothing(tmp_path, pack):
    content = pack(tmp_path / "good", GOOD).read_bytes()
    (tmp_path / "good").unlink()
    for size in (0, 1, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "cut").write_bytes(content[:size])
        stays_packed(tmp_path / "cut", "cut cannot be unpacked|cut is damaged")


def test_a_folder_that_is_there_is_not_unpacked_into(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "mine").write_text("x")
    with pytest.raises(FileError, match="place"):
        unpack(zipped(tmp_path / "good", GOOD), tmp_path / "place")
    assert everything(tmp_path / "place") == {"mine": b"x"}


def test_gzip_files_are_unpacked_whole_or_not(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENT))
    gunzip(tmp_path / "a.gz", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    packed = (tmp_path / "a.gz").read_bytes()
    for name, content, most, message in (
        ("cut.gz", packed[:-9], 10**6, r"^[^:]*cut\.gz cannot be unpacked: "),
        ("changed.gz", packed[:-6] + b"\0" + packed[-5:], 10**6, "changed.gz cannot be unpacked: CRC check failed"),
        ("text.gz", b"not packed", 10**6, "text.gz cannot be unpacked: Not a gzipped file"),
        ("bomb.gz", packed, len(CONTENT) - 1, r"^[^:]*bomb\.gz holds more than 127,999 bytes: it is not unpacked$"),
    ):
        (tmp_path / name).write_bytes(content)
        before = everything(tmp_path)
        with pytest.raises(FileError, match=message):
            gunzip(tmp_path / name, tmp_path / "new", most=most)
        assert everything(tmp_path) == before


NAMES = st.text(st.sampled_from("ab./\\: \0é"), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), pack=st.sampled_from([zipped, tarred]))
def test_whatever_members_are_called_nothing_is_written_outside(tmp_path_factory, names, pack):
    folder = tmp_path_factory.mktemp("any")
    try:
        path = pack(folder / "any", {name: name.encode() for name in names})
    except (ValueError, OSError):  # a name that the writer refuses
        return
    place = folder / "inner" / "place"
    try:
        unpack(path, place)
    except FileError:
        assert not place.exists()
    else:
        files = [name for name in names if pack is tarred or not name.endswith("/")]  # which in a zip means a folder
        told = {name.partition("\0")[0] if pack is tarred else name: name.encode() for name in files}
        assert everything(place) == {PurePosixPath(name).as_posix(): content for name, content in told.items()}
    assert {path.name for path in folder.iterdir()} <= {"any", "inner"}
    assert {path.name for path in (folder / "inner").iterdir()} <= {"place"}
