"""Find the Chromium that the page tests drive, or install one: python tools/browser.py [--find]

Any Chromium or Chrome will do: the one that ADVTRAIN_BROWSER names, Playwright's own, or one on the PATH. If there is
none, Debian's package is installed where that is possible, and Playwright's download elsewhere.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

INSTALL = "python tools/browser.py"
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge"]
PLACES = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
]


def find():
    """The path of a browser, or None."""
    if named := os.environ.get("ADVTRAIN_BROWSER"):
        return shutil.which(named)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        candidates = [playwright.chromium.executable_path, *NAMES, *PLACES]
    return next((path for path in map(shutil.which, candidates) if path), None)


def debian():
    """Whether this is Debian itself with rights to install. Ubuntu's package of that name is something else."""
    release = Path("/etc/os-release")
    return release.is_file() and "\nID=debian\n" in f"\n{release.read_text(encoding='utf-8')}" and os.geteuid() == 0


def install():
    if debian():
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", "chromium"]
        subprocess.run(command, check=True, env=quiet)
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--find", action="store_true", help="install nothing")
    only_find = parser.parse_args().find
    path = find()
    if not path and os.environ.get("ADVTRAIN_BROWSER"):
        sys.exit(f"ADVTRAIN_BROWSER={os.environ['ADVTRAIN_BROWSER']!r} is no program. Correct it, or unset it.")
    if not path and not only_find:
        install()
        path = find()
    if not path:
        sys.exit(f"No Chromium found. Install one: {INSTALL}")
    print(path)


if __name__ == "__main__":
    main()
