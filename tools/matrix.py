"""All tests at the two ends of what pyproject.toml allows. Needs uv, which finds or fetches the Python.

    python tools/matrix.py oldest                         # the lowest versions that pyproject.toml names, oldest Python
    python tools/matrix.py newest                         # the highest versions there are, newest Python
    python tools/matrix.py newest -- tests -k "fab"       # what follows -- is for pytest, instead of all tests
    python tools/matrix.py oldest --install               # the environment alone
    python tools/matrix.py oldest --torch cpu             # PyTorch without CUDA libraries

Each end has an environment of its own, .venv-oldest and .venv-newest, in which every call installs exactly what it
resolves. What lies between the ends is in requirements.lock, and `make test` tries it. When all tests have passed, the
line for the README's table of what was tried is printed.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from sync import ROOT, dependencies, project

OLDEST, NEWEST = re.search(r"3\.\d+", project()["requires-python"])[0], "3.15"
PYTHONS = {"oldest": OLDEST, "newest": NEWEST}
ALL = "-n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=600 tests book".split()
SHOWN = ["torch", "torchvision", "numpy"]
# What the lowest versions that we ask for need in turn, where they do not say so themselves.
OF_THEIR_TIME = ["pyparsing<3.3"]  # 3.3 warns of names that Matplotlib calls before 3.10.8


def bounds(requirements):
    """{name: lower bound} of what pyproject.toml asks for."""
    found = [re.match(r"([\w.-]+)>=([\d.]+)", line) for line in requirements]
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


def pins(text):
    """{name: version} in a list of resolved requirements, without the local part of a version such as 2.6.0+cpu."""
    return dict(re.findall(r"^([\w.-]+)==([^\s+;]+)", text.lower(), re.M))


def out_of_reach(requirements, resolved):
    """The bounds that are lower than anything that can be installed: promises that no test can hold us to.

    A bound of 3.6 is reached by 3.6.1: now and then a first version is withdrawn.
    """
    lines = []
    for name, bound in bounds(requirements).items():
        low = [*bound.split("."), "0"][: max(2, bound.count(".") + 1)]
        if name in resolved and [*resolved[name].split("."), "0"][: len(low)] != low:
            lines.append(f"{name}>={bound}, but {resolved[name]} is the lowest")
    return lines


def resolution(end, torch):
    """The options of uv by which it resolves what this end is."""
    options = ["--no-config", *(["--torch-backend", torch] if torch else [])]  # no config: not the pair of the lock
    return [*options, "--resolution", "lowest-direct" if end == "oldest" else "highest"]


def uv(*arguments):
    subprocess.run(["uv", *map(str, arguments)], check=True, cwd=ROOT)


def install(end, folder, torch):
    """Make the environment hold what this end resolves to, the package, and pip. Returns {name: version}."""
    if not shutil.which("uv"):
        sys.exit("uv is needed. Install it: python -m pip install uv")
    uv("venv", "--quiet", "--allow-existing", "--python", PYTHONS[end], folder)
    allowed, wanted = folder / "constraints.txt", folder / "requirements.txt"
    allowed.write_text("\n".join(OF_THEIR_TIME if end == "oldest" else []), encoding="utf-8")
    wanted.unlink(missing_ok=True)  # else what was resolved before is kept
    how = [*resolution(end, torch), "--constraint", allowed, "--python", folder]
    uv("pip", "compile", "pyproject.toml", "--all-extras", "--quiet", "--no-annotate", "--output-file", wanted, *how)
    resolved = pins(wanted.read_text(encoding="utf-8"))
    if end == "oldest" and (lines := out_of_reach(dependencies(), resolved)):
        sys.exit("Raise these bounds in pyproject.toml:\n  " + "\n  ".join(lines))
    here = ["--no-config", "--python", folder]
    uv("pip", "sync", wanted, *here, *(["--torch-backend", torch] if torch else []))
    uv("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".", *here)
    uv("pip", "install", "--quiet", "pip", *here)
    return resolved


def row(end, python, resolved, day):
    """The line for the table in README.md."""
    return f"| {' | '.join([end, python, *(resolved[name] for name in SHOWN), day])} |"


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("end", choices=list(PYTHONS))
    parser.add_argument("--install", action="store_true", help="run no tests")
    parser.add_argument("--torch", choices=["cpu"], help="PyTorch from its own index of CPU wheels")
    parser.add_argument("--folder", type=Path, help="where the environment is or will be")
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    chosen = parser.parse_args(words[:cut])
    chosen.tests = words[cut + 1 :]
    return chosen


def main():
    chosen = parse()
    folder = (chosen.folder or ROOT / f".venv-{chosen.end}").absolute()
    resolved = install(chosen.end, folder, chosen.torch)
    if chosen.install:
        return
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}

    def python(*arguments, **options):
        return subprocess.run([programs / "python", *arguments], cwd=ROOT, env=environment, **options)

    if not chosen.tests:
        python("tools/browser.py", check=True)
    done = python("-m", "pytest", *(chosen.tests or ALL))
    if not chosen.tests and not done.returncode:
        asked = python("-c", "import platform; print(platform.python_version())", capture_output=True, text=True)
        print("All passed. For the table in README.md:")
        print(row(chosen.end, asked.stdout.strip(), resolved, f"{datetime.date.today()}"))
    sys.exit(done.returncode)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"Failed: {' '.join(map(str, error.cmd))}")
