# SPDX-License-Identifier: MIT
"""The shared object: where it lies, the structs of its headers, its functions and its errors.

A struct here repeats the one of the same name in include/cmoe/, field by field; tests/python
reads the headers and compares.  Functions are bound when they are first asked for, so a library
that lacks one fails where that one is used, by name.
"""
import ctypes
import os
import sys
from ctypes import (POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int32, c_int64,
                    c_size_t, c_uint32, c_void_p)

ABI = 0 << 16 | 1  # of the headers these structs were written from: major << 16 | minor

MAX_RANK = 6
HOST = -1
F32, F16, BF16, F8E4M3, F8E8M0, I8, U8, I32, I64, F64 = range(1, 11)


# ---- structs --------------------------------------------------------------------------------


class cmoe_error(Structure):
    _fields_ = [("size", c_size_t), ("status", c_int32), ("text", c_char * 512)]


class cmoe_view(Structure):
    _fields_ = [("data", c_void_p), ("name", c_char_p), ("dtype", c_int32), ("device", c_int32),
                ("rank", c_int32), ("reserved", c_int32), ("dims", c_int64 * 6),
                ("strides", c_int64 * 6)]


class cmoe_view_mut(Structure):
    _fields_ = cmoe_view._fields_


class cmoe_allocator(Structure):
    _fields_ = [("user", c_void_p), ("alloc", c_void_p), ("free", c_void_p)]


class cmoe_ctx_options(Structure):
    _fields_ = [("size", c_size_t), ("allocator", cmoe_allocator), ("log", c_void_p),
                ("log_user", c_void_p), ("threads", c_int32), ("parallel", c_void_p),
                ("parallel_user", c_void_p), ("isa_mask", c_uint32), ("plugin_dir", c_char_p)]


class cmoe_arena(Structure):
    _fields_ = [("base", c_void_p), ("bytes", c_int64), ("used", c_int64)]


class cmoe_route_options(Structure):
    _fields_ = [("size", c_size_t), ("topk", c_int64), ("scoring", c_int32),
                ("renormalize", c_int32), ("eps_rule", c_int32), ("eps", c_float),
                ("groups", c_int64), ("topk_groups", c_int64), ("group_mask", c_int32),
                ("group_score", c_int32), ("scale", c_float), ("jitter", c_float),
                ("shared", c_int64), ("validate", c_int32), ("groups_biased", c_int32)]


class cmoe_route_inputs(Structure):
    _fields_ = [("size", c_size_t), ("bias", cmoe_view), ("hash_table", cmoe_view),
                ("input_ids", cmoe_view), ("given_ids", cmoe_view), ("given_weights", cmoe_view),
                ("per_expert_scale", cmoe_view), ("shared_gate", cmoe_view)]


class cmoe_groups(Structure):
    _fields_ = [("tokens", c_int64), ("topk", c_int64), ("capacity", c_int64), ("first", c_void_p),
                ("row_of", c_void_p), ("slots", c_void_p), ("experts", c_int64)]


class cmoe_align_options(Structure):
    _fields_ = [("size", c_size_t), ("experts", c_int64), ("first_expert", c_int64),
                ("block", c_int64), ("validate", c_int32), ("reserved", c_int32),
                ("total_experts", c_int64)]


class cmoe_experts_options(Structure):
    _fields_ = [("size", c_size_t), ("format", c_int32), ("row_dtype", c_int32),
                ("activation", c_int32), ("swiglu_limit", c_float), ("alpha", c_float),
                ("ungated", c_int32), ("up_first", c_int32), ("interleaved", c_int32),
                ("transposed", c_int32), ("borrow", c_int32), ("round_gate_up", c_int32),
                ("round_act", c_int32), ("weight_at", c_int32), ("first_expert", c_int64),
                ("chunk", c_int64), ("scale13", cmoe_view), ("scale2", cmoe_view)]


class cmoe_experts_info(Structure):
    _fields_ = [("size", c_size_t), ("experts", c_int64), ("hidden", c_int64), ("inter", c_int64),
                ("first_expert", c_int64), ("format", c_int32), ("row_dtype", c_int32),
                ("weight_bytes", c_int64), ("expert_weight_bytes", c_int64),
                ("variant", c_char_p)]


class cmoe_rms_norm_options(Structure):
    _fields_ = [("size", c_size_t), ("eps", c_float), ("order", c_int32), ("round_sum", c_int32),
                ("weight_offset", c_float)]


