"""Builds the native kernels with CMake; a failed build installs the package without them and says so loudly."""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "kernels" / "cpp").glob("*.cpp"))


class CMakeBuild(build_ext):
    def run(self):  # not build_extension: an editable install must find the libraries beside the Python files
        build = Path(self.build_temp).absolute() / "native"
        package = (ROOT / "kernels" if self.inplace else Path(self.build_lib).absolute()) / "policy_split_kernels"
        target = package / "cpu"
        commands = (
            ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_INSTALL_PREFIX={target}"],
            ["cmake", "--build", str(build)],
            ["cmake", "--install", str(build)],
        )
        try:
            for command in commands:
                subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            line = "!" * 100
            message = (
                f"\n{line}\n"
                f"policy-split: the native CPU kernels could not be built ({error}).\n"
                f"The package works without them, many times slower on CPUs. It needs a C++17 compiler with OpenMP.\n"
                f"{line}\n"
            )
            print(message, file=sys.stderr, flush=True)

    def get_outputs(self):
        return []


class AnyPythonWheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):  # the library is opened by ctypes: any Python 3 on this platform
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(include=["policy_split*"]) + find_packages("kernels"),
    package_dir={"policy_split_kernels": "kernels/policy_split_kernels", "policy_split": "policy_split"},
    include_package_data=False,
    package_data={
        "policy_split": ["py.typed", "report/templates/*", "model_card/templates/*", "words/list.txt"],
        "policy_split_kernels": ["py.typed"],
    },
    ext_modules=[Extension("policy_split_kernels._native", SOURCES)],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
