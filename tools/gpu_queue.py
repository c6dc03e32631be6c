"""Entries of benchmarks/QUEUE.md as scripts: python tools/gpu_queue.py [ENTRY]

Without ENTRY it lists them. With one, such as 2a, it prints a shell script that runs what stands in that row's second
column, in the way in which the page describes: with `run` as it is defined there, data in `$DATA`, results in `$OUT`.
"""

import argparse
import re
import sys
from pathlib import Path

QUEUE = Path(__file__).resolve().parent.parent / "benchmarks" / "QUEUE.md"
ROW = re.compile(r"^\| (\d+[a-z]?) \| (.*?) \| (.*) \| ([^|]*) \|$", re.M)
DEFINED = re.compile(r"^run\(\) \{.*\}$", re.M)
PROGRAMS = ("run", "python")


def entries(text):
    """{entry: (commands, why, minutes)}: the commands are what its row has between backticks."""
    return {number: (re.findall(r"`([^`]+)`", what), why, minutes) for number, what, why, minutes in ROW.findall(text)}


def script(text, entry):
    """What runs an entry, as text for bash.

    Raises:
        ValueError: there is no such entry, or its row holds something else than whole commands.
    """
    known = entries(text)
    if entry not in known:
        raise ValueError(f"there is no entry {entry!r}; there are {', '.join(known)}")
    commands = known[entry][0]
    for command in commands:
        if command.split()[0] not in PROGRAMS:
            raise ValueError(f"entry {entry} names {command!r}, which is no whole command: write it out")
    (define,) = DEFINED.findall(text)
    begin = 'mkdir -p "$OUT" && cp book/results/*.json "$OUT"'  # what is there is gone on with
    lines = [f"{command} || status=$?" for command in commands]  # 1 may only mean that runs are left for another time
    return "\n".join(["set -euo pipefail", begin, define, *lines, 'exit "${status:-0}"']) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", nargs="?", help="the number of a row")
    entry, text = parser.parse_args().entry, QUEUE.read_text(encoding="utf-8")
    if entry is None:
        for number, (commands, _, minutes) in entries(text).items():
            print(f"{number:4}{minutes:>18}  {commands[0]}")
        return
    try:
        print(script(text, entry), end="")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