class cmoe_gdn_pack_options(Structure):
    _fields_ = [("size", c_size_t), ("key_heads", c_int64), ("key_dim", c_int64),
                ("value_heads", c_int64), ("value_dim", c_int64), ("silu", c_int32),
                ("grouped", c_int32)]


class cmoe_gdn_pack_out(Structure):
    _fields_ = [("size", c_size_t), ("q", cmoe_view_mut), ("k", cmoe_view_mut),
                ("v", cmoe_view_mut), ("z", cmoe_view_mut), ("b", cmoe_view_mut),
                ("a", cmoe_view_mut)]


class cmoe_variant(Structure):
    _fields_ = [("op", c_char_p), ("name", c_char_p), ("dtype", c_int32), ("needs", c_uint32)]


# ---- functions ------------------------------------------------------------------------------

_VIEW, _OUT, _ARENA, _ERROR = cmoe_view, cmoe_view_mut, POINTER(cmoe_arena), POINTER(cmoe_error)
_BYTES = [POINTER(c_int64), POINTER(c_int64), _ERROR]  # host, device, err
_STATUS = c_int32

_PROTOTYPES = {
    "cmoe_status_name": (c_char_p, [c_int32]),
    "cmoe_version": (c_char_p, []),
    "cmoe_abi_version": (c_uint32, []),
    "cmoe_dtype_name": (c_char_p, [c_int32]),
    "cmoe_cpu_features": (c_uint32, []),
    "cmoe_isa_mask": (_STATUS, [c_char_p, POINTER(c_uint32), _ERROR]),
    "cmoe_isa_levels": (c_int32, []),
    "cmoe_isa_level_name": (c_char_p, [c_int32]),
    "cmoe_variants": (c_int64, [POINTER(cmoe_variant), c_int64]),
    "cmoe_ctx_options_default": (None, [POINTER(cmoe_ctx_options), c_size_t]),
    "cmoe_ctx_create": (_STATUS, [POINTER(c_void_p), POINTER(cmoe_ctx_options), _ERROR]),
    "cmoe_ctx_free": (None, [c_void_p]),
    "cmoe_ctx_threads": (c_int32, [c_void_p]),
    "cmoe_ctx_features": (c_uint32, [c_void_p]),
    "cmoe_stream_create": (_STATUS, [POINTER(c_void_p), c_void_p, _ERROR]),
    "cmoe_stream_free": (None, [c_void_p]),
    "cmoe_route_options_default": (None, [POINTER(cmoe_route_options), c_size_t]),
    "cmoe_route_inputs_default": (None, [POINTER(cmoe_route_inputs), c_size_t]),
    "cmoe_route_scoring_name": (c_char_p, [c_int32]),
    "cmoe_route_bytes": (_STATUS, [POINTER(cmoe_route_options), c_int64, c_int64] + _BYTES),
    "cmoe_route": (_STATUS, [c_void_p, POINTER(cmoe_route_options), _VIEW,
                             POINTER(cmoe_route_inputs), _OUT, _OUT, _ARENA, _ERROR]),
    "cmoe_align_options_default": (None, [POINTER(cmoe_align_options), c_size_t]),
    "cmoe_align_bytes": (_STATUS, [POINTER(cmoe_align_options), c_int64, c_int64] + _BYTES),
    "cmoe_align": (_STATUS, [c_void_p, POINTER(cmoe_align_options), _VIEW, POINTER(cmoe_groups),
                             _ARENA, _ERROR]),
    "cmoe_experts_options_default": (None, [POINTER(cmoe_experts_options), c_size_t]),
    "cmoe_activation_name": (c_char_p, [c_int32]),
    "cmoe_experts_create": (_STATUS, [POINTER(c_void_p), c_void_p, POINTER(cmoe_experts_options),
                                      _VIEW, _VIEW, _VIEW, _VIEW, _ERROR]),
    "cmoe_experts_free": (None, [c_void_p]),
    "cmoe_experts_describe": (_STATUS, [c_void_p, POINTER(cmoe_experts_info), _ERROR]),
    "cmoe_experts_bytes": (_STATUS, [c_void_p, c_int64, c_int64] + _BYTES),
    "cmoe_experts_run": (_STATUS, [c_void_p, c_void_p, _VIEW, _VIEW, _VIEW, _VIEW, _OUT, _ARENA,
                                   _ERROR]),
    "cmoe_rms_norm_options_default": (None, [POINTER(cmoe_rms_norm_options), c_size_t]),
    "cmoe_rms_norm": (_STATUS, [c_void_p, POINTER(cmoe_rms_norm_options), _VIEW, _VIEW, _VIEW,
                                _OUT, _OUT, _ERROR]),
    "cmoe_sigmoid_mul": (_STATUS, [c_void_p, _VIEW, _VIEW, c_int32, _OUT, _ERROR]),
    "cmoe_add_shared_expert": (_STATUS, [c_void_p, _VIEW, _VIEW, _VIEW, c_int32, _OUT, _ERROR]),
    "cmoe_quantize_rows": (_STATUS, [c_void_p, _VIEW, _OUT, _OUT, _ERROR]),
    "cmoe_gdn_pack_options_default": (None, [POINTER(cmoe_gdn_pack_options), c_size_t]),
    "cmoe_gdn_pack": (_STATUS, [c_void_p, POINTER(cmoe_gdn_pack_options), _VIEW, _VIEW, _VIEW,
                                _VIEW, _OUT, _VIEW, POINTER(cmoe_gdn_pack_out), _ERROR]),
}


