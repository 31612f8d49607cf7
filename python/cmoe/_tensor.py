# SPDX-License-Identifier: MIT
"""Tensors of the caller as views, and results of the caller's kind.

A kind is numpy, torch, or whatever else speaks DLPack.  Memory is passed as it is, with its
strides; a copy is made only of what a view cannot say (foreign byte order, strides that are no
whole number of elements).  Nothing here reads or writes an element.
"""
import ctypes
import functools
import math
import sys
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p

import numpy as np

from . import _native as n

_NUMPY = {"float32": n.F32, "float16": n.F16, "bfloat16": n.BF16, "float64": n.F64,
          "float8_e4m3fn": n.F8E4M3, "float8_e8m0fnu": n.F8E8M0, "int8": n.I8, "uint8": n.U8,
          "int32": n.I32, "int64": n.I64}
_NAMES = {code: name for name, code in _NUMPY.items()}
# DLPack's type code and bits.
_DLPACK = {(2, 32): n.F32, (2, 16): n.F16, (4, 16): n.BF16, (2, 64): n.F64, (10, 8): n.F8E4M3,
           (14, 8): n.F8E8M0, (0, 8): n.I8, (1, 8): n.U8, (0, 32): n.I32, (0, 64): n.I64}
_DL_HOST = (1, 3, 11)  # kDLCPU, kDLCUDAHost, kDLROCMHost: memory the CPU reads as it is


@functools.lru_cache(maxsize=None)
def _numpy_code(dtype):
    """The format of a numpy dtype or None; cached because asking numpy for a name is slow."""
    return _NUMPY.get(dtype.name)


@functools.lru_cache(maxsize=None)
def numpy_dtype(code):
    """The numpy dtype of a format; those numpy lacks come from ml_dtypes."""
    name = _NAMES[code]
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        import ml_dtypes
        return np.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError):
        raise n.error("CMOE_ERR_DTYPE",
                      "a numpy result of type %s needs ml_dtypes" % name) from None


class Tensor:
    """A tensor of the caller: `view` for the library, `kind` for results like it.

    `keep` holds the memory; the view is good as long as this object lives.
    """

    __slots__ = ("view", "kind", "keep", "shape")

    def __init__(self, view, kind, keep):
        self.view, self.kind, self.keep = view, kind, keep
        self.shape = tuple(view.dims[:min(view.rank, n.MAX_RANK)])


def _fill(view, name, data, dtype, shape, strides):
    if len(shape) > n.MAX_RANK:
        raise n.error("CMOE_ERR_SHAPE", "%s: rank %d, want at most %d"
                      % (name, len(shape), n.MAX_RANK))
    view.data, view.name, view.dtype = data, name.encode(), dtype
    view.device, view.rank = n.HOST, len(shape)
    view.dims[:len(shape)] = shape
    view.strides[:len(shape)] = strides
    return view


def _bad_dtype(name, dtype):
    return n.error("CMOE_ERR_DTYPE", "%s: dtype %s, want one of: %s"
                   % (name, dtype, " ".join(_NUMPY)))


def _bad_device(name, device):
    return n.error("CMOE_ERR_DEVICE", "%s: on device %s, want cpu" % (name, device))


# ---- numpy ----------------------------------------------------------------------------------


