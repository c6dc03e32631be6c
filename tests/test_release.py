"""A release is made by a command that refuses what would go wrong; and what surrounds the code is valid."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import yaml
from pybtex.database import parse_file

import advtrain as at
from advtrain.cli_reproduce import reproduce_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import gpu_queue  # noqa: E402
import publish  # noqa: E402
import sync  # noqa: E402

CHAPTER = "book/01-adversarial-examples.ipynb"
FILES = [
    "pyproject.toml",
    "CHANGELOG.md",
    "CITATION.cff",
    "README.md",
    "environment.yml",
    "binder/environment.yml",
    CHAPTER,
]
MAKEFILE = f"check:\n\t@test ! -e broken\n\t{sys.executable} tools/sync.py --check\n"


@pytest.fixture
def clone(tmp_path):
    """A clone of what a release touches, where version 0.1.0 is in development; `clone(name)` is the text of a file."""
    for name in [*FILES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "tools").glob("*.py"))]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / ".gitignore").write_text("__pycache__\n", encoding="utf-8")

    class Clone:
        root = tmp_path

        def __call__(self, name):
            return (tmp_path / name).read_text(encoding="utf-8")

        def edit(self, name, pattern, new):
            text, count = re.subn(pattern, new, self(name), count=1, flags=re.M | re.S)
            assert count == 1
            (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")

        def git(self, *words):
            who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
            return subprocess.run(
                ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
            ).stdout

        def commit(self):
            self.git("add", "--all")
            self.git("commit", "--quiet", "--allow-empty", "--message", "x")

        def release(self, version):
            command = [sys.executable, "tools/release.py", version]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

        def refused(self, version, message):
            before = self.git("status", "--porcelain"), self.git("diff")
            done = self.release(version)
            assert done.returncode == 1 and re.search(message, done.stderr), done.stderr
            assert (self.git("status", "--porcelain"), self.git("diff")) == before

    clone = Clone()
    clone.edit("pyproject.toml", r'^version = "[^"]*"', 'version = "0.1.0.dev0"')
    clone.edit("CHANGELOG.md", r"^## \[.*", "## [Unreleased]\n\n### Added\n\n- Something.\n")
    clone.git("init", "--quiet", "--initial-branch", "main")
    subprocess.run([sys.executable, "tools/sync.py"], cwd=tmp_path, check=True, capture_output=True)
    clone.commit()
    return clone


def test_a_release_and_the_way_back(clone):
    """Every link leads to the tag, then to main again; only the versions, the date and the links are different."""
    start = {name: clone(name) for name in FILES}
    ours = sync.repository()
    done = clone.release("0.1.0")
    assert done.returncode == 0, done.stderr
    assert 'git tag --annotate v0.1.0 --message "v0.1.0"\n  git push origin v0.1.0\n' in done.stdout
    assert not clone.git("tag") and clone.git("rev-list", "--count", "HEAD").strip() == "1", "it only says what to do"
    assert 'version = "0.1.0"' in clone("pyproject.toml")
    day = re.search(r"^## \[0\.1\.0\] - (\d{4}-\d\d-\d\d)\n\n### Added\n\n- Something\.$", clone("CHANGELOG.md"), re.M)[
        1
    ]
    assert clone("CHANGELOG.md").endswith(f"\n\n[0.1.0]: {ours}/commits/v0.1.0\n")
    assert f"version: 0.1.0\ndate-released: {day}\n" in clone("CITATION.cff")
    for name in ("README.md", CHAPTER):
        assert f"git+{ours}@v0.1.0" in clone(name) and f"git+{ours}@main" in start[name]
        assert clone(name).replace("v0.1.0", "main") == start[name]
    clone.commit()

    assert clone.release("0.2.0.dev0").returncode == 0
    changelog = clone("CHANGELOG.md")
    assert f"## [Unreleased]\n\n## [0.1.0] - {day}\n" in changelog
    assert changelog.endswith(f"\n[Unreleased]: {ours}/compare/v0.1.0...main\n[0.1.0]: {ours}/commits/v0.1.0\n")
    assert clone("CITATION.cff") == start["CITATION.cff"].replace("0.1.0.dev0", "0.2.0.dev0")
    assert all(clone(name) == start[name] for name in ("README.md", CHAPTER, "environment.yml"))
    clone.commit()
    clone.refused("0.2.0", "lists nothing below")


def test_what_cannot_be_released_is_refused_and_nothing_changes(clone):
    for version, message in {
        "1.0": "neither a release",
        "0.1.0rc1": "neither a release",
        "0.0.9": "does not come after 0.1.0.dev0",
        "0.1.0.dev0": "does not come after",
        "0.2.0.dev0": "followed by its release: try 0.2.0",
    }.items():
        clone.refused(version, message)
    clone.git("tag", "v0.1.0")
    clone.refused("0.1.0", "tag v0.1.0 exists")
    clone.git("tag", "--delete", "v0.1.0")
    clone.git("switch", "--quiet", "--create", "other")
    clone.refused("0.1.0", "branch main; this is other")
    clone.git("switch", "--quiet", "main")
    (clone.root / "new.txt").write_text("x", encoding="utf-8")
    clone.refused("0.1.0", r"Commit first[\s\S]*new\.txt")
    (clone.root / "new.txt").rename(clone.root / "broken")
    clone.commit()
    clone.refused("0.1.0", "nothing was changed")
    clone.git("rm", "--quiet", "broken")
    clone.edit("CHANGELOG.md", r"^- Something\.$", "")
    clone.commit()
    clone.refused("0.1.0", "lists nothing below")


def test_a_release_is_not_followed_by_another_at_once(clone):
    assert clone.release("0.1.0").returncode == 0
    clone.commit()
    clone.refused("0.1.1", r"followed by a version in development: try 0\.1\.1\.dev0")


# ---- Citation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_names_this_version_and_no_persons(citation):
    project = sync.project()
    assert citation["version"] == project["version"]
    assert citation["repository-code"] == sync.repository() and citation["url"] == sync.documentation()
    assert citation["license"] == project["license"]
    assert citation["authors"] == [{"name": project["authors"][0]["name"]}]
    assert ("date-released" in citation) == sync.is_release(project["version"])


def test_the_papers_cited_are_those_of_the_book(citation):
    """Each with the title, year and address of its entry in references.bib."""
    known = {
        (entry.fields["title"].replace("{", "").replace("}", ""), int(entry.fields["year"]), entry.fields.get("url"))
        for entry in parse_file(ROOT / "book" / "references.bib", encoding="utf-8").entries.values()
    }
    cited = [(paper["title"], paper["year"], paper["url"]) for paper in citation["references"]]
    assert set(cited) <= known and len(set(cited)) == len(cited)


@pytest.mark.parametrize("name", sorted(set(at.defenses.DEFENSES) - {"standard"}))
def test_the_paper_of_every_defense_is_cited(name, citation):
    """By the address on arXiv that the docstring names, or by the title that it quotes."""
    told = " ".join(at.defenses.DEFENSES[name].__doc__.split())
    found = re.search(r"arXiv (\d{4}\.\d{4,5})|\"([A-Z][^\"]+?),?\"", told)
    wanted = f"https://arxiv.org/abs/{found[1]}" if found[1] else found[2]
    assert wanted in {paper[key] for paper in citation["references"] for key in ("url", "title")}


# ---- Workflows ------------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITES = {"site.yml": {"publish": {"contents": "write"}}, "release.yml": {"release": {"contents": "write"}}}
WRITES["release.yml"]["publish"] = {"id-token": "write"}  # what a trusted publisher is known by


@pytest.mark.parametrize(
    ("schema", "files"),
    [("vendor.github-workflows", WORKFLOWS), ("vendor.citation-file-format", [ROOT / "CITATION.cff"])],
)
def test_files_that_others_read_follow_their_schema(schema, files):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert files and done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_what_it_has_to_and_nothing_else(path):
    """It reads, unless a job is listed above; it ends; actions are pinned alike; and no input becomes code."""
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"} and "concurrency" in workflow
    granted = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert granted == WRITES.get(path.name, {})
    assert "secrets" not in text and "pull_request_target" not in text
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/[\w-]+@release/v\d+", step.get("uses", "actions/x@v1"))
            assert not re.search(r"\$\{\{ *(github\.|inputs)", step.get("run", "")), step
            if "checkout" in step.get("uses", ""):
                pushes = job.get("permissions") == {"contents": "write"}
                assert step["with"]["persist-credentials"] == pushes
                assert not pushes or "make " not in "".join(step.get("run", "") for step in job["steps"])


def runs(path):
    """The commands of a workflow's steps, line by line."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


