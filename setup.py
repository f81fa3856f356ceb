"""Puts the Snakefile, its rules and conf/ into the wheel; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("Snakefile", "workflow", "conf", "profiles")


class WithShare(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout is used where it lies
            return
        share = Path(self.build_lib, "holdfast", "share")
        shutil.rmtree(share, ignore_errors=True)
        share.mkdir(parents=True)
        for name in SHARED:
            copy = shutil.copytree if Path(name).is_dir() else shutil.copy2
            copy(name, share / name)


setup(cmdclass={"build_py": WithShare})
