"""What OpenAI's endpoints have in common: ids, usage, log-probabilities, timings of a stream."""

from __future__ import annotations

import hashlib
import secrets
import string
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemmafile.engine.jobs import Timings
from gemmafile.server.answering import llamacpp_timings
from gemmafile.server.errors import error_body
from gemmafile.server.json_response import event

if TYPE_CHECKING:
    from gemmafile.engine.jobs import Progress
    from gemmafile.server.answering import Finished, TextPiece
    from gemmafile.server.door import Door
    from gemmafile.server.errors import ApiError
    from gemmafile.text.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


def make_id(prefix: str) -> str:
    """One a response, the same in all its chunks."""
    letters = string.ascii_letters + string.digits
    return prefix + "".join(secrets.choice(letters) for _ in range(24))


def fingerprint(door: Door) -> str:
    """OpenAI's system_fingerprint: the same as long as the model is. It begins as llama.cpp's do, with a b."""
    model = door.model
    told = f"{door.model_name} {model.n_bytes} {model.n_params} {model.config.architecture}"
    return "b1-" + hashlib.sha256(told.encode()).hexdigest()[:12]


def now() -> int:
    return int(time.time())


def show_stream_error(error: ApiError) -> bytes:
    """An error in the middle of a stream, as llama.cpp sends it; clients raise it."""
    return event(error_body(error))


def usage_of(finished: Sequence[Finished], n_answers: int | None = None) -> dict[str, Any]:
    """The tokens of answers, `n_answers` to each prompt (default: all to one), which is counted once."""
    first_of_each = finished[:: n_answers or len(finished)]
    n_read = sum(each.n_prompt for each in first_of_each)
    n_written = sum(each.n_predicted for each in finished)
    return {
        "prompt_tokens": n_read,
        "completion_tokens": n_written,
        "total_tokens": n_read + n_written,
        "prompt_tokens_details": {"cached_tokens": sum(each.n_cached for each in first_of_each)},
    }


class Clock:
    """`timings` of an answer that is still coming, by the clock of this process."""

    def __init__(self, n_prompt: int):
        self.started_s = time.perf_counter()
        self._n_prompt, self._n_cached, self._n_predicted = n_prompt, 0, 0
        self._first_s: float | None = None

    def read(self, progress: Progress) -> dict[str, Any]:
        """llama.cpp's `prompt_progress`."""
        self._n_cached = progress.cached
        ms = int(1000 * (time.perf_counter() - self.started_s))
        return {"total": progress.total, "cache": progress.cached, "processed": progress.done, "time_ms": ms}

    def wrote(self, n_tokens: int) -> dict[str, Any]:
        """llama.cpp's `timings` so far."""
        now_s = time.perf_counter()
        first_s = self._first_s = self._first_s or now_s
        self._n_predicted += n_tokens
        prompt_ms, predicted_ms = 1000 * (first_s - self.started_s), 1000 * (now_s - first_s)
        n_read = self._n_prompt - self._n_cached
        return llamacpp_timings(Timings(self._n_cached, n_read, prompt_ms, self._n_predicted, predicted_ms))


# --- log-probabilities ------------------------------------------------------------------------------------------------


def token_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """A token as text, as bytes, and how likely it was. `id` is llama.cpp's."""
    raw = tokenizer.piece_bytes(token_id, special=True)
    return {"id": token_id, "token": raw.decode(errors="replace"), "bytes": list(raw), "logprob": finite(logprob)}


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TextPiece], n_top: int) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    entries = []
    for piece in tokens:
        assert piece.token_id is not None
        top = [token_entry(tokenizer, token_id, logprob) for token_id, logprob in (piece.top or ())[:n_top]]
        logprob = 0.0 if piece.logprob is None else piece.logprob
        entries.append({**token_entry(tokenizer, piece.token_id, logprob), "top_logprobs": top})
    return {"content": entries, "refusal": None}


def finite(logprob: float) -> float:
    """JSON has no -inf: OpenAI's API writes -9999 for what cannot be."""
    return max(-9999.0, logprob)
