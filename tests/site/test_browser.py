"""Without a browser, the tests of the pages fail in CI and say what to do; elsewhere they are skipped with a reason."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import browser as browsers
import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def outcome(tmp_path):
    """A function: what pytest says of a test that needs the browser, where there is none."""
    shutil.copy(HERE / "conftest.py", tmp_path)
    text = (tmp_path / "conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        text.replace("Path(__file__).resolve().parents[2]", f"Path({str(HERE.parents[1])!r})")
    )
    (tmp_path / "test_it.py").write_text("def test_it(chromium):\n    pass\n")

    def outcome(**environment):
        kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ADVTRAIN_BROWSER")}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-rs",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ]
        result = subprocess.run(
            command, env={**kept, "ADVTRAIN_BROWSER": "no-such-browser", **environment}, capture_output=True, text=True
        )
        return result.returncode, result.stdout

    return outcome


def test_a_missing_browser_fails_in_ci_with_the_command_that_installs_it(outcome):
    status, text = outcome(CI="true")
    assert status != 0 and "no Chromium" in text and browsers.INSTALL in text


def test_a_missing_browser_is_a_reason_to_skip_elsewhere(outcome):
    status, text = outcome()
    assert status == 0 and "1 skipped" in text and browsers.INSTALL in text


def test_the_command_that_installs_it_exists():
    script = browsers.INSTALL.split()[-1]
    assert (HERE.parents[1] / script).is_file()
    found = subprocess.run([sys.executable, script, "--help"], cwd=HERE.parents[1], capture_output=True, text=True)
    assert found.returncode == 0 and "--find" in found.stdout
