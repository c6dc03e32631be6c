"""Puts the book's results and networks into the wheel, as `advtrain/recorded`; all else is in pyproject.toml.

Archives depend on nothing but what is in them: who builds them, where, when and with which umask leaves no trace.
"""

import gzip
import io
import os
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# The date of every file: 2020-01-01, unless told another; a zip knows none before 1980.
MOMENT = max(int(os.environ.get("SOURCE_DATE_EPOCH", 1577836800)), 315532800)
MODE = 0o100644  # a plain file, readable by all


class WithResults(build_py):
    def run(self):
        if self.editable_mode:  # a checkout is read where it lies
            super().run()
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)  # what an earlier version had is no part of this one
        super().run()
        target = Path(self.build_lib, "advtrain", "recorded")
        target.mkdir(parents=True, exist_ok=True)
        results = Path("book", "results")
        for file in sorted([*results.glob("*.json"), *results.glob("weights/*.safetensors")]):
            place = target / file.relative_to(results)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)


class PlainWheel(bdist_wheel):
    def run(self):
        super().run()
        for path in (path for kind, _, path in self.distribution.dist_files if kind == "bdist_wheel"):
            with zipfile.ZipFile(path) as old:
                contents = {name: old.read(name) for name in old.namelist()}
            with zipfile.ZipFile(path, "w") as new:
                for name, content in contents.items():
                    entry = zipfile.ZipInfo(name, time.gmtime(MOMENT)[:6])
                    entry.create_system, entry.external_attr, entry.compress_type = 3, MODE << 16, zipfile.ZIP_DEFLATED
                    new.writestr(entry, content)


class PlainSdist(sdist):
    def run(self):
        super().run()
        for path in (path for path in self.archive_files if path.endswith(".tar.gz")):
            with tarfile.open(path) as old:
                contents = {entry.name: old.extractfile(entry).read() for entry in old if entry.isfile()}
            with (
                open(path, "wb") as file,
                gzip.GzipFile("", "wb", fileobj=file, mtime=MOMENT) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
            ):
                for name, content in sorted(contents.items()):
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mtime, entry.mode = len(content), MOMENT, MODE & 0o777
                    new.addfile(entry, io.BytesIO(content))


setup(cmdclass={"bdist_wheel": PlainWheel, "build_py": WithResults, "sdist": PlainSdist})
