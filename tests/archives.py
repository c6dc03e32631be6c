"""The wheel and the source archive of this tree, built from a copy of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import sync  # noqa: E402

BUILD = (
    "import sys; from setuptools import build_meta; [getattr(build_meta, f'build_{k}')('dist') for k in sys.argv[1:]]"
)


def build(folder, *kinds, umask=0o022):
    """The archives of these kinds, built in that folder by another process."""
    mask = {} if os.name == "nt" else {"umask": umask}
    subprocess.run([sys.executable, "-c", BUILD, *kinds], cwd=folder, check=True, capture_output=True, **mask)
    return [next((folder / "dist").glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind])) for kind in kinds]


def sources(folder):
    """A copy of the project's files in a new folder, which is returned."""
    for path in sync.tracked():
        place = folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder
