"""llama.cpp's own grammar parser, called in the xllamacpp wheel: which texts may go on, and where they may end."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_size_t, c_uint32, c_void_p

from tests.engine.llamacpp_samplers import CppVector, load_library

INIT = "_Z23llama_grammar_init_implPK11llama_vocabPKcS3_bPS3_mPKim"
ACCEPT = "_Z20llama_grammar_acceptP13llama_grammarj"
STACKS = "_Z24llama_grammar_get_stacksP13llama_grammar"
CLONE = "_Z24llama_grammar_clone_implRK13llama_grammar"
FREE = "_Z23llama_grammar_free_implP13llama_grammar"


class LlamaGrammar:
    """A place in a grammar. Raises ValueError if llama.cpp refuses the grammar."""

    def __init__(self, text: str | None, handle: int | None = None):
        self._library = load_library()
        init = getattr(self._library, INIT)
        init.restype = c_void_p
        init.argtypes = (c_void_p, c_char_p, c_char_p, c_bool, c_void_p, c_size_t, c_void_p, c_size_t)
        for name, arguments, result in (
            (ACCEPT, (c_void_p, c_uint32), None),
            (STACKS, (c_void_p,), POINTER(CppVector)),
            (CLONE, (c_void_p,), c_void_p),
            (FREE, (c_void_p,), None),
        ):
            getattr(self._library, name).argtypes, getattr(self._library, name).restype = arguments, result
        self._handle = handle if text is None else init(None, text.encode(), b"root", False, None, 0, None, 0)
        if not self._handle:
            raise ValueError("llama.cpp refuses this grammar")

    def __del__(self) -> None:
        if self._handle:
            getattr(self._library, FREE)(self._handle)

    def after(self, text: str) -> LlamaGrammar:
        """The place after `text`; this one stays."""
        twin = LlamaGrammar(None, getattr(self._library, CLONE)(self._handle))
        for character in text:
            getattr(self._library, ACCEPT)(twin._handle, ord(character))
            if not twin.is_alive:
                break
        return twin

    @property
    def is_alive(self) -> bool:
        return len(self._stacks()) > 0

    @property
    def may_end(self) -> bool:
        """A stack with nothing left on it has come to the end."""
        return any(stack.begin == stack.end for stack in self._stacks())

    def _stacks(self) -> list[CppVector]:
        vector = getattr(self._library, STACKS)(self._handle).contents
        n = ((vector.end or 0) - (vector.begin or 0)) // ctypes.sizeof(CppVector)
        return list((CppVector * n).from_address(vector.begin)) if n else []
