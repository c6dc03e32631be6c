"""Put the built book where a web server shows it: python tools/publish.py BUILT SITE

SITE is a folder with every version that was published so far, in the workflow a checkout of the branch gh-pages:

    index.html ...    the latest release, or the version in development as long as there is none
    dev/              the version in development, as the branch main has it
    0.1.0/ ...        each release
    versions.html     the list that the foot of each page leads to
    versions.json     which there are: [{"version": "0.1.0", "path": "0.1.0/", "latest": true}, ...], newest first

The version is that of pyproject.toml. Its folder and the root are written anew, the other versions stay as they are.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import sync
from versions import announce

DEVELOPMENT = "dev"
KEPT = {".git", "CNAME"}  # what belongs to the site and to no version


def releases(site):
    """The releases that the site has, newest first."""
    found = [path.name for path in site.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")], reverse=True)


def publish(built, site, version):
    """Put a built version into the site. Returns the name of its folder."""
    if not (built / "index.html").is_file():
        sys.exit(f"{built} holds no index.html: build the book first")
    name = version if sync.is_release(version) else DEVELOPMENT
    shutil.rmtree(site / name, ignore_errors=True)
    shutil.copytree(built, site / name)
    versions = [*releases(site), *([DEVELOPMENT] if (site / DEVELOPMENT).is_dir() else [])]
    for path in site.iterdir():
        if path.name not in {*KEPT, *versions}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    listed = [{"version": name, "path": f"{name}/", "latest": name == versions[0]} for name in versions]
    announce(site, listed)
    shutil.copytree(site / versions[0], site, dirs_exist_ok=True)
    (site / "versions.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8", newline="\n")
    (site / ".nojekyll").touch()  # GitHub would otherwise leave out folders such as _static
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("built", type=Path, help="the folder with the built pages, such as _build/html")
    parser.add_argument("site", type=Path, help="the folder with all versions")
    arguments = parser.parse_args()
    version = sync.project()["version"]
    print(f"{version} is in", publish(arguments.built, arguments.site, version) + "/")


if __name__ == "__main__":
    main()
