"""A release is made by a command that refuses what would go wrong; and what surrounds the code is valid."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pybtex.database import parse_file

import advtrain as at

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import sync  # noqa: E402

CHAPTER = "book/01-adversarial-examples.ipynb"
FILES = ["pyproject.toml", "CHANGELOG.md", "CITATION.cff", "README.md", "environment.yml", CHAPTER]
MAKEFILE = f"check:\n\t@test ! -e broken\n\t{sys.executable} tools/sync.py --check\n"


@pytest.fixture
def clone(tmp_path):
    """A clone of what a release touches, where version 0.1.0 is in development; `clone(name)` is the text of a file."""
    for name in [*FILES, "tools/sync.py", "tools/release.py"]:
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
    assert 'git tag --annotate v0.1.0 --message "v0.1.0"\n  git push origin main v0.1.0\n' in done.stdout
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
