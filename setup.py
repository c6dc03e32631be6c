"""Puts the book's recorded results into the wheel, as `advtrain/recorded`. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithResults(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # a checkout is read where it lies
            return
        target = Path(self.build_lib, "advtrain", "recorded")
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(Path("book", "results").glob("*.json")):
            shutil.copyfile(file, target / file.name)


setup(cmdclass={"build_py": WithResults})
