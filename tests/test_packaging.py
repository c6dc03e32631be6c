"""The files around the package agree with each other, and the package can be shipped."""

import ast
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from archives import build, sources
from markdown_it import MarkdownIt
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.version import Version

import advtrain

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import sync  # noqa: E402
import vendor  # noqa: E402

PYTHONS = ["3.10.0", "3.11.0", "3.12.0", "3.13.0", "3.14.0", "3.15.0"]
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}
TORCH_PAIRS = {("2.15.0", "0.29.2"), ("2.12.0", "0.27.0")}  # seen to work together


EMPTY_TAR = bytes(10240)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_entries():
    """(requirement, number of hashes) for each entry of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for entry in re.findall(r"^[A-Za-z].*\n(?:[ \t].*\n)*", text, flags=re.M):
        yield Requirement(entry.split("\\")[0].strip()), entry.count("--hash=sha256:")


@pytest.fixture(scope="module", params=[(python, system) for python in PYTHONS for system in PLATFORMS], ids="-".join)
def locked(request):
    """{name: version} of what the lock installs on one Python and platform."""
    python, system = request.param
    environment = {
        **PLATFORMS[system],
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found = {}
    for entry, _ in lock_entries():
        if entry.marker is None or entry.marker.evaluate(environment):
            assert normal(entry.name) not in found, f"two versions of {entry.name}"
            (pin,) = entry.specifier
            assert pin.operator == "=="
            found[normal(entry.name)] = pin.version
    return found


def text_of_tracked_files():
    for path in [*sync.files(), ROOT / "Makefile", ROOT / "requirements.lock", ROOT / ".ci" / "run"]:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_lock_satisfies_every_dependency(locked):
    for requirement in map(Requirement, sync.dependencies()):
        if requirement.marker is None or normal(requirement.name) in locked:
            assert requirement.specifier.contains(locked[normal(requirement.name)]), requirement


def test_lock_takes_torch_and_torchvision_as_a_tried_pair(locked):
    assert (locked["torch"], locked["torchvision"]) in TORCH_PAIRS


def test_every_locked_file_has_a_hash():
    assert all(hashes for _, hashes in lock_entries())


def test_core_dependencies_have_lower_bounds_only():
    for requirement in map(Requirement, sync.project()["dependencies"]):
        assert [bound.operator for bound in requirement.specifier] == [">="], requirement


def test_environment_yml_names_every_dependency_with_its_bound():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert text == sync.environments()["environment.yml"]
    for requirement in sync.dependencies():
        assert f'- "{requirement}"\n' in text
    assert "- --editable .\n" in text


def test_generated_places_are_up_to_date():
    stale = [path.relative_to(ROOT).as_posix() for path in sync.pending()]
    assert not stale, "run `python tools/sync.py`"


@pytest.fixture(params=["0.1.0.dev0", "0.1.0", "12.3.45"])
def at_version(request, monkeypatch):
    """The git reference that belongs to the version which pyproject.toml seems to name."""
    project = {**sync.project(), "version": request.param}
    monkeypatch.setattr(sync, "project", lambda: project)
    return {"0.1.0.dev0": "main", "0.1.0": "v0.1.0", "12.3.45": "v12.3.45"}[request.param]


@pytest.mark.parametrize(
    "text",
    [
        'pip install "advtrain-book @ git+https://github.com/{repo}@{ref}"',
        '%pip install -q \\"advtrain-book[book] @ git+https://github.com/{repo}@{ref}\\"',
        "git clone https://github.com/{repo}\ncd x",
        "https://colab.research.google.com/github/{repo}/blob/{ref}/book/02-adversarial-training.ipynb",
        "https://mybinder.org/v2/gh/{repo}/{ref}?urlpath=lab/tree/book/02-adversarial-training.ipynb",
        "[a folder](https://github.com/{repo}/tree/{ref}) and [a file](https://github.com/{repo}/blob/{ref}/LICENSE)",
        "[issues](https://github.com/{repo}/issues), https://github.com/{repo}/compare/v0.0.1...v0.0.2",
        "See https://github.com/{repo}.",
    ],
)
def test_sync_moves_our_address_and_reference_and_no_other(text, at_version):
    ours = text.format(repo=sync.repository().removeprefix("https://github.com/"), ref=at_version)
    assert sync.with_address(text.format(repo="someone/advtrain-book", ref="v0.0.9")) == ours
    assert sync.with_address(text.replace("@{ref}", "").format(repo="someone/advtrain-book", ref="main")) == ours
    assert sync.with_address(ours) == ours
    other = "https://github.com/locuslab/fast_adversarial/blob/main/x and https://github.com/someone/advtrain-bookshelf"
    assert sync.with_address(other) == other


def test_repository_address_is_written_out_in_no_other_form():
    """Whatever mentions a repository of this name is the address in pyproject.toml."""
    name = sync.repository().rpartition("/")[2]
    for file, text in text_of_tracked_files():
        if file != "tests/test_packaging.py":
            for owner in re.findall(rf"github\.(?:com|io)[/:]([\w.-]+)/{re.escape(name)}\b", text):
                assert f"github.com/{owner}/{name}" in sync.repository(), file


def test_no_file_names_a_private_place():
    forbidden = {
        "a home folder": r"/(?:home|root|Users)/\w",
        "a file address": r"file:/{3}[\w.]",
        "a package registry": r"\b(?:files\.pythonhosted|registry\.npmjs|conda\.anaconda|(?:test\.)?pypi)\.org\b",
        "a package index": r"--(?:extra-)?index-url[ =]+(?!https://download\.pytorch\.org/whl/cpu\b|\{CPU_INDEX\})\S",
        "another project's name": r"pip\d? install (?:-{1,2}\S+ )*[\"']?advtrain(?!-book)\b",
    }
    found = [
        f"{file}: {what}: {match[0]}"
        for file, text in text_of_tracked_files()
        if file != "tests/test_packaging.py"
        for what, pattern in forbidden.items()
        for match in re.finditer(pattern, text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_exist(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    code = re.findall(r"`[^`\n]+`", text) + re.findall(r"^```.*?^```", text, flags=re.M | re.S)
    used = {goal for piece in code for goal in re.findall(r"\bmake(?: [A-Z]+=\S+)* ([a-z-]+)", piece)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert used and used <= targets


def test_readme_shows_what_make_runs():
    """The plain commands for readers without make are those of the Makefile."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    build = "jupyter-book build . --all -W -n --keep-going"
    test = "-m pytest -n {} --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=600 tests book"
    assert "\nJOBS ?= 2\n" in makefile
    for command in [build, test]:
        assert command.format("$(JOBS)") in makefile
        assert readme.count(command.format(2)) >= 2
    assert f"git clone {sync.repository()}\ncd {sync.repository().rpartition('/')[2]}\n" in readme


