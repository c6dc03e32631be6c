"""Create .venv, install requirements.lock into it, then this package in editable form.

    python tools/bootstrap.py               # with PyTorch as PyPI ships it
    python tools/bootstrap.py --torch cpu   # the same versions from PyTorch's CPU wheel index: no CUDA libraries

Standard library only, on every platform. A finished setup leaves a record in .venv/advtrain-setup.json, written last:
a second run that finds nothing changed returns at once, one that finds a changed lock or pyproject.toml installs again,
and one that finds an unfinished setup starts afresh.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
RECORD = VENV / "advtrain-setup.json"
LOCK = ROOT / "requirements.lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH = re.compile(r"torch(vision)?==")
CUDA_ONLY = re.compile(r"(nvidia-|cuda-|triton\b)")


def fingerprint():
    digest = hashlib.sha256()
    for path in (LOCK, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_record():
    """The last setup's record; {} if there is none, {"unfinished": True} if it was cut short."""
    if not RECORD.exists():
        return {}
    try:
        return json.loads(RECORD.read_text(encoding="utf-8"))
    except ValueError:
        return {"unfinished": True}


def write_record(**record):
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(record), encoding="utf-8")
    os.replace(part, RECORD)


def create_venv():
    """Make .venv with the Python that runs this script, emptying what an interrupted setup left."""
    if sys.version_info < (3, 10):
        sys.exit(
            "Python 3.10 or newer is needed, this is %s (%s). Try: make PYTHON=python3.12"
            % (sys.version.split()[0], sys.executable)
        )
    try:
        import ensurepip  # noqa: F401  (Debian and Ubuntu ship Python without it)
        import venv  # noqa: F401
    except ImportError:
        sys.exit(
            "Python's venv module is missing. On Debian or Ubuntu: sudo apt install python%d.%d-venv"
            % sys.version_info[:2]
        )
    VENV.mkdir(exist_ok=True)
    write_record(unfinished=True)
    for path in VENV.iterdir():
        if path != RECORD:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)


def pip(*arguments):
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=str(ROOT))


def locked_entries():
    """The lock's entries, each with its hash lines."""
    return re.findall(r"^[A-Za-z].*\n(?:[ \t].*\n)*", LOCK.read_text(encoding="utf-8"), flags=re.M)


def install_cpu_torch():
    """Install the locked torch and torchvision from PyTorch's CPU index; return a lock of all the rest.

    PyTorch's CPU wheels are other files than PyPI's, so the lock's hashes cannot vouch for these two.
    """
    entries = locked_entries()
    pins = VENV / "torch-pins.txt"
    pins.write_text(
        "".join(entry.split("\\")[0].strip() + "\n" for entry in entries if TORCH.match(entry)), encoding="utf-8"
    )
    pip("--no-deps", "--index-url", CPU_INDEX, "--requirement", pins)
    rest = VENV / "requirements-cpu.lock"
    rest.write_text(
        "".join(entry for entry in entries if not TORCH.match(entry) and not CUDA_ONLY.match(entry)), encoding="utf-8"
    )
    return rest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", choices=["default", "cpu"], help="which PyTorch (default: the one already chosen)")
    chosen = parser.parse_args().torch

    record = read_record()
    variant = chosen or record.get("torch", "default")
    wanted = {"inputs": fingerprint(), "torch": variant}
    if record == wanted and PYTHON.exists():
        return
    by_hand = VENV.exists() and any(VENV.iterdir()) and not record
    if by_hand and not PYTHON.exists():
        sys.exit("%s holds no Python environment. Move it away and try again." % VENV.name)
    if not by_hand and (not PYTHON.exists() or record.get("unfinished") or record.get("torch") != variant):
        create_venv()
    elif not by_hand:
        write_record(unfinished=True)

    print("Installing into .venv what requirements.lock lists; the first time takes some minutes ...", flush=True)
    pip("--require-hashes", "--requirement", install_cpu_torch() if variant == "cpu" else LOCK)
    pip("--no-deps", "--no-build-isolation", "--editable", ROOT)
    subprocess.run([str(PYTHON), "-c", "import torch, torchvision"], check=True)  # a mismatched pair fails here
    write_record(**wanted)
    print("Setup complete.", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nSetup interrupted. Run the same command again to complete it.")
    except subprocess.CalledProcessError as error:
        sys.exit("Setup failed: %s" % " ".join(error.cmd))
