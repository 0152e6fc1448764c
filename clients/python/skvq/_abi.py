# SPDX-License-Identifier: Apache-2.0
"""plugin-abi/include/skvq/plugin.h in ctypes: structs, table, constants, error numbers.

tests/python/test_layout.py compares every struct here with what the C compiler makes of the
header, so the two cannot drift apart unseen.
"""
from __future__ import annotations

import ctypes as c

ABI_MAJOR = 1

LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR, LOG_ENGINE_MISBEHAVING, LOG_DAEMON_MISBEHAVING = range(6)
F32, F16, BF16 = 0, 1, 2
ROPE_NONE, ROPE_POST, ROPE_PRE = 0, 1, 2
PAIRS_HALF, PAIRS_INTERLEAVED = 0, 1
DEFAULT = 0xFFFFFFFF

SEQ_NO_MATCH, SEQ_NO_PUBLISH, SEQ_WHOLE, SEQ_DROP_UNSEEN = 1, 2, 4, 8

EXT_CALIBRATION = b"skvq.calibration/1"
EXT_PREFETCH = b"skvq.prefetch/1"

SESSION = MODEL = SEQ = c.c_void_p
LOG_FN = c.CFUNCTYPE(None, c.c_void_p, c.c_int32, c.c_char_p)
_P8 = c.POINTER(c.c_uint8)
_P32 = c.POINTER(c.c_uint32)
_I32 = c.POINTER(c.c_int32)


class Engine(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("reserved", c.c_uint32), ("user", c.c_void_p),
                ("log", LOG_FN), ("name", c.c_char_p), ("timeout_ms", c.c_uint32),
                ("reserved1", c.c_uint32)]


class ModelDesc(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("weights_digest", c.c_char_p),
                ("tokenizer_digest", c.c_char_p), ("lora_digest", c.c_char_p),
                ("engine_numerics", c.c_char_p), ("model_name", c.c_char_p),
                ("n_layer", c.c_uint32), ("n_q_heads", c.c_uint32), ("n_kv_heads", c.c_uint32),
                ("head_dim_k", c.c_uint32), ("head_dim_v", c.c_uint32), ("rope_kind", c.c_uint32),
                ("rope_pairs", c.c_uint32), ("rope_dim", c.c_uint32), ("rope_theta", c.c_double),
                ("rope_scaling", c.c_char_p), ("profile", c.c_char_p), ("calibration", c.c_char_p),
                ("calibration_bytes", c.c_uint64), ("window", c.c_uint32), ("sinks", c.c_uint32),
                ("bit_table", c.c_char_p), ("reorder_k", c.c_void_p), ("reorder_v", c.c_void_p),
                ("layer_window", _P32), ("clip", c.c_float), ("reserved", c.c_uint32)]


class SeqDesc(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("tokens", _I32),
                ("n_tokens", c.c_uint32), ("max_tokens", c.c_uint32), ("max_append", c.c_uint32),
                ("reserved", c.c_uint32), ("recompute_us", c.c_uint32), ("reserved1", c.c_uint32)]


class SeqInfo(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("n_tokens", c.c_uint32), ("n_matched", c.c_uint32),
                ("n_paged", c.c_uint32), ("pages_shared", c.c_uint32), ("pages_local", c.c_uint32),
                ("pages_inflight", c.c_uint32), ("daemon", c.c_uint32),
                ("bytes_shared", c.c_uint64), ("bytes_local", c.c_uint64),
                ("bytes_window", c.c_uint64), ("bytes_fp16", c.c_uint64), ("boot_id", c.c_uint64),
                ("n_refined", c.c_uint32), ("n_base", c.c_uint32), ("page_code_bytes", c.c_uint64),
                ("pages_safe", c.c_uint32), ("pages_dropped", c.c_uint32),
                ("layer_groups", c.c_uint32), ("reserved", c.c_uint32)]


class Kv(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("layer", c.c_uint32), ("position", c.c_uint32),
                ("n_tokens", c.c_uint32), ("k_type", c.c_uint32), ("v_type", c.c_uint32),
                ("k", c.c_void_p), ("v", c.c_void_p), ("k_token_stride", c.c_int64),
                ("k_head_stride", c.c_int64), ("v_token_stride", c.c_int64),
                ("v_head_stride", c.c_int64)]


class Attn(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("layer", c.c_uint32), ("position", c.c_uint32),
                ("n_rows", c.c_uint32), ("q_type", c.c_uint32), ("sliding_limit", c.c_uint32),
                ("ith", c.c_uint32), ("nth", c.c_uint32), ("scale", c.c_float),
                ("softcap", c.c_float), ("q", c.c_void_p), ("q_row_stride", c.c_int64),
                ("q_head_stride", c.c_int64), ("out", c.c_void_p), ("out_row_stride", c.c_int64),
                ("out_head_stride", c.c_int64), ("lse", c.c_void_p)]