def _open():
    """Beside the package (a wheel), then the build of the source tree, then the system."""
    here = os.path.dirname(os.path.abspath(__file__))
    names = ("libcmoe.dylib", "libcmoe.so") if sys.platform == "darwin" else ("libcmoe.so",)
    folders = (here, os.path.join(os.path.dirname(os.path.dirname(here)), "build"))
    for path in (os.path.join(folder, name) for folder in folders for name in names):
        if os.path.exists(path):
            return ctypes.CDLL(path), path
    try:
        return ctypes.CDLL("libcmoe.so.0.1"), "libcmoe.so.0.1"
    except OSError:
        raise ImportError("cmoe: no libcmoe.so in %s or %s, and the system has no libcmoe.so.0.1: "
                          "run `make` in the source tree, or install cmoe" % folders) from None


class _Library:
    """Attribute `route` is the C function `cmoe_route` with its prototype."""

    def __init__(self):
        self._handle, self.path = _open()
        if self.abi_version() != ABI:
            raise ImportError("cmoe: %s has ABI %#x (version %s), this binding wants %#x"
                              % (self.path, self.abi_version(), self.version().decode(), ABI))

    def __getattr__(self, name):
        if "cmoe_" + name not in _PROTOTYPES:
            raise AttributeError(name)
        function = getattr(self._handle, "cmoe_" + name)
        function.restype, function.argtypes = _PROTOTYPES["cmoe_" + name]
        setattr(self, name, function)
        return function


# ---- errors ---------------------------------------------------------------------------------


class Error(RuntimeError):
    """A call failed.  `status` is the name of the C status, the text is the library's.

    Errors of an argument are also a ValueError, of a number format also a TypeError, of memory
    also a MemoryError, and what this build cannot do also a NotImplementedError.
    """

    status = "CMOE_ERR_INTERNAL"

    def __init__(self, text, status=None):
        super().__init__(text)
        if status is not None:
            self.status = status


class ArgumentError(Error, ValueError):
    status = "CMOE_ERR_ARG"


class DtypeError(Error, TypeError):
    status = "CMOE_ERR_DTYPE"


class OutOfMemoryError(Error, MemoryError):
    status = "CMOE_ERR_MEMORY"


class UnsupportedError(Error, NotImplementedError):
    status = "CMOE_ERR_UNSUPPORTED"


_KINDS = {"CMOE_ERR_ARG": ArgumentError, "CMOE_ERR_SHAPE": ArgumentError,
          "CMOE_ERR_RANGE": ArgumentError, "CMOE_ERR_DTYPE": DtypeError,
          "CMOE_ERR_MEMORY": OutOfMemoryError, "CMOE_ERR_UNSUPPORTED": UnsupportedError}


def error(status, text):
    """The exception for the name of a status."""
    return _KINDS.get(status, Error)(text, status)


def call(name, *args):
    """lib.<name>(*args, &err), or the exception that the status stands for."""
    err = cmoe_error(size=ctypes.sizeof(cmoe_error))
    status = getattr(lib, name)(*args, ctypes.byref(err))
    if status != 0:
        raise error(lib.status_name(status).decode(), err.text.decode("utf-8", "replace"))


def options(kind, default):
    """A struct of options with the library's defaults."""
    result = kind()
    getattr(lib, default)(ctypes.byref(result), ctypes.sizeof(result))
    return result


lib = _Library()