def test_what_workflows_call_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    commands = "\n".join(line for path in WORKFLOWS for line in runs(path))
    assert {"check", "test", "book"} <= set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    called = set(re.findall(r"\b(?:tools|tests|benchmarks)/[\w/]+(?:\.py)?", commands))
    assert {"tools/publish.py", "tools/gpu_queue.py", "tools/bootstrap.py"} <= called
    assert all((ROOT / name).exists() for name in called), called


# ---- The site of all versions ---------------------------------------------------------------------------------------


def test_the_site_keeps_every_version_and_shows_the_latest_release(tmp_path):
    """Until there is a release, the version in development is at the root; later releases are compared by number."""
    site, built = tmp_path / "site", tmp_path / "html"
    (site / ".git").mkdir(parents=True)
    (site / "CNAME").write_text("x", encoding="utf-8")

    def add(version, *pages):
        shutil.rmtree(built, ignore_errors=True)
        for page in ("index.html", *pages):
            (built / page).parent.mkdir(parents=True, exist_ok=True)
            (built / page).write_text(version, encoding="utf-8")
        publish.publish(built, site, version)
        listed = json.loads((site / "versions.json").read_text(encoding="utf-8"))
        assert all((site / entry["path"] / "index.html").is_file() for entry in listed)
        (latest,) = (entry["version"] for entry in listed if entry["latest"])
        return (site / "index.html").read_text(encoding="utf-8"), latest, [entry["version"] for entry in listed]

    assert add("0.1.0.dev0", "book/old.html") == ("0.1.0.dev0", "dev", ["dev"])
    assert add("0.1.0") == ("0.1.0", "0.1.0", ["0.1.0", "dev"])
    assert not (site / "book").exists(), "a page of another version was left at the root"
    assert add("0.2.0.dev0", "book/old.html") == ("0.1.0", "0.1.0", ["0.1.0", "dev"])
    assert (site / "dev" / "index.html").read_text(encoding="utf-8") == "0.2.0.dev0"
    assert add("0.10.0") == ("0.10.0", "0.10.0", ["0.10.0", "0.1.0", "dev"])
    assert add("0.9.1") == ("0.10.0", "0.10.0", ["0.10.0", "0.9.1", "0.1.0", "dev"])
    assert all((site / name).exists() for name in (".git", "CNAME", ".nojekyll", "dev/book/old.html"))
    with pytest.raises(SystemExit, match="build the book first"):
        publish.publish(tmp_path, site, "0.11.0")