class Export(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("layer", c.c_uint32), ("position", c.c_uint32),
                ("n_tokens", c.c_uint32), ("type", c.c_uint32), ("reserved", c.c_uint32),
                ("k", c.c_void_p), ("v", c.c_void_p), ("k_token_stride", c.c_int64),
                ("k_head_stride", c.c_int64), ("v_token_stride", c.c_int64),
                ("v_head_stride", c.c_int64)]


class Stats(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("daemon", c.c_uint32), ("boot_id", c.c_uint64),
                ("tokens_asked", c.c_uint64), ("tokens_matched", c.c_uint64),
                ("tokens_committed", c.c_uint64), ("pages_published", c.c_uint64),
                ("pages_deduplicated", c.c_uint64), ("publish_refused", c.c_uint64),
                ("reconnects", c.c_uint64), ("pages_off", c.c_uint64), ("pages_safe", c.c_uint64)]


class CalibrationOf(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("n_layer", c.c_uint32),
                ("weights_digest", c.c_char_p), ("n_q_heads", c.c_uint32),
                ("n_kv_heads", c.c_uint32), ("head_dim_k", c.c_uint32), ("head_dim_v", c.c_uint32)]


_FN = c.CFUNCTYPE


class ExtCalibration(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("reserved", c.c_uint32),
                ("get", _FN(c.c_int32, SESSION, c.POINTER(CalibrationOf), c.c_void_p, c.c_uint64,
                            c.POINTER(c.c_uint64))),
                ("put", _FN(c.c_int32, SESSION, c.c_char_p, c.c_uint64))]


class ExtPrefetch(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("reserved", c.c_uint32),
                ("prefetch", _FN(c.c_int32, MODEL, _I32, c.c_uint32))]


class Api(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32), ("abi_minor", c.c_uint32),
        ("open", _FN(c.c_int32, c.POINTER(Engine), c.c_char_p, c.POINTER(SESSION))),
        ("close", _FN(None, SESSION)),
        ("model_register", _FN(c.c_int32, SESSION, c.POINTER(ModelDesc), c.POINTER(MODEL))),
        ("model_unregister", _FN(c.c_int32, MODEL)),
        ("seq_open", _FN(c.c_int32, MODEL, c.POINTER(SeqDesc), c.POINTER(SEQ))),
        ("seq_poll", _FN(c.c_int32, SEQ)),
        ("session_fd", _FN(c.c_int32, SESSION)),
        ("seq_commit", _FN(c.c_int32, SEQ, _I32, c.c_uint32)),
        ("seq_fork", _FN(c.c_int32, SEQ, c.POINTER(SEQ))),
        ("seq_truncate", _FN(c.c_int32, SEQ, c.c_uint32)),
        ("seq_close", _FN(None, SEQ)),
        ("seq_snapshot", _FN(c.c_int32, SEQ, c.c_void_p, c.c_uint64, c.POINTER(c.c_uint64))),
        ("seq_resume", _FN(c.c_int32, MODEL, c.c_void_p, c.c_uint64, c.POINTER(SEQ))),
        ("seq_info", _FN(c.c_int32, SEQ, c.POINTER(SeqInfo))),
        ("stats", _FN(c.c_int32, SESSION, c.POINTER(Stats))),
        ("append", _FN(c.c_int32, SEQ, c.POINTER(Kv))),
        ("attend", _FN(c.c_int32, c.POINTER(SEQ), c.POINTER(Attn), c.c_uint32)),
        ("export_kv", _FN(c.c_int32, SEQ, c.POINTER(Export))),
        ("err_name", _FN(c.c_char_p, c.c_int32)),
        ("last_error", _FN(c.c_int32, SESSION, c.c_char_p, c.c_uint64)),
        ("get_extension", _FN(c.c_void_p, SESSION, c.c_char_p)),
    ]


# C names of what is above, for the test.
STRUCTS = {
    "skvq_engine": Engine, "skvq_model_desc": ModelDesc, "skvq_seq_desc": SeqDesc,
    "skvq_seq_info": SeqInfo, "skvq_kv": Kv, "skvq_attn": Attn, "skvq_export": Export,
    "skvq_stats": Stats, "skvq_calibration_of": CalibrationOf,
    "skvq_ext_calibration": ExtCalibration, "skvq_ext_prefetch": ExtPrefetch, "skvq_api": Api,
}

# Numbers the package itself looks at; the plugin names all others (err_name).
ESTATE, EFORKED, ENODAEMON, EAGAIN, ETIMEOUT = 3, 10, 34, 64, 65