def test_readme_quick_start_runs_as_written():
    """At one epoch, the Python of the README's quick start does what it says."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", readme, flags=re.M | re.S) if "at.fit" in block]
    assert "epochs=30" in code
    exec(compile(code.replace("epochs=30", "epochs=1"), "<README: quick start>", "exec"), {})


def test_version_is_stated_once():
    version = sync.project()["version"]
    assert str(Version(version)) == version
    assert importlib.metadata.version("advtrain-book") == version
    assert advtrain.__version__ == version
    for path in (ROOT / "advtrain").rglob("*.py"):
        assert not re.search(r"__version__\s*=\s*[\"']\d", path.read_text(encoding="utf-8")), path


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert "\nmake test " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_vendored_scripts_are_those_that_were_fetched():
    """Byte for byte what SHA256SUMS lists, each package with its licence, and every script that the book loads."""
    assert vendor.sums() == (vendor.VENDOR / vendor.SUMS).read_text(encoding="utf-8")
    assert all(re.fullmatch(r"@?[\w/-]+@\d+\.\d+\.\d+", package) for package, _, _ in vendor.PACKAGES.values())
    for folder in vendor.VENDOR.iterdir():
        if folder.is_dir():
            assert [path for path in folder.rglob("*") if path.is_file() and "LICENSE" in path.name], folder.name
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    named = re.findall(r"vendor/([\w./-]+\.js)\b", config)
    assert len(named) == 2 and all((vendor.VENDOR / name).is_file() for name in named)


@pytest.fixture
def vendoring_fails(monkeypatch):
    """A function: vendoring ends with this message, and leaves every file as it was."""

    def vendoring_fails(message):
        before = vendor.sums()
        monkeypatch.setattr(sys, "argv", ["vendor.py"])
        with pytest.raises(SystemExit, match=message):
            vendor.main()
        assert vendor.sums() == before

    return vendoring_fails


def test_a_vendored_package_with_another_digest_is_refused(monkeypatch, vendoring_fails):
    """Nothing is unpacked of a package that is not the one that was pinned."""

    def pack(command, **options):
        Path(command[command.index("--pack-destination") + 1], "mathjax.tgz").write_bytes(b"something else")

    monkeypatch.setattr(vendor.shutil, "which", lambda name: name)
    monkeypatch.setattr(vendor.subprocess, "run", pack)
    vendoring_fails("instead of sha512-")


def test_vendoring_without_npm_says_so_and_keeps_what_is_there(monkeypatch, vendoring_fails):
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    vendoring_fails("npm is needed")


def test_a_vendored_package_that_lacks_a_file_replaces_nothing(monkeypatch, vendoring_fails):
    monkeypatch.setattr(vendor, "fetch", lambda *package: tarfile.open(fileobj=io.BytesIO(EMPTY_TAR)))
    vendoring_fails("has no file like")


def test_every_text_file_is_opened_with_its_encoding():
    """The default is UTF-8 on Linux and macOS only. (The tests' own texts are left out.)"""
    for path in (path for path in sync.tracked() if path.suffix == ".py" and "tests" not in path.parts):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                told = any(keyword.arg == "encoding" for keyword in call.keywords)
                binary = "b" in "".join(str(getattr(mode, "value", "")) for mode in call.args[1:2])
                if name in ("read_text", "write_text") or (isinstance(call.func, ast.Name) and name == "open"):
                    assert told or binary, f"{path.name}, line {call.lineno}: {ast.unparse(call)}"


@pytest.fixture(scope="module")
def in_wheel(built):
    """The names inside the wheel."""
    (_, wheel), _ = built
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_holds_the_package_and_nothing_else(in_wheel):
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "advtrain").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    results = ROOT / "book" / "results"
    recorded = {
        f"advtrain/recorded/{path.relative_to(results).as_posix()}"
        for path in [*results.glob("*.json"), *results.glob("weights/*.safetensors")]
    }
    outside = {name for name in in_wheel if ".dist-info/" not in name}
    assert outside == sources | recorded
    assert {name.rpartition(".")[2] for name in recorded} == {"json", "safetensors"}
    assert "advtrain/py.typed" in outside
    assert any(name.endswith(".npz") for name in outside), "the digits are missing"


