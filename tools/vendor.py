"""Fetch the scripts and fonts that the book's pages need into book/_static/vendor: python tools/vendor.py [--check]

The pages load nothing from other sites, so that they work offline, from a zip, and in ten years. What is fetched is
pinned by version and by the digest of its npm package, and committed with its licence; SHA256SUMS lists every file.
`--check` compares the files with that list and fetches nothing. Fetching needs npm.
"""

import argparse
import base64
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "book" / "_static" / "vendor"
SUMS = "SHA256SUMS"

# folder: npm package, its digest, and which of its files go where (a regular expression and its replacement)
PACKAGES = {
    "mathjax": (
        "mathjax@3.2.2",
        "sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        [
            # "full": the smaller one fetches commands such as \boldsymbol from elsewhere when they are first used
            (r"es5/(tex-chtml-full\.js)", r"\1"),
            (r"es5/(output/chtml/fonts/woff-v2/.*\.woff)", r"\1"),
            (r"(LICENSE)", r"\1"),
        ],
    ),
    "html-manager": (
        "@jupyter-widgets/html-manager@1.0.15",
        "sha512-5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        [
            # not embed-amd.js, which needs require.js and looks for its fonts in the wrong place
            (r"dist/(embed\.js)", r"\1"),
            (r"dist/(embed\.js\.LICENSE\.txt)", r"\1"),
            (r"dist/(\w+\.woff2)", r"\1"),
        ],
    ),
    # licences of what embed.js contains, where its own list of them has gaps
    "html-manager/licenses/jupyter-widgets": (
        "@jupyter-widgets/controls@5.0.12",  # the last package with the file
        "sha512-4ry+1Fb2kB6vdHLDdrvrhZTElyhJfs+Z2XfyqvhkUkIPpCYpF8RXeVay//annWO/H1v0JhfLu44Ett+1/+djVA==",
        [(r"(LICENSE)", r"\1")],
    ),
    "html-manager/licenses/font-awesome": (
        "@fortawesome/fontawesome-free@5.15.4",
        "sha512-eYm8vijH/hpzr/6/1CJ/V/Eb1xQFW2nnUKArb3z+yUWv7HTwj6M7SP957oMjfZjAHU6qpoNc2wQvIxBLWYa/Jg==",
        [(r"(LICENSE\.txt)", r"\1")],
    ),
    "html-manager/licenses/lumino": (
        "@phosphor/widgets@1.9.3",  # Lumino's former name; its own packages come without
        "sha512-61jsxloDrW/+WWQs8wOgsS5waQ/MSsXBuhONt0o6mtdeL93HVz7CYO5krOoot5owammfF6oX1z0sDaUYIYgcPA==",
        [(r"(LICENSE)", r"\1")],
    ),
}


def fetch(package, digest):
    """The npm package as an open archive, once its digest is what it has to be."""
    npm = shutil.which("npm") or sys.exit("npm is needed to fetch packages. It comes with Node.js.")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--pack-destination", folder, package]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).glob("*.tgz")
        content = path.read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != digest:
        sys.exit(f"{package} has the digest {found} instead of {digest}: nothing of it was taken")
    return tarfile.open(fileobj=io.BytesIO(content))


def wanted(name, rules):
    """Where a file of a package belongs, or None."""
    for pattern, place in rules:
        if re.fullmatch(f"package/{pattern}", name):
            return re.sub(f"package/{pattern}", place, name)


def fetch_all():
    """{place: content} of every wanted file of every package."""
    found = {}
    for folder, (package, digest, rules) in PACKAGES.items():
        with fetch(package, digest) as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            places = {member: place for member in members if (place := wanted(member.name, rules))}
            for rule, _ in rules:
                if not any(re.fullmatch(f"package/{rule}", member.name) for member in places):
                    sys.exit(f"{package} has no file like {rule}: nothing was replaced")
            found |= {VENDOR / folder / place: archive.extractfile(member).read() for member, place in places.items()}
    return found


def files():
    """The vendored files in a fixed order."""
    return sorted(path for path in VENDOR.rglob("*") if path.is_file() and path.name != SUMS)


def sums():
    """What SHA256SUMS has to say, in the form that `sha256sum --check` reads."""
    digests = ((hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in files())
    return "".join(f"{digest}  {path.relative_to(VENDOR).as_posix()}\n" for digest, path in digests)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fetch nothing; fail unless every file is what it was")
    if parser.parse_args().check:
        if sums() != (VENDOR / SUMS).read_text(encoding="utf-8"):
            sys.exit("book/_static/vendor is not what SHA256SUMS lists. Run: python tools/vendor.py")
        return
    fetched = fetch_all()  # all of it, before anything is replaced
    for path in files():
        path.unlink()
    for path, content in fetched.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (VENDOR / SUMS).write_text(sums(), encoding="utf-8", newline="\n")
    print(f"{len(files())} files, {sum(path.stat().st_size for path in files()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
