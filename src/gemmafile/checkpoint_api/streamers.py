"""Text while it is made: `generate(..., streamer=TextStreamer(tokenizer))` prints, TextIteratorStreamer is iterated.

A streamer has `put(ids)`, called with the prompt and then with each token, and `end()`. transformers' own work too.
"""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from gemmafile.errors import BadSettings

_END = object()


class TextStreamer:
    """Prints words as soon as they are whole. `skip_prompt`  leave the prompt out · options of `decode` besides"""

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode: Any):
        self.tokenizer, self.skip_prompt, self.decode_options = tokenizer, skip_prompt, decode
        self._ids: list[int] = []
        self._n_shown = 0
        self._is_prompt = True

    def put(self, value: Any) -> None:
        ids = np.asarray(value)
        if ids.ndim > 1 and len(ids) > 1:
            raise BadSettings("a streamer follows one answer, not a batch")
        if self._is_prompt and self.skip_prompt:
            self._is_prompt = False
            return
        self._is_prompt = False
        self._ids += ids.reshape(-1).tolist()
        text = self.tokenizer.decode(self._ids, **self.decode_options)
        if text.endswith("\n"):
            self.on_finalized_text(text[self._n_shown :])
            self._ids, self._n_shown = [], 0
            return
        # A character may still be without its last bytes, and a word without its end.
        end = len(text) if text and _is_ideograph(text[-1]) else text.rfind(" ") + 1
        if end > self._n_shown:
            shown, self._n_shown = text[self._n_shown : end], end
            self.on_finalized_text(shown)

    def end(self) -> None:
        text = self.tokenizer.decode(self._ids, **self.decode_options)[self._n_shown :] if self._ids else ""
        self._ids, self._n_shown, self._is_prompt = [], 0, True
        self.on_finalized_text(text, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(text, flush=True, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    """The same as an iterator, for another thread. `timeout`  seconds to wait for a text (queue.Empty then)"""

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode: Any):
        super().__init__(tokenizer, skip_prompt, **decode)
        self.timeout = timeout
        self._texts: queue.Queue[Any] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._texts.put(text)
        if stream_end:
            self._texts.put(_END)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        text = self._texts.get(timeout=self.timeout)
        if text is _END:
            raise StopIteration
        return str(text)


def _is_ideograph(c: str) -> bool:
    """Scripts without spaces: each character is shown as it comes."""
    return 0x3400 <= ord(c) <= 0x9FFF or 0xF900 <= ord(c) <= 0xFAFF or 0x20000 <= ord(c) <= 0x2FA1F
