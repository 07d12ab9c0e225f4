"""The C interface from Python: what a program with ctypes would write. A process of its own runs it
(see `test_cpp.py`), since the fake driver must be found by nobody else."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import numpy as np

Text, Pointer = ctypes.c_char_p, ctypes.c_void_p


class Structure(ctypes.Structure):
    """One that tells its size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"struct_size": ctypes.sizeof(self), **fields})


class Options(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("device", ctypes.c_int32),
        ("shape", ctypes.c_int32 * 3),
        ("precision", Text),
        ("backend", Text),
        ("library", Text),
        ("threads", ctypes.c_int32),
        ("network", Text),
    ]


class Info(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("name", Text),
        ("file", Text),
        ("flavour", Text),
        ("version", Text),
        ("compute_capability", Text),
        ("device", Text),
        ("precision", Text),
        ("orientation", Text),
        ("sampling", Text),
        ("shape", ctypes.c_int32 * 3),
        ("has_warped", ctypes.c_int32),
        ("spacing_mm", ctypes.c_double * 3),
        ("lower_percentile", ctypes.c_double),
        ("upper_percentile", ctypes.c_double),
        ("device_memory", ctypes.c_int64),
        ("channels", ctypes.c_int32),
        ("smoothing", ctypes.c_double),
    ]


class Level(ctypes.Structure):
    _fields_ = [
        ("spacing_mm", ctypes.c_double),
        ("iterations", ctypes.c_int32),
        ("step", ctypes.c_double),
        ("force_sigma", ctypes.c_double),
        ("field_sigma", ctypes.c_double),
        ("feature_sigma", ctypes.c_double),
        ("features", ctypes.c_double),
    ]


