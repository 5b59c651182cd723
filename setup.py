"""Builds the C extension. Everything declarative is in pyproject.toml.

FASTFLOW_NO_EXTENSION=1       build without the extension; the package then runs on numba
FASTFLOW_REQUIRE_EXTENSION=1  a failed build of the extension is an error, not a fallback to numba
FASTFLOW_SANITIZE=LIST        compile with -fsanitize=LIST, for example address,undefined
FASTFLOW_WERROR=1             warnings of the C compiler are errors
"""

import copy
import os
import platform
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
HEADERS = ("ff.h", "ff_errors.def")
NATIVE_FOLDERS = ("lib", "include")
# The library is found by its name alone, beside whatever links it; the linker keeps it loaded, as its threads live on.
if sys.platform == "darwin":
    LIBRARY, ORIGIN = "libfastflow.dylib", "@loader_path"
    LIBRARY_FLAGS = [f"-Wl,-install_name,@rpath/{LIBRARY}"]
else:
    LIBRARY, ORIGIN = "libfastflow.so", "$ORIGIN"
    LIBRARY_FLAGS = [f"-Wl,-soname,{LIBRARY}", "-Wl,-z,nodelete"]


def flag(name):
    return os.environ.get(name, "") not in ("", "0")


def isa_flags(source):
    """Compiler flags for this machine's architecture, from the comment at the head of a csrc/isa file."""
    match = re.search(rf"cflags {platform.machine()}: *(.*?)(?:\n|\*/)", Path(source).read_text())
    return match.group(1).split() if match else []


class BuildExtension(build_ext):
    """Builds csrc/ into one shared library, which programs without Python link too (docs/native.md), and the extension
    on top of it; falls back to neither where they cannot be built.

    The library and its header go where the extension goes: `fastflow/lib` and `fastflow/include`.
    """

    def build_extension(self, ext):
        common = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off", "-fno-fast-math"]
        if flag("FASTFLOW_WERROR"):
            common.append("-Werror")
        link = ["-lm", "-pthread"]
        if os.environ.get("FASTFLOW_SANITIZE"):
            sanitize = f"-fsanitize={os.environ['FASTFLOW_SANITIZE']}"
            # -O0 and -g1: what a sanitizer checks is in the code already, and optimising that, or telling a debugger
            # where each variable is, takes minutes. Line numbers remain.
            common += [sanitize, "-fno-sanitize-recover=all", "-g1", "-fno-omit-frame-pointer", "-O0"]
            link.append(sanitize)
        package = Path(self.build_lib, "fastflow")
        ext.libraries, ext.library_dirs = ["fastflow"], [str(package / "lib")]
        ext.extra_link_args = [*link, f"-Wl,-rpath,{ORIGIN}/../lib"]
        try:
            self.build_library(package, ext, common, link)
            ext.extra_objects += self.compiled([*CSRC.glob("field/*.c"), *CSRC.glob("xla/*.c")], ext, common)
            super().build_extension(ext)
        except Exception as error:
            if flag("FASTFLOW_REQUIRE_EXTENSION"):
                raise
            print(f"fastflow: the C extension was not built ({error}); the numba backend is used", file=sys.stderr)
            ext.optional = True
            ext.not_built = True
            for folder in NATIVE_FOLDERS:
                shutil.rmtree(package / folder, ignore_errors=True)

    def compiled(self, sources, ext, common):
        """The objects of some C files, several compiled at a time: each instruction set takes half a minute."""

        def compile_one(source):
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                macros=[("_GNU_SOURCE", None)],
                extra_postargs=common + isa_flags(source),
                depends=ext.depends,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [made for objects in pool.map(compile_one, sorted(map(str, sources))) for made in objects]

    def build_library(self, package, ext, common, link):
        """Compile each file of csrc/, those of csrc/isa with the flags they name, and link them."""
        objects = self.compiled([*CSRC.glob("*.c"), *CSRC.glob("isa/*.c")], ext, common)
        # Python's own command, but for what only extensions need: to be bundles (macOS), and the way to its libpython.
        linker = copy.copy(self.compiler)
        words = [word for word in linker.linker_so if not word.startswith("-Wl,-rpath")]
        linker.linker_so = ["-dynamiclib" if word == "-bundle" else word for word in words]
        linker.link_shared_object(objects, str(package / "lib" / LIBRARY), extra_postargs=link + LIBRARY_FLAGS)
        (package / "include").mkdir(parents=True, exist_ok=True)
        for header in HEADERS:
            shutil.copy(CSRC / header, package / "include")

    def copy_extensions_to_source(self):
        self.extensions = [ext for ext in self.extensions if not getattr(ext, "not_built", False)]
        super().copy_extensions_to_source()
        package = Path(self.get_finalized_command("build_py").get_package_dir("fastflow"))
        for folder in NATIVE_FOLDERS if self.extensions else ():
            shutil.copytree(Path(self.build_lib, "fastflow", folder), package / folder, dirs_exist_ok=True)


def extensions():
    if flag("FASTFLOW_NO_EXTENSION"):
        return []
    import numpy
    from Cython.Build import cythonize

    depends = sorted(str(p) for pattern in ("**/*.h", "**/*.c", "**/*.def") for p in CSRC.glob(pattern))
    native = Extension(
        "fastflow.backends.native",
        ["fastflow/backends/native.pyx"],
        include_dirs=[str(CSRC), str(CSRC / "field"), str(CSRC / "xla"), numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        depends=depends,
    )
    return cythonize([native], compiler_directives={"language_level": "3"})


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension})
