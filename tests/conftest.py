"""Data for the tests. The large sets are not part of the repository: tests that need them skip where they are not."""

import hashlib
import http.server
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

# The tests' tensors are small: more threads gain nothing, and where several programs share the cores they wait for one
# another most of the time. So one thread here, and in the kernels and programs that the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from servers import CERTIFICATE, served  # noqa: E402

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(config, items):
    """What a machine cannot run is skipped: on Windows, what needs the signals of other systems. And where processes
    share the tests, what takes longest comes first, so that none is left to wait at the end."""
    missing = {"posix": "Windows has no such signals"} if os.name == "nt" else {}
    missing |= {} if torch.cuda.is_available() else {"gpu": "needs a GPU"}
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (item.path.suffix != ".ipynb", item.path.parent.name != "site"))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be absent
def pytest_xdist_make_scheduler(config, log):
    """Those of one file, the cells of one notebook and all pages of the site belong together: they share what was made
    for them."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return "tests/site" if path.startswith("tests/site/") else path

    config.option.loadscopereorder = False
    return Together(config, log)


@pytest.fixture(scope="session")
def test_data():
    """The folder with the sets for tests: `$ADVTRAIN_TEST_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("ADVTRAIN_TEST_DATA") or BESIDE)
    if not folder.is_dir():
        pytest.skip("no data for tests: name their folder with ADVTRAIN_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def cifar10_mini(test_data):
    """An .npz with 2,000 training and 1,000 test images of CIFAR-10."""
    path = test_data / "mini" / "cifar10-mini.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the data for tests")
    return path


@pytest.fixture(scope="session")
def full_data(test_data, tmp_path_factory):
    """A function: the folder with `NAME.npz` of a full set, unpacked from its shards once a session."""
    unpacked = tmp_path_factory.mktemp("data")

    def folder_with(name):
        if (test_data / f"{name}.npz").is_file():
            return test_data
        if not (unpacked / f"{name}.npz").is_file():
            if not (test_data / "unpack.py").is_file() or not list(test_data.glob(f"{name}*.zip")):
                pytest.skip(f"{name} is not among the data for tests")
            command = [sys.executable, str(test_data / "unpack.py"), str(unpacked), name]
            subprocess.run(command, check=True, capture_output=True)
        return unpacked

    return folder_with


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """An empty data folder that `load_data` uses unless told otherwise."""
    folder = tmp_path / "advtrain-data"
    folder.mkdir()
    monkeypatch.setenv("ADVTRAIN_DATA", str(folder))
    return folder


@pytest.fixture
def trusted(monkeypatch):
    """The certificate of the tests' own servers is believed, and no proxy is asked for them."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return CERTIFICATE


@pytest.fixture
def mirror(tmp_path, trusted):
    """A web server on this machine: the folder it serves, its address, the requests it saw."""
    folder, seen = tmp_path / "mirror", []
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            seen.append(self.path)

    with served(partial(Quiet, directory=str(folder))) as address:
        yield folder, address, seen


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The current folder: there are a file and a folder in it, and no data sets are at hand."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "a-file").write_text("text")
    (folder / "taken.npy.partial").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ADVTRAIN_DATA", "data")
        yield folder


@pytest.fixture
def publish(mirror, monkeypatch):
    """A function: from now on the files of a known set come from the local server; its folder, the requests it saw."""
    import dataclasses

    from advtrain.data_known import SOURCES
    from advtrain.downloads import Remote

    def publish(name, files):
        folder, address, seen = mirror
        remote = []
        for file, content in files.items():
            (folder / file).write_bytes(content)
            remote.append(Remote(f"{address}{file}", len(content), hashlib.sha256(content).hexdigest()))
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], files=tuple(remote)))
        return folder, seen

    return publish
