"""Builds the C extension. Everything declarative is in pyproject.toml.

FASTFLOW_NO_EXTENSION=1       build without the extension; the package then runs on numba
FASTFLOW_REQUIRE_EXTENSION=1  a failed build of the extension is an error, not a fallback to numba
FASTFLOW_SANITIZE=LIST        compile with -fsanitize=LIST, for example address,undefined
FASTFLOW_WERROR=1             warnings of the C compiler are errors
"""

import os
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")


def flag(name):
    return os.environ.get(name, "") not in ("", "0")


def isa_flags(source):
    """Compiler flags for this machine's architecture, from the comment at the head of a csrc/isa file."""
    match = re.search(rf"cflags {platform.machine()}: *(.*?)(?:\n|\*/)", Path(source).read_text())
    return match.group(1).split() if match else []


class BuildExtension(build_ext):
    """Compiles each csrc/isa file with the flags it names, and falls back to no extension where none can be built."""

    def build_extension(self, ext):
        common = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off", "-fno-fast-math"]
        if flag("FASTFLOW_WERROR"):
            common.append("-Werror")
        link = ["-lm", "-pthread"]
        if os.environ.get("FASTFLOW_SANITIZE"):
            sanitize = f"-fsanitize={os.environ['FASTFLOW_SANITIZE']}"
            common += [sanitize, "-fno-sanitize-recover=all", "-g", "-fno-omit-frame-pointer"]
            link.append(sanitize)
        ext.extra_link_args = link
        try:

            def compiled(source):
                return self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=ext.include_dirs,
                    macros=[("_GNU_SOURCE", None)],
                    extra_postargs=common + isa_flags(source),
                    depends=ext.depends,
                )

            sources = sorted(str(path) for path in [*CSRC.glob("*.c"), *CSRC.glob("isa/*.c")])
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # each file of an instruction set takes half a minute
                for objects in pool.map(compiled, sources):
                    ext.extra_objects += objects
            super().build_extension(ext)
        except Exception as error:
            if flag("FASTFLOW_REQUIRE_EXTENSION"):
                raise
            print(f"fastflow: the C extension was not built ({error}); the numba backend is used", file=sys.stderr)
            ext.optional = True
            ext.not_built = True

    def copy_extensions_to_source(self):
        self.extensions = [ext for ext in self.extensions if not getattr(ext, "not_built", False)]
        super().copy_extensions_to_source()


def extensions():
    if flag("FASTFLOW_NO_EXTENSION"):
        return []
    import numpy
    from Cython.Build import cythonize

    depends = sorted(str(p) for pattern in ("**/*.h", "**/*.c", "**/*.def") for p in CSRC.glob(pattern))
    native = Extension(
        "fastflow.backends.native",
        ["fastflow/backends/native.pyx"],
        include_dirs=[str(CSRC), numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        depends=depends,
    )
    return cythonize([native], compiler_directives={"language_level": "3"})


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension})