def test_wheel_holds_command_and_license(in_wheel):
    assert any(name.endswith(".dist-info/entry_points.txt") for name in in_wheel)
    assert any(name.endswith("/LICENSE") for name in in_wheel)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source archive and a wheel, built twice: elsewhere, at another date, by another umask, after another build."""
    here, there = (tmp_path_factory.mktemp(name) / "sources" for name in ("here", "another-place"))
    shutil.copytree(sources(here), there)
    for path in there.rglob("*"):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o700 if path.is_dir() else 0o600)
    stale = there / "build" / "lib" / "advtrain" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("", encoding="utf-8")
    return build(here, "sdist", "wheel"), build(there, "sdist", "wheel", umask=0o077)


def test_archives_are_the_same_wherever_and_whenever_they_are_built(built):
    (sdist, wheel), (sdist_again, wheel_again) = built
    assert sdist.read_bytes() == sdist_again.read_bytes()
    assert wheel.read_bytes() == wheel_again.read_bytes()


def test_the_wheel_of_the_source_archive_is_the_wheel_of_the_tree(built, tmp_path):
    (sdist, wheel), _ = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    (again,) = build(unpacked, "wheel")
    assert again.read_bytes() == wheel.read_bytes()


def test_the_source_archive_holds_what_the_wheel_is_made_of_and_nothing_else(built):
    (sdist, wheel), _ = built
    with tarfile.open(sdist) as archive:
        entries = archive.getmembers()
    root = f"advtrain_book-{advtrain.__version__}/"
    assert all(entry.isfile() and entry.name.startswith(root) for entry in entries)
    assert {(entry.uid, entry.gid, entry.uname, entry.gname, entry.mode) for entry in entries} == {
        (0, 0, "", "", 0o644)
    }
    inside = {entry.name.removeprefix(root) for entry in entries}
    with zipfile.ZipFile(wheel) as archive:
        package = {name for name in archive.namelist() if ".dist-info/" not in name}
    recorded = {name for name in package if name.startswith("advtrain/recorded/")}
    results = {name.replace("advtrain/recorded", "book/results") for name in recorded}
    beside = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    made = {"PKG-INFO", "setup.cfg", *(name for name in inside if name.startswith("advtrain_book.egg-info/"))}
    assert recorded and inside == (package - recorded) | results | beside | made


def test_the_package_describes_itself_where_no_files_lie_beside_the_readme(built):
    """The metadata is valid, and every link of the README leads somewhere: to the files of this version."""
    (_, wheel), _ = built
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(name), validate=True)
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    tokens = [child for token in MarkdownIt().parse(metadata.description) for child in token.children or []]
    links = [
        token.attrs.get("href") or token.attrs.get("src") for token in tokens if token.type in ("link_open", "image")
    ]
    assert len(links) >= 5 and all(link.startswith("https://") for link in links), links
    ours = [link for link in links if link.startswith(sync.repository() + "/")]
    assert len(ours) >= 4 and all(link.split("/")[6] == sync.reference() for link in ours)


INSTALLED = """
import advtrain as at

assert at.__version__ == {version!r} and at.__file__.startswith({place!r}), (at.__version__, at.__file__)
model, data = at.load_results("digits").run("pgd").model, at.load_data("digits")
few = data.test.images()[:20], data.test.y[:20]
print(at.evaluate(model, few, at.Threat("linf", eps=0.3), protocol=at.Protocol(steps=2, restarts=1)))
"""


@pytest.mark.slow
def test_the_wheel_works_where_there_is_nothing_else(built, tmp_path):
    """Installed into an environment of its own, which borrows only what the package requires, in an empty folder."""
    (_, wheel), _ = built
    venv.create(tmp_path / "venv", with_pip=False)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", scripts / "python"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site,) = (path.parent for path in (tmp_path / "venv").rglob("advtrain") if path.is_dir())
    borrowed = site / "borrowed.pth"  # its line is a folder, in which no other .pth is read: not that of the checkout
    borrowed.write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    (empty := tmp_path / "empty").mkdir()

    def run(*command):
        return subprocess.run(command, cwd=empty, check=True, capture_output=True, text=True).stdout

    assert "fast-bat" in run(scripts / "advtrain", "list")
    assert "20 images" in run(scripts / "python", "-c", INSTALLED.format(version=advtrain.__version__, place=str(site)))
    assert not list(empty.iterdir())
