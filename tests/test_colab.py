"""A chapter opened in Colab, in Binder or in any Jupyter runs as it is, and downloads nothing.

What a fresh runtime of Colab is, is made anew: an environment that holds PyTorch, torchvision, NumPy, Matplotlib and
ipywidgets with what these require and nothing else, where `google.colab` is imported; a home of its own; and a folder
with one notebook in it. The first cell installs the package, from a wheel of this tree in the place of its address.
Then every cell runs, with no way to the network.
"""

import ast
import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import archives
import nbformat
import pytest
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import lint_notebooks  # noqa: E402
import run_notebook  # noqa: E402

CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
QUICKEST = "01-adversarial-examples"
PRESENT = ("torch", "torchvision", "numpy", "matplotlib", "ipywidgets", "ipykernel")
# What every Python of the environment runs first: there is no network, except for pip where it is told so.
START = """
import os
import sys

HERE = ("127.0.0.1", "::1", "localhost", None)


def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in HERE:
        raise ConnectionRefusedError(f"no network here: {host}")


if "IN_COLAB" in os.environ:
    import google.colab
if "PIP_MAY_DOWNLOAD" not in os.environ or sys.orig_argv[1:3] != ["-m", "pip"]:
    sys.addaudithook(refuse)
"""
LOOK = """
import importlib.metadata, importlib.util, json, socket, sys
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
    answer = "reached"
except OSError as error:
    answer = str(error)
names = sorted(found.name for found in importlib.metadata.distributions())
print(json.dumps([names, importlib.util.find_spec("advtrain") is None, "google.colab" in sys.modules, answer]))
"""


@functools.cache
def installed():
    """{name: distribution} of what is installed here, each as it would be imported."""
    found = {}
    for distribution in importlib.metadata.distributions():
        found.setdefault(canonicalize_name(distribution.name), distribution)
    return found


def closure(*names):
    """{name: distribution} of the installed distributions of those names and of all that they require here."""
    found, seen, asked = {}, set(), [Requirement(name) for name in names]
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            found[name] = installed()[name]
            needs = map(Requirement, found[name].requires or ())
            asked += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


@functools.cache
def inside(distribution):
    """The files of a distribution that lie in site-packages, relative to it."""
    return [file for file in distribution.files or () if ".." not in file.parts]


def link(distributions, folder):
    """Put the files of these distributions, and of no others, into a folder that stands for site-packages."""
    others = [distribution for name, distribution in installed().items() if name not in distributions]
    shared = {parent for other in others for file in inside(other) for parent in file.parents}
    for distribution in distributions.values():
        for file in inside(distribution):
            part = next(part for part in [*reversed(file.parents[:-1]), file] if part not in shared)
            if not (place := folder / part).is_symlink():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(distribution.locate_file(part))


def pack(distribution, folder):
    """Make a wheel of an installed distribution."""
    tag = re.search(r"^Tag: (\S+)", distribution.read_text("WHEEL"), re.M)[1]
    name = f"{canonicalize_name(distribution.name).replace('-', '_')}-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file in inside(distribution):
            if file.suffix != ".pyc" and file.name not in ("INSTALLER", "REQUESTED"):
                archive.write(distribution.locate_file(file), file)


