"""The two ends of what pyproject.toml allows are what it says, are tried, and are told as they were tried."""

import datetime
import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import matrix  # noqa: E402
import sync  # noqa: E402

REQUIREMENTS = [Requirement(line) for line in sync.dependencies()]
LOWEST = {re.sub(r"[-_.]+", "-", r.name).lower(): low.version for r in REQUIREMENTS for low in r.specifier
          if low.operator == ">="}  # fmt: skip


@pytest.fixture
def uv(monkeypatch):
    """What would be asked of uv, which answers with `uv.answer`, instead of asking it."""

    def uv(*arguments):
        uv.asked.append([str(argument) for argument in arguments])
        if "--output-file" in arguments:
            Path(arguments[arguments.index("--output-file") + 1]).write_text(uv.answer, encoding="utf-8")

    uv.asked, uv.answer = [], "".join(f"{name}=={version}\n" for name, version in LOWEST.items())
    monkeypatch.setattr(matrix, "uv", uv)
    monkeypatch.setattr(matrix.shutil, "which", lambda name: name)
    return uv


def test_every_requirement_has_a_bound_that_can_be_installed():
    assert matrix.bounds(sync.dependencies()) == LOWEST and len(LOWEST) == len(REQUIREMENTS) > 25
    assert not matrix.out_of_reach(sync.dependencies(), LOWEST)


def test_oldest_installs_the_bounds_on_the_oldest_python(uv, tmp_path):
    assert matrix.install("oldest", tmp_path, None) == LOWEST
    made, resolved, synced, ours, _ = uv.asked
    assert made[made.index("--python") + 1] == "3.10" and sync.project()["requires-python"] == ">=3.10"
    assert resolved[resolved.index("--resolution") + 1] == "lowest-direct"
    assert {"pyproject.toml", "--all-extras", "--no-config"} <= set(resolved)  # no config: not the pair of the lock
    assert str(tmp_path / "requirements.txt") in synced and "." in ours and "--no-deps" in ours
    assert (tmp_path / "constraints.txt").read_text(encoding="utf-8").split() == matrix.OF_THEIR_TIME


def test_newest_is_held_back_by_nothing(uv, tmp_path):
    uv.answer = "torch==99.0+cpu\nnumpy==98.1 ; python_version > '3'\n"
    assert matrix.install("newest", tmp_path, "cpu") == {"torch": "99.0", "numpy": "98.1"}
    _, resolved, synced, *_ = uv.asked
    assert resolved[resolved.index("--resolution") + 1] == "highest" and "--no-config" in resolved
    assert "--torch-backend" in resolved and "--torch-backend" in synced
    assert not (tmp_path / "constraints.txt").read_text(encoding="utf-8")


def test_a_bound_that_nothing_can_reach_is_named_and_nothing_is_installed(uv, tmp_path):
    uv.answer = uv.answer.replace(f"numpy=={LOWEST['numpy']}", "numpy==1.99.4")
    with pytest.raises(SystemExit, match=r"Raise .*\n  numpy>=1\.26, but 1\.99\.4 is the lowest$"):
        matrix.install("oldest", tmp_path, None)
    assert not any("sync" in arguments for arguments in uv.asked)


@given(bound=st.lists(st.integers(0, 30), min_size=1, max_size=4), more=st.lists(st.integers(0, 30), max_size=3))
def test_a_bound_is_reached_by_itself_and_what_mends_it(bound, more):
    text = ".".join(map(str, bound))
    reached = text if len(bound) == 1 else ".".join(map(str, [*bound, *more]))
    assert not matrix.out_of_reach([f"x>={text}"], {"x": reached})
    other = ".".join(map(str, [*bound[:-1], bound[-1] + 1, *more]))
    assert matrix.out_of_reach([f"x>={text},<99; python_version > '3'"], {"x": other})


def test_without_uv_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="python -m pip install uv"):
        matrix.install("oldest", tmp_path, None)


def test_what_follows_two_dashes_is_for_pytest():
    asked = matrix.parse(["oldest", "--torch", "cpu", "--", "-q", "tests/test_fab.py", "-k", "not x"])
    assert (asked.end, asked.torch, asked.tests) == ("oldest", "cpu", ["-q", "tests/test_fab.py", "-k", "not x"])
    with pytest.raises(SystemExit):
        matrix.parse(["oldest", "tests/test_fab.py"])


def test_the_tests_are_those_of_make_test():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"-m pytest {' '.join(matrix.ALL)}\n".replace("-n 2", "-n $(JOBS)") in makefile
    assert all(f"tools/matrix.py {end} " in makefile for end in matrix.PYTHONS)


def test_both_ends_are_tried_with_every_change_and_every_week():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    when = workflow[True]  # YAML's word for on
    assert {"push", "pull_request"} <= set(when) and re.fullmatch(r"\d+ \d+ \* \* \d", when["schedule"][0]["cron"])
    (job,) = (job for job in workflow["jobs"].values() if "tools/matrix.py" in str(job))
    assert job["strategy"]["matrix"]["end"] == list(matrix.PYTHONS) and "if" not in job
    command = job["steps"][-1]["run"].replace("${{ matrix.end }}", "oldest")
    asked = matrix.parse(command.removeprefix("python tools/matrix.py").split())
    assert (asked.end, asked.tests, asked.install) == ("oldest", [], False)


def test_warnings_are_errors_but_for_those_that_are_named():
    kept = sync.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    first, *others = kept["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert first == "error"
    assert all(re.fullmatch(r"ignore:[^:]{20,}:\w+Warning(:[\w.]+)?", line) for line in others), "narrower, please"


def told():
    """{name: cells} of the README's table of what was tried."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^ *\| (oldest|locked|newest) \| (.*) \|$", readme, re.M)
    return {name: cells.split(" | ") for name, cells in rows}


def test_the_readme_tells_what_was_tried_and_when():
    """Whoever moves an end tries it again: `make matrix` prints the line."""
    assert list(told()) == ["oldest", "locked", "newest"]
    for name, (python, *versions, day) in told().items():
        assert datetime.date.fromisoformat(day) <= datetime.date.today() + datetime.timedelta(days=1)
        assert all(
            Version(version) >= Version(LOWEST[key]) for key, version in zip(matrix.SHOWN, versions, strict=True)
        )
        if name in matrix.PYTHONS:
            assert python.startswith(matrix.PYTHONS[name] + ".")
    shown = dict(zip(matrix.SHOWN, told()["oldest"][1:-1], strict=True))
    assert not matrix.out_of_reach(sync.dependencies(), shown)
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert all(
        f"\n{key}=={version} " in locked for key, version in zip(matrix.SHOWN, told()["locked"][1:-1], strict=True)
    )


def test_a_line_of_the_table_is_printed_as_the_readme_has_it():
    name, (python, *versions, day) = "oldest", told()["oldest"]
    line = matrix.row(name, python, dict(zip(matrix.SHOWN, versions, strict=True)), day)
    assert line in (ROOT / "README.md").read_text(encoding="utf-8")