class _Numpy:
    def takes(self, x):
        return isinstance(x, np.ndarray)

    def wrap(self, x, name):
        code = _numpy_code(x.dtype)
        if code is None:
            raise _bad_dtype(name, x.dtype)
        size = x.itemsize
        if not x.dtype.isnative or any(s % size for s in x.strides):
            x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
        view = _fill(n.cmoe_view(), name, x.__array_interface__["data"][0], code, x.shape,
                     [s // size for s in x.strides])
        return Tensor(view, self, x)

    def rows(self, x):
        return x if x.ndim in (0, 2) else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def empty(self, shape, code):
        return np.empty(shape, numpy_dtype(code))

    def from_numpy(self, x):
        return x


# ---- torch ----------------------------------------------------------------------------------


class _Torch:
    """Only when the caller has imported torch: it is never imported here."""

    def takes(self, x):
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(x, torch.Tensor)

    def wrap(self, x, name):
        torch = sys.modules["torch"]
        code = _NUMPY.get(str(x.dtype).split(".")[-1])
        if code is None:
            raise _bad_dtype(name, x.dtype)
        if x.device.type != "cpu":
            raise _bad_device(name, x.device)
        if x.layout != torch.strided:
            raise n.error("CMOE_ERR_ARG", "%s: layout %s, want torch.strided" % (name, x.layout))
        x = x.detach().resolve_neg()
        return Tensor(_fill(n.cmoe_view(), name, x.data_ptr(), code, x.shape, x.stride()), self, x)

    def rows(self, x):
        return x if x.dim() in (0, 2) else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def empty(self, shape, code):
        torch = sys.modules["torch"]
        return torch.empty(tuple(shape), dtype=getattr(torch, _NAMES[code]))

    def from_numpy(self, x):
        return sys.modules["torch"].from_numpy(x)


# ---- DLPack ---------------------------------------------------------------------------------


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32),
                ("ndim", c_int32), ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16),
                ("shape", ctypes.POINTER(c_int64)), ("strides", ctypes.POINTER(c_int64)),
                ("byte_offset", c_uint64)]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _DLPack:
    """The capsule is only looked into, never consumed: when it goes, its own deleter runs.

    Results go back through the array API namespace of the object, when it has one; else they are
    numpy arrays.
    """

    def __init__(self, namespace=None):
        self.namespace = namespace

    def takes(self, x):
        return hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__")

    def wrap(self, x, name):
        device = x.__dlpack_device__()
        if int(device[0]) not in _DL_HOST:
            raise _bad_device(name, "%d:%d of DLPack" % (int(device[0]), int(device[1])))
        capsule = x.__dlpack__()
        t = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
        code = _DLPACK.get((t.code, t.bits)) if t.lanes == 1 else None
        if code is None:
            raise _bad_dtype(name, "code %d, %d bits, %d lanes of DLPack"
                             % (t.code, t.bits, t.lanes))
        shape = t.shape[:t.ndim]
        if t.strides:
            strides = t.strides[:t.ndim]
        else:
            strides = [1] * t.ndim
            for i in range(t.ndim - 2, -1, -1):
                strides[i] = strides[i + 1] * shape[i + 1]
        view = _fill(n.cmoe_view(), name, (t.data or 0) + t.byte_offset, code, shape, strides)
        namespace = getattr(x, "__array_namespace__", None)
        return Tensor(view, _DLPack(namespace()) if namespace else self, capsule)

    def rows(self, x):
        return x

    def empty(self, shape, code):
        return np.empty(shape, numpy_dtype(code))

    def from_numpy(self, x):
        if self.namespace is None:
            return x
        if x.dtype.isbuiltin == 1 and hasattr(self.namespace, "from_dlpack"):
            return self.namespace.from_dlpack(x)
        return self.namespace.asarray(x)


_NUMPY_KIND = _Numpy()
_KINDS = (_NUMPY_KIND, _Torch(), _DLPack())


def _kind_of(x, name):
    for kind in _KINDS:
        if kind.takes(x):
            return kind
    raise n.error("CMOE_ERR_DTYPE", "%s: %s, want a numpy array, a torch tensor or an object with "
                  "__dlpack__" % (name, type(x).__name__))


# ---- what the functions use -----------------------------------------------------------------


def wrap(x, name):
    """The caller's tensor as it is."""
    return _kind_of(x, name).wrap(x, name)


def wrap_rows(x, name):
    """As [rows, last dimension]; a vector is one row.  `shape` stays the caller's."""
    kind = _kind_of(x, name)
    t = kind.wrap(kind.rows(x), name)
    t.shape = tuple(getattr(x, "shape", t.shape))
    return t


def optional(x, name, how=wrap):
    """As `how` says, or None for None."""
    return None if x is None else how(x, name)


def view(t):
    """The view of a Tensor, or the view of zeros for None."""
    return n.cmoe_view() if t is None else t.view


def inout(x, name):
    """The caller's tensor, which the library changes in place: what would be copied is refused."""
    t = wrap(x, name)
    if isinstance(x, np.ndarray) and (t.keep is not x or not x.flags.writeable):
        raise n.error("CMOE_ERR_ARG", "%s: %s, want an array that can be changed in place"
                      % (name, "read-only" if t.keep is x else "foreign byte order or strides"))
    t.view = n.cmoe_view_mut.from_buffer_copy(t.view)
    t.view.name = name.encode()  # ctypes keeps the bytes alive with the view
    return t


class Out:
    """A result like `like`, to be written by the library through `view`."""

    __slots__ = ("view", "kind", "array")

    def __init__(self, like, name, shape, code):
        self.kind = like.kind
        self.array = like.kind.empty([max(int(d), 0) for d in shape], code)
        wrapped = (like.kind if isinstance(like.kind, _Torch) else _NUMPY_KIND).wrap(
            self.array, name)
        self.view = n.cmoe_view_mut.from_buffer_copy(wrapped.view)
        self.view.name = name.encode()

    def result(self, shape=None):
        """The tensor for the caller, in the shape it came in."""
        array = self.array if shape is None else self.array.reshape(tuple(shape))
        return array if isinstance(self.kind, _Torch) else self.kind.from_numpy(array)
