"""llama.cpp's own samplers, called in the xllamacpp wheel: it exports llama.cpp's C functions, which need no model.

Only for oracle tests. Structures are those of llama.h, release b11549.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, byref, c_bool, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache

import numpy as np


class TokenData(ctypes.Structure):
    _fields_ = (("id", c_int32), ("logit", c_float), ("p", c_float))


class TokenDataArray(ctypes.Structure):
    _fields_ = (("data", POINTER(TokenData)), ("size", c_size_t), ("selected", c_int64), ("sorted", c_bool))


class CppVector(ctypes.Structure):
    """std::vector: begin, end, end of the memory."""

    _fields_ = (("begin", c_void_p), ("end", c_void_p), ("limit", c_void_p))


class LogitBias(ctypes.Structure):
    _fields_ = (("token", c_int32), ("bias", c_float))


TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

SIGNATURES: dict[str, tuple[type, ...]] = {
    "top_k": (c_int32,),
    "top_p": (c_float, c_size_t),
    "min_p": (c_float, c_size_t),
    "typical": (c_float, c_size_t),
    "top_n_sigma": (c_float,),
    "xtc": (c_float, c_float, c_size_t, c_uint32),
    "temp": (c_float,),
    "temp_ext": (c_float, c_float, c_float),
    "penalties": (c_int32, c_int32, c_float, c_float, c_float),
    "mirostat": (c_int32, c_uint32, c_float, c_float, c_int32),
    "mirostat_v2": (c_uint32, c_float, c_float),
    "logit_bias": (c_int32, c_int32, POINTER(LogitBias)),
}

DRY_FROM_TOKENS = "_Z30llama_sampler_init_dry_testingffiiRKSt6vectorIS_IiSaIiEESaIS1_EE"
"""llama_sampler_init_dry_testing(float, float, int, int, const vector<vector<int>> &): breakers given as tokens."""


@lru_cache
def load_library() -> ctypes.CDLL:
    package = importlib.util.find_spec("xllamacpp.xllamacpp")
    assert package is not None
    assert package.origin is not None
    library = ctypes.CDLL(package.origin)
    for name, arguments in SIGNATURES.items():
        function = getattr(library, f"llama_sampler_init_{name}")
        function.argtypes, function.restype = arguments, c_void_p
    library.llama_sampler_apply.argtypes = (c_void_p, POINTER(TokenDataArray))
    library.llama_sampler_accept.argtypes = (c_void_p, c_int32)
    library.llama_sampler_free.argtypes = (c_void_p,)
    dry = getattr(library, DRY_FROM_TOKENS)
    dry.argtypes, dry.restype = (c_float, c_float, c_int32, c_int32, POINTER(CppVector)), c_void_p
    return library


class Chain:
    """Samplers of llama.cpp, one after another."""

    def __init__(self) -> None:
        self._library = load_library()
        self._samplers: list[int] = []

    def add(self, name: str, *arguments: object) -> Chain:
        self._samplers.append(getattr(self._library, f"llama_sampler_init_{name}")(*arguments))
        return self

    def add_logit_bias(self, n_vocab: int, biases: dict[int, float]) -> Chain:
        array = (LogitBias * len(biases))(*biases.items())
        return self.add("logit_bias", n_vocab, len(biases), array)

    def add_dry(self, multiplier: float, base: float, allowed: int, last_n: int, breakers: list[list[int]]) -> Chain:
        arrays = [np.array(breaker, np.int32) for breaker in breakers]
        vectors = (CppVector * len(arrays))(*map(_vector_over, arrays))
        size = ctypes.sizeof(vectors)
        outer = CppVector(ctypes.addressof(vectors), ctypes.addressof(vectors) + size, ctypes.addressof(vectors) + size)
        make = getattr(self._library, DRY_FROM_TOKENS)
        self._samplers.append(make(multiplier, base, allowed, last_n, byref(outer)))
        return self

    def accept(self, token_ids: list[int]) -> Chain:
        for sampler in self._samplers:
            for token_id in token_ids:
                self._library.llama_sampler_accept(sampler, token_id)
        return self

    def apply(self, logits: np.ndarray) -> tuple[list[tuple[int, float]], int]:
        """(token, logit) that can still be chosen, likeliest first, and the token that was chosen (-1: none)."""
        tokens = np.zeros(len(logits), TOKEN_DATA)
        tokens["id"], tokens["logit"] = np.arange(len(logits)), logits
        array = TokenDataArray(tokens.ctypes.data_as(POINTER(TokenData)), len(logits), -1, False)
        for sampler in self._samplers:
            self._library.llama_sampler_apply(sampler, byref(array))
        left = [(array.data[i].id, array.data[i].logit) for i in range(array.size)]
        chosen = left[array.selected][0] if array.selected >= 0 else -1
        left = sorted((pair for pair in left if pair[1] > -np.inf), key=lambda pair: (-pair[1], pair[0]))
        return left, chosen

    def close(self) -> None:
        for sampler in self._samplers:
            self._library.llama_sampler_free(sampler)
        self._samplers = []


def _vector_over(array: np.ndarray) -> CppVector:
    begin = array.ctypes.data
    return CppVector(begin, begin + array.nbytes, begin + array.nbytes)