class Runtime:
    """An environment, and an empty folder in which its Python and its kernel run.

    Args:
        folder: where all of it is put.
        colab: whether `google.colab` is imported, as in Colab.
        with_pip: whether the environment has a pip of its own at once.
        variables: more environment variables.
    """

    def __init__(self, folder, colab=True, with_pip=False, **variables):
        self.home, self.content = folder / "home", folder / "content"
        self.home.mkdir()
        self.content.mkdir()
        venv.create(folder / "env", symlinks=os.name != "nt", with_pip=with_pip)
        self.python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        private = ("ADVTRAIN", "CI", "PYTHON", "VIRTUAL_ENV")
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith(private)}
        self.variables |= {"HOME": str(self.home), "USERPROFILE": str(self.home), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.variables |= {**({"IN_COLAB": "1"} if colab else {}), **variables}
        self.packages = Path(self.call("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (self.packages / "google" / "colab").mkdir(parents=True)
        (self.packages / "google" / "colab" / "__init__.py").touch()
        (self.packages / "start.py").write_text(START, encoding="utf-8")
        (self.packages / "start.pth").write_text("import start\n", encoding="utf-8")
        command = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": command, "display_name": "Python 3", "language": "python"}
        (self.home / "kernels" / "python3").mkdir(parents=True)
        (self.home / "kernels" / "python3" / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")

    def call(self, *arguments, cwd=None):
        """What the environment's Python prints."""
        done = subprocess.run(
            [self.python, *arguments], cwd=cwd or self.content, env=self.variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, notebook, name):
        """A notebook, as it is when all its cells have run; it lies in the folder under that name."""
        nbformat.write(notebook, self.content / name)
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(self.content)}})
        specs = KernelSpecManager(kernel_dirs=[str(self.home / "kernels")], ensure_native_kernel=False)
        client.km = AsyncKernelManager(kernel_name=notebook.metadata.kernelspec.name, kernel_spec_manager=specs)
        client.execute(env=self.variables)
        return nbformat.reads(nbformat.writes(notebook), as_version=4)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A function: a runtime in which nothing is installed yet but what Colab has, and `also`.

    Its pip reaches the wheels of what the package requires beyond that, and no index.
    """
    present, offered = closure(*PRESENT, "pip"), tmp_path_factory.mktemp("offered")
    for name, distribution in closure("advtrain-book").items():
        if name not in present and name != "advtrain-book":
            pack(distribution, offered)
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}  # for what is not Python

    def bare(*also, colab=True):
        variables = {**nowhere, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(offered)}
        runtime = Runtime(tmp_path_factory.mktemp("runtime"), colab, **variables)
        try:
            link({**present, **closure(*also)}, runtime.packages)
        except OSError as error:
            pytest.skip(f"an environment is made of links, which this system does not allow: {error}")
        return runtime

    return bare


def outputs(cell):
    """What can be compared between two runs: texts, not pixels. In how many pieces it is printed means nothing."""
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    printed = {name: "".join(stream.text for stream in streams if stream.name == name) for name in ("stdout", "stderr")}
    return printed, [lint_notebooks.texts_of(output) for output in cell.outputs if output not in streams]


def wrong(done, stored):
    """What is wrong with the outputs of a notebook that was run, beside those that are stored."""
    for number, (cell, before) in enumerate(zip(done.cells, stored.cells, strict=True)):
        if cell.cell_type == "code" and "nbval-skip" not in (tags := lint_notebooks.tags(cell)):
            for problem in lint_notebooks.in_code(cell):
                yield f"cell {number}: {problem}"
            if "nbval-ignore-output" not in tags and outputs(cell) != outputs(before):
                yield f"cell {number}: its output is not the stored one, but {outputs(cell)}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel of this tree."""
    (path,) = archives.build(archives.sources(tmp_path_factory.mktemp("wheel") / "sources"), "wheel")
    return path


def run_in_colab(runtime, path, wheel):
    """Run a chapter as Colab does, its first cell pointed at the wheel; nothing must be wrong or be left behind."""
    notebook, stored = (nbformat.read(path, as_version=4) for _ in range(2))
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source, count = run_notebook.INSTALLED.subn(wheel.as_posix(), first.source)
    assert count == 1
    assert list(wrong(runtime.run(notebook, path.name), stored)) == []
    assert [left.name for left in runtime.content.iterdir()] == [path.name]


def imports():
    """The import statements of all chapters."""
    cells = [cell for path in CHAPTERS for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = (node for cell in cells for node in ast.walk(ast.parse(lint_notebooks.python_of(cell))))
    return "\n".join(sorted({ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}))


def test_a_fresh_runtime_has_what_colab_has_and_reaches_nothing(bare):
    names, without_us, in_colab, answer = json.loads(bare().call("-c", LOOK))
    assert {canonicalize_name(name) for name in names} == set(closure(*PRESENT, "pip"))
    assert without_us and in_colab
    assert answer == "no network here: 192.0.2.1"


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem == QUICKEST else [pytest.mark.slow]) for path in CHAPTERS],
    ids=lambda path: path.stem,
)
def test_a_chapter_alone_in_an_empty_folder_runs_in_colab(path, bare, wheel):
    run_in_colab(bare(), path, wheel)


def test_another_output_than_the_stored_one_is_found():
    done, stored = (nbformat.read(CHAPTERS[0], as_version=4) for _ in range(2))
    assert list(wrong(done, stored)) == []
    cells = (cell for cell in done.cells if cell.cell_type == "code" and cell.outputs and not cell.metadata.get("tags"))
    next(output for cell in cells for output in cell.outputs if "text" in output).text += "more"
    assert ["not the stored one" in problem for problem in wrong(done, stored)] == [True]


def test_outside_of_colab_the_first_cell_installs_nothing(bare):
    runtime = bare(colab=False)
    cells = {cell.source for path in CHAPTERS for cell in nbformat.read(path, as_version=4).cells[:2]}
    (first,) = {source for source in cells if "google.colab" in source}
    runtime.call("-m", "IPython", "--no-banner", "-c", first)
    _, without_us, in_colab, _ = json.loads(runtime.call("-c", LOOK))
    assert without_us and not in_colab


def test_what_binder_installs_is_all_that_chapters_import(bare, tmp_path):
    """In a copy of the repository, where Binder installs from: in the folder of environment.yml, with pip."""
    python, pip, packages = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text("utf-8"))["dependencies"]
    assert re.fullmatch(r"python=3\.\d+", python) and pip == "pip"
    runtime = bare("setuptools", colab=False)
    shutil.copytree(ROOT / "advtrain", tmp_path / "advtrain", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "setup.py", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "book" / "results", tmp_path / "book" / "results")
    (tmp_path / "binder").mkdir()
    (tmp_path / "binder" / "pip.txt").write_text("\n".join(packages["pip"]), encoding="utf-8")
    runtime.call("-m", "pip", "install", "--quiet", "--no-build-isolation", "-r", "pip.txt", cwd=tmp_path / "binder")
    last = "import advtrain; print(advtrain.__file__, len(advtrain.load_results('digits').table()))"
    printed = runtime.call("-c", f"{imports()}\n{last}", cwd=tmp_path / "book").split()
    assert Path(printed[0]).is_relative_to(tmp_path) and int(printed[1]) > 0


@pytest.mark.slow
def test_a_chapter_runs_in_an_environment_fresh_from_the_index(tmp_path, wheel):
    """No links: what pip makes of the five names today, gigabytes of it, and then of the package."""
    runtime = Runtime(tmp_path, with_pip=True, PIP_MAY_DOWNLOAD="1")
    pip = [runtime.python, "-m", "pip", "install", "--quiet"]
    environment = {**os.environ, "PIP_MAY_DOWNLOAD": "1"}
    if subprocess.run([*pip, "click"], env=environment, capture_output=True).returncode:
        pytest.skip("no package index can be reached")
    subprocess.run([*pip, *PRESENT], env=environment, check=True)
    run_in_colab(runtime, ROOT / "book" / "03-gradient-masking.ipynb", wheel)