class Refinement(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("shape", ctypes.c_int32 * 3),
        ("spacing_mm", ctypes.c_double * 3),
        ("moving", Pointer),
        ("fixed", Pointer),
        ("counts", Pointer),
        ("start", Pointer),
        ("start_shape", ctypes.c_int32 * 3),
        ("features", Pointer),
        ("channels", ctypes.c_int32),
        ("feature_shape", ctypes.c_int32 * 3),
        ("smoothing", ctypes.c_double),
        ("levels", ctypes.POINTER(Level)),
        ("level_count", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


paramorph = ctypes.CDLL(os.environ["LIBPARAMORPH"])
paramorph.paramorph_open.argtypes = [Text, ctypes.POINTER(Options), ctypes.POINTER(Pointer)]
paramorph.paramorph_describe.argtypes = [Pointer, ctypes.POINTER(Info)]
paramorph.paramorph_register.argtypes = [Pointer] * 5
paramorph.paramorph_register_async.argtypes = [Pointer] * 6
paramorph.paramorph_features.argtypes = [Pointer] * 4
paramorph.paramorph_refine.argtypes = [ctypes.POINTER(Refinement), Pointer, Pointer]
paramorph.paramorph_usual_levels.argtypes = [
    ctypes.c_int32,
    ctypes.POINTER(Level),
    ctypes.c_int32,
]
paramorph.paramorph_close.argtypes = [Pointer]
paramorph.paramorph_close.restype = None
paramorph.paramorph_stream.argtypes = [Pointer]
paramorph.paramorph_stream.restype = Pointer
for text in ("last_error", "version", "built_for"):
    getattr(paramorph, f"paramorph_{text}").restype = Text


class Refused(Exception):  # noqa: N818
    """A status other than OK, with its sentence."""

    def __init__(self, status: int) -> None:
        super().__init__(paramorph.paramorph_last_error().decode())
        self.status = status


def check(status: int) -> None:
    if status != 0:
        raise Refused(status)


def refusal(function, *args: Any, **kwargs: Any) -> list:
    """[status, sentence] of a call that must be refused."""
    try:
        function(*args, **kwargs)
    except Refused as err:
        return [err.status, str(err)]
    raise AssertionError("it was not refused")


class Engine:
    """An open engine; `with` closes it."""

    def __init__(self, bundle: str, **options: Any) -> None:
        given = Options(**{k: v.encode() if isinstance(v, str) else v for k, v in options.items()})
        self.handle = Pointer()
        check(paramorph.paramorph_open(bundle.encode(), given, self.handle))
        self.info = Info()
        check(paramorph.paramorph_describe(self.handle, self.info))
        self.shape = tuple(self.info.shape)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        paramorph.paramorph_close(self.handle)

    def register(self, moving: np.ndarray, fixed: np.ndarray, warped: bool = True) -> tuple:
        displacement = np.zeros((3, *self.shape), np.float32)
        result = np.zeros(self.shape, np.float32)
        arrays = [moving, fixed, displacement, *([result] if warped else [])]
        addresses = [array.ctypes.data for array in arrays] + ([] if warped else [None])
        check(paramorph.paramorph_register(self.handle, *addresses))
        return displacement, result

    def features(self, moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        features = np.full((2, self.info.channels, *self.shape), np.nan, np.float32)
        addresses = [array.ctypes.data for array in (moving, fixed, features)]
        check(paramorph.paramorph_features(self.handle, *addresses))
        return features

    def register_async(self, *addresses: int | None, stream: int | None = None) -> None:
        check(paramorph.paramorph_register_async(self.handle, *addresses, stream))

    @property
    def stream(self) -> int:
        return paramorph.paramorph_stream(self.handle)


def usual_levels(iterations: int, count: int = 5) -> list[Level]:
    levels = (Level * count)()
    check(paramorph.paramorph_usual_levels(iterations, levels, count))
    return list(levels)


def refine(
    moving: np.ndarray | None,
    fixed: np.ndarray,
    spacing_mm: tuple[float, ...],
    *,
    counts: np.ndarray | None = None,
    start: np.ndarray | None = None,
    features: np.ndarray | None = None,
    levels: list[Level] | None = None,
    **fields: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The refined displacement, and what it makes of the moving image."""
    arrays = {"moving": moving, "fixed": fixed, "counts": counts, "start": start}
    arrays["features"] = features
    given = {"shape": fixed.shape, "spacing_mm": spacing_mm}
    given |= {name: a.ctypes.data for name, a in arrays.items() if a is not None}
    if start is not None:
        given["start_shape"] = start.shape[1:]
    if features is not None:
        given |= {"channels": features.shape[1], "feature_shape": features.shape[2:]}
    if levels is not None:
        given |= {"levels": (Level * len(levels))(*levels), "level_count": len(levels)}
    displacement = np.full((3, *fixed.shape), np.nan, np.float32)
    warped = np.full(fixed.shape, np.nan, np.float32)
    request = Refinement(**(given | fields))
    check(paramorph.paramorph_refine(request, displacement.ctypes.data, warped.ctypes.data))
    return displacement, warped


class DeviceArray:
    """Memory of the fake GPU, allocated by the caller."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        address = ctypes.c_uint64()
        assert cuda().cuMemAlloc_v2(ctypes.byref(address), 4 * int(np.prod(shape))) == 0
        self.address = address.value

    @property
    def values(self) -> np.ndarray:
        """Its memory, as it is now."""
        pointer = ctypes.cast(self.address, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, self.shape)

    def free(self) -> None:
        assert cuda().cuMemFree_v2(ctypes.c_uint64(self.address)) == 0


def cuda() -> ctypes.CDLL:
    """The driver that the library found."""
    return ctypes.CDLL("libcuda.so.1")


def new_stream() -> int:
    stream = Pointer()
    assert cuda().cuStreamCreate(ctypes.byref(stream), 1) == 0
    return stream.value


def random_pair(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    moving, fixed = generator.integers(0, 100, (2, *shape)).astype(np.float32)
    return moving, fixed


def expected(moving: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the fake network computes; exact for small whole numbers."""
    displacement = np.stack([(c + 1) * moving + 10 * fixed for c in range(3)])
    return displacement, moving - 2 * fixed


def answer(value: Any) -> None:
    """Hands a value to the test."""
    print(json.dumps(value))
