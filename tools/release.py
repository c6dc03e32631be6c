"""Make a release ready, or begin the next version: python tools/release.py 0.2.0, python tools/release.py 0.3.0.dev0

For a release, X.Y.Z: what CHANGELOG.md lists as unreleased becomes that version's, of today; the version is set, links
and install cells lead to its tag, and `make check` has the last word: if it fails, every file is as it was before. For
the version that is in development after it, X.Y.Z.devN: CHANGELOG.md begins a new list, and links lead to `main` again.
Nothing is committed, tagged or pushed: the commands for that are printed.
"""

import argparse
import datetime
import re
import subprocess
import sys

import sync
from sync import ROOT

CHANGELOG, PYPROJECT = ROOT / "CHANGELOG.md", ROOT / "pyproject.toml"
UNRELEASED = "## [Unreleased]\n"


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout.strip()


def order(version):
    """What versions are compared by: one in development comes before its release."""
    base, _, development = version.partition(".dev")
    return (*map(int, base.split(".")), int(development) if development else float("inf"))


def unreleased(changelog):
    """What CHANGELOG.md lists below [Unreleased], up to the next version or the links; "" without that heading."""
    _, _, rest = changelog.partition(UNRELEASED)
    return re.split(r"^(?:## \[|\[[^\]\n]+\]: )", rest, maxsplit=1, flags=re.M)[0]


def refusal(version):
    """Why there can be no such version now, or None."""
    present, tag = sync.project()["version"], f"v{version}"
    release = sync.is_release(version)
    if dirty := git("status", "--porcelain"):
        return f"Commit first, or put away, what was changed:\n{dirty}"
    if (branch := git("branch", "--show-current")) != "main":
        return f"Versions are made on the branch main; this is {branch or 'no branch'}."
    if order(version) <= order(present):
        return f"{version} does not come after {present}, the version in pyproject.toml."
    if release == sync.is_release(present):
        begin = f"{version}.dev0" if release else version.partition(".dev")[0]
        return f"{present} is followed by {'a version in development' if release else 'its release'}: try {begin}"
    if release and git("tag", "--list", tag):
        return f"The tag {tag} exists already."
    if release and not re.search(r"^- \S", unreleased(CHANGELOG.read_text(encoding="utf-8")), re.M):
        return "CHANGELOG.md lists nothing below [Unreleased]: say first what is new."
    return None


def with_version(text, version):
    """pyproject.toml with that version."""
    return re.sub(r'^version = "[^"]*"', f'version = "{version}"', text, count=1, flags=re.M)


def with_heading(changelog, version, date):
    """CHANGELOG.md with the heading of a release over what was unreleased, or with a place for what comes next."""
    if sync.is_release(version):
        return changelog.replace(UNRELEASED, f"## [{version}] - {date}\n", 1)
    return re.sub(r"^(?=## \[)", f"{UNRELEASED}\n", changelog, count=1, flags=re.M)


def prepare(version, date, before):
    """Write the version everywhere; `before` gets {path: its text until now, None if new} of the files that change."""
    edits = {
        PYPROJECT: with_version(PYPROJECT.read_text(encoding="utf-8"), version),
        CHANGELOG: with_heading(CHANGELOG.read_text(encoding="utf-8"), version, date),
    }
    write(edits, before)
    sync.project.cache_clear()
    write(sync.pending(), before)


def write(texts, before):
    """Write {path: text}, and note in `before` what was there first."""
    for path, text in texts.items():
        before.setdefault(path, path.read_text(encoding="utf-8") if path.exists() else None)
        path.write_text(text, encoding="utf-8", newline="\n")


def restore(before):
    """Every file as it was."""
    for path, text in before.items():
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="X.Y.Z of a release, or X.Y.Z.devN of what is begun after one")
    version = parser.parse_args().version
    if reason := refusal(version):
        sys.exit(reason)
    before = {}
    try:
        prepare(version, datetime.date.today().isoformat(), before)
        failed = subprocess.run(["make", "check"], cwd=ROOT).returncode
    except BaseException:  # also Ctrl-C, or no make
        restore(before)
        raise
    if failed:
        restore(before)
        sys.exit("make check found the above, so nothing was changed. Correct it, commit, and begin again.")
    tag = f"v{version}"
    print(f"\n{len(before)} files now say {version}. Look at them with `git diff`; then:\n")
    if sync.is_release(version):
        major, minor, _ = map(int, version.split("."))
        print(f'  git commit --all --message "Release {version}"\n  git tag --annotate {tag} --message "{tag}"')
        print(f"  git push origin {tag}\n\nThe tag makes the release and its site. Afterwards:\n")
        print(f"  python tools/release.py {major}.{minor + 1}.0.dev0")
    else:
        print(f'  git commit --all --message "Begin {version}"\n  git push origin main')


if __name__ == "__main__":
    main()
