"""The one compiled part: the passes of the refinement, one library for all versions of Python.

Everything else about the distribution is in setup.cfg. Without a C compiler the package installs
all the same, and the refinement runs in ONNX Runtime.
"""

import sys

from setuptools import Extension, setup

REFINEMENT = "runtime/paramorph_rt/refinement"
FAST = ["/O2"] if sys.platform == "win32" else ["-O3", "-fno-math-errno", "-fno-trapping-math"]

setup(
    ext_modules=[
        Extension(
            "paramorph_rt.refinement.kernels",
            [f"{REFINEMENT}/extension.c", f"{REFINEMENT}/kernels.c"],
            depends=[f"{REFINEMENT}/kernels.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=FAST,
            py_limited_api=True,
            extra_link_args=["-Wl,-s"] if sys.platform == "linux" else [],
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
