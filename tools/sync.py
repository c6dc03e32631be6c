"""Keep in agreement what is written in more than one place: `python tools/sync.py [--check]`.

`pyproject.toml` is the source. From it come `environment.yml` and that of `binder/`; the repository's address in every
text file that names it (README, notebooks' install cells, ...); the git reference there, which is `main` as long as the
version is one in development, such as 0.1.0.dev0, and the tag of a release; what `CITATION.cff` says of the version;
and the links at the end of `CHANGELOG.md`. `--check` changes nothing and fails if something would change.
"""

import argparse
import functools
import re
import subprocess
import sys
from pathlib import Path

from bootstrap import CPU_INDEX

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = r"advtrain-book(?:\[[\w,-]+\])? @ git\+https://github\.com/"  # by pip, up to the repository
TEXT = {".cff", ".css", ".html", ".ipynb", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yml", ".yaml"}


@functools.cache
def project():
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def repository():
    """The address of this project's repository."""
    return project()["urls"]["Repository"]


def documentation():
    """The address of the rendered book, with a slash at its end."""
    return project()["urls"]["Documentation"]


def is_release(version):
    """Whether a version is that of a release, X.Y.Z, or one in development, X.Y.Z.devN. Any other ends the program."""
    if not (form := re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", version)):
        sys.exit(f"{version!r} is neither a release, such as 0.1.0, nor in development, such as 0.1.0.dev0.")
    return form[1] is None


def reference():
    """The git reference at which this version's files are: the tag of a release, or the branch `main`."""
    version = project()["version"]
    return f"v{version}" if is_release(version) else "main"


def dependencies():
    """Every requirement of the project, those of its extras included."""
    extras = project()["optional-dependencies"]
    return sorted({*project()["dependencies"], *(item for extra in extras.values() for item in extra)})


def environment(purpose, python, *pip):
    """An environment of conda: what its file has to say, with these lines for pip."""
    lines = [
        f"# Written by tools/sync.py from pyproject.toml.  {purpose}",
        "name: advtrain",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        f"  - python{python}",
        "  - pip",
        "  - pip:",
        *(f"      - {line}" for line in pip),
    ]
    return "\n".join(lines) + "\n"


def environments():
    """{file: content} of the environments of conda: one with everything, and one for Binder.

    Binder is for readers, with little memory and no GPU: what the chapters import, and PyTorch without CUDA. Its Python
    is named, since a lower bound would leave the choice to Binder. Paths are relative to the file.
    """
    for_chapters = [item for item in dependencies() if re.match(r"ipykernel|ipywidgets|matplotlib", item)]
    everything = [f'"{item}"' for item in dependencies()]
    reading = [f"--extra-index-url {CPU_INDEX}", *(f'"{item}"' for item in for_chapters)]
    return {
        "environment.yml": environment(
            "conda env create --file environment.yml", project()["requires-python"], *everything, "--editable ."
        ),
        "binder/environment.yml": environment("What Binder builds.", "=3.12", *reading, "--editable .."),
    }


def tracked():
    """The project's files: tracked, or new and not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        sys.exit("The project's files are those that git knows: run this in a clone of the repository.")
    return [ROOT / name for name in sorted(names) if (ROOT / name).is_file()]


def files():
    """Those of the project's files that are text and may name the repository."""
    return [path for path in tracked() if path.suffix in TEXT]


def with_address(text):
    """`text` with every mention of this repository at its present address and reference; others' repositories stay."""
    slug = repository().removeprefix("https://github.com/")
    part = r"[\w.-]+?"
    addresses = [
        rf"({INSTALLED}){part}/{part}(?=(?:\.git)?(?:[@\"'\s\\]|$))",
        rf"(git clone https://github\.com/){part}/{part}(?=(?:\.git)?(?:[\"'\s\\]|$))",
        rf"(colab\.research\.google\.com/github/){part}/{part}(?=/)",
        rf"(mybinder\.org/v2/gh/){part}/{part}(?=/)",
        rf"(https://github\.com/){part}/(?:advtrain-book|{re.escape(slug.partition('/')[2])})(?![\w-])",
    ]
    for place in addresses:
        text = re.sub(place, lambda found: found[1] + slug, text)
    ours, name = re.escape(slug), r"[\w.-]*\w"
    references = [
        rf"(github(?:\.com)?/{ours}/(?:blob|edit|raw|tree)/){name}",  # Colab's addresses are without .com
        rf"(mybinder\.org/v2/gh/{ours}/){name}",
    ]
    for place in references:
        text = re.sub(place, lambda found: found[1] + reference(), text)
    return re.sub(rf"({INSTALLED}{ours}(?:\.git)?)(?:@{name})?", lambda found: f"{found[1]}@{reference()}", text)


def citation(text, changelog):
    """CITATION.cff with this version, the day on which CHANGELOG.md says that it was released, and where it is."""
    version = project()["version"]
    date = re.search(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", changelog, re.M)
    lines = [f"version: {version}", *([f"date-released: {date[1]}"] if date else [])]
    lines += [f"license: {project()['license']}", f"repository-code: {repository()}", f"url: {documentation()}"]
    names = "|".join(["version", "date-released", "license", "repository-code", "url"])
    kept = re.sub(rf"^(?:{names}): .*\n", "", text, flags=re.M)
    return re.sub(r"^(?=authors:)", "\n".join([*lines, ""]), kept, count=1, flags=re.M)


def with_links(changelog):
    """CHANGELOG.md with one link for each version at its end: what changed since the one before."""
    body = re.sub(r"\n*(?:^\[[^\]\n]+\]: https://\S+\n)+\Z", "\n", changelog, flags=re.M)
    names = re.findall(r"^## \[([^\]]+)\]", body, re.M)
    tags = ["main" if name == "Unreleased" else f"v{name}" for name in names]
    links = [
        f"[{name}]: {repository()}/" + (f"compare/{older}...{tag}" if older else f"commits/{tag}")
        for name, tag, older in zip(names, tags, [*tags[1:], None], strict=True)
    ]
    return "\n".join([body.rstrip("\n"), "", *links, ""])


def pending():
    """{path: new content} of the files that disagree with pyproject.toml."""
    wanted = {ROOT / name: text for name, text in environments().items()}
    for path in files():
        if path.name not in {"environment.yml", "pyproject.toml"}:
            wanted[path] = with_address(path.read_text(encoding="utf-8"))
    changelog, cff = ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"
    wanted[changelog] = with_links(wanted[changelog])
    wanted[cff] = citation(wanted[cff], wanted[changelog])
    present = {path: path.read_text(encoding="utf-8") for path in wanted if path.exists()}
    return {path: text for path, text in wanted.items() if text != present.get(path)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    parser.add_argument("--reference", action="store_true", help="only print the git reference of this version")
    arguments = parser.parse_args()
    if arguments.reference:
        print(reference())
        return
    check = arguments.check
    stale = pending()
    for path, text in stale.items():
        print("stale:" if check else "rewritten:", path.relative_to(ROOT).as_posix())
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    if check and stale:
        sys.exit("Run: python tools/sync.py")


if __name__ == "__main__":
    main()
