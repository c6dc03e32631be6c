"""Keep in agreement what is written in more than one place: `python tools/sync.py [--check]`.

`pyproject.toml` is the source. From it come `environment.yml`, and the repository's address in every text file that
names it (README, notebooks' install cells, ...). `--check` changes nothing and fails if something would change.
"""

import argparse
import functools
import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
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


def dependencies():
    """Every requirement of the project, those of its extras included."""
    extras = project()["optional-dependencies"]
    return sorted({*project()["dependencies"], *(item for extra in extras.values() for item in extra)})


def environment_yml():
    """What environment.yml has to say."""
    lines = [
        "# Written by tools/sync.py from pyproject.toml.  conda env create --file environment.yml",
        "name: advtrain",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        f"  - python{project()['requires-python']}",
        "  - pip",
        "  - pip:",
        *(f'      - "{requirement}"' for requirement in dependencies()),
        "      - --editable .",
    ]
    return "\n".join(lines) + "\n"


def files():
    """The project's text files: tracked, or new and not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        sys.exit("The project's files are those that git knows: run this in a clone of the repository.")
    return [ROOT / name for name in sorted(names) if Path(name).suffix in TEXT and (ROOT / name).is_file()]


def with_address(text):
    """`text` with every mention of this repository at its present address; other people's repositories stay."""
    slug = repository().removeprefix("https://github.com/")
    part = r"[\w.-]+?"
    places = [
        rf"(advtrain-book @ git\+https://github\.com/){part}/{part}(?=(?:\.git)?(?:[@\"'\s\\]|$))",  # pip install
        rf"(git clone https://github\.com/){part}/{part}(?=(?:\.git)?(?:[\"'\s\\]|$))",
        rf"(colab\.research\.google\.com/github/){part}/{part}(?=/)",
        rf"(https://github\.com/){part}/(?:advtrain-book|{re.escape(slug.partition('/')[2])})(?![\w-])",
    ]
    for place in places:
        text = re.sub(place, lambda found: found[1] + slug, text)
    return text


def pending():
    """{path: new content} of the files that disagree with pyproject.toml."""
    wanted = {ROOT / "environment.yml": environment_yml()}
    for path in files():
        if path.name not in {"environment.yml", "pyproject.toml"}:
            wanted[path] = with_address(path.read_text(encoding="utf-8"))
    present = {path: path.read_text(encoding="utf-8") for path in wanted if path.exists()}
    return {path: text for path, text in wanted.items() if text != present.get(path)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    check = parser.parse_args().check
    stale = pending()
    for path, text in stale.items():
        print("stale:" if check else "rewritten:", path.relative_to(ROOT).as_posix())
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
    if check and stale:
        sys.exit("Run: python tools/sync.py")


if __name__ == "__main__":
    main()
