# SPDX-License-Identifier: Apache-2.0
"""A wheel carries the plugin: SKVQ_PLUGIN names it, or it is that of the tree's build/."""
import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

NAME = "libskvq_plugin.so"


class WithPlugin(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return
        here = Path(__file__).resolve().parent
        plugin = Path(os.environ.get("SKVQ_PLUGIN") or here.parent.parent / "build" / "lib" / NAME)
        if not plugin.is_file():
            raise SystemExit(f"skvq: no plugin at {plugin}; run tools/build, or set SKVQ_PLUGIN to {NAME}")
        shutil.copy2(plugin, Path(self.build_lib) / "skvq" / NAME)


class AnyPython(bdist_wheel):
    """Machine code, but none that knows of Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(distclass=Binary, cmdclass={"build_py": WithPlugin, "bdist_wheel": AnyPython})