# ---- What waits for a GPU -------------------------------------------------------------------------------------------

QUEUE = gpu_queue.QUEUE.read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", gpu_queue.entries(QUEUE))
def test_a_row_of_the_queue_is_a_script(entry, tmp_path):
    """Bash can read it, and each command is one that there is, with options that it has."""
    script = gpu_queue.script(QUEUE, entry)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    for command in gpu_queue.entries(QUEUE)[entry][0]:
        words = shlex.split(command)
        if words[0] == "run":
            labels = {method.name for method in at.experiments.load(words[1]).methods}
            assert {label for flag, label in pairwise(words) if flag == "--method"} <= labels
        elif words[1] != "-m":
            assert (ROOT / words[1]).is_file()
            options = set(re.findall(r"\"(--[\w-]+)\"", (ROOT / words[1]).read_text(encoding="utf-8")))
            assert {word for word in words if word.startswith("--")} <= options, command


@pytest.mark.parametrize("path", sorted(path for path in (ROOT / "tests").glob("test_*.py")
                                        if re.search(r"^[@\w].*mark\.gpu", path.read_text(encoding="utf-8"), re.M)),
                         ids=lambda path: path.name)  # fmt: skip
def test_a_test_that_needs_a_gpu_needs_little_else(path):
    """A machine with a GPU may have no more than PyTorch, pytest and what the package itself needs."""
    here = {path.stem for path in (ROOT / "tests").glob("*.py")}
    little = {"advtrain", "click", "hypothesis", "numpy", "pytest", "safetensors", "torch"} | here
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    named += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in named} <= little | sys.stdlib_module_names


def test_the_queue_is_read_row_by_row():
    rows = re.findall(r"^\| \d", QUEUE, re.M)
    assert len(gpu_queue.entries(QUEUE)) == len(rows) >= 15
    (define,) = gpu_queue.DEFINED.findall(QUEUE)
    assert set(re.findall(r"--[\w-]+", define)) <= {option.opts[0] for option in reproduce_command.params}
    with pytest.raises(ValueError, match="no entry '99'; there are 1, 2, 2a"):
        gpu_queue.script(QUEUE, "99")
    with pytest.raises(ValueError, match="'--seed 2', which is no whole command"):
        gpu_queue.script("run() { x; }\n| 1 | `run x`, then `--seed 2` | so | 2 |\n", "1")


def test_a_row_goes_on_with_what_is_there_and_runs_to_its_end(tmp_path):
    """A command that fails, or leaves runs for another time, keeps none from running, and is told at the end."""
    text = 'run() { echo "$@" >> "$OUT/said"; test "$1" != bad; }\n| 1 | `run bad 1` and `run good 2` | so | 2 |\n'
    results = tmp_path / "book" / "results"
    results.mkdir(parents=True)
    (results / "old.json").write_text("{}", encoding="utf-8")
    environment = {**os.environ, "OUT": str(tmp_path / "out")}
    script = gpu_queue.script(text, "1")
    assert subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env=environment).returncode == 1
    assert (tmp_path / "out" / "said").read_text(encoding="utf-8") == "bad 1\ngood 2\n"
    assert (tmp_path / "out" / "old.json").is_file()


# ---- What is checked before a commit --------------------------------------------------------------------------------


def test_hooks_and_continuous_integration_run_what_make_check_runs():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = config["repos"]
    hooks = [hook["entry"].replace(".venv/bin/", "$(BIN)/") for hook in repository["hooks"]]
    assert repository["repo"] == "local" and hooks == [line.strip() for line in recipe.splitlines()]
    assert all(hook["always_run"] and not hook["pass_filenames"] for hook in repository["hooks"])
    for name in ("test.yml", "release.yml"):
        assert "make check TORCH=cpu" in runs(ROOT / ".github" / "workflows" / name)


# ---- Where the reference values come from ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "reference").glob("*.npz")), ids=lambda path: path.stem)
def test_the_origin_of_every_reference_file_is_stated(path):
    """The repository and the commit that the file itself names stand in the row for files of its name."""
    with numpy.load(path) as arrays:
        meta = json.loads(str(arrays["meta"]))
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    if path.stem == "lr_schedules":
        assert "`lr_schedules`" in text
        return
    rows = re.findall(r"^\| (\S+) \| `([0-9a-f]{40})` \| .* \| (.*) \|$", text, re.M)
    found = [row[:2] for row in rows if any(fnmatch(path.stem, name) for name in re.findall(r"`([^`]+)`", row[2]))]
    assert found == [(meta["official_repo"], meta["official_commit"])]
