"""Slots: where jobs run, one at a time in each, and what people do to a slot between answers (llama.cpp's /slots).

What a slot remembers are tokens; their keys and values are in the tree of prefixes while there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemmafile.engine.archive import Archive
from gemmafile.engine.jobs import Event, Job, SlotDone, failed
from gemmafile.engine.prefixes import Prefixes
from gemmafile.engine.runs import Run
from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.settings import changed

ACTIONS = ("save", "restore", "erase")


@dataclass(slots=True, eq=False)
class Slot:
    """A place where one job runs at a time; it remembers the tokens of the last.

    `token_ids`  what its last job left in the cache (as long as others do not need the room)
    """

    id: int
    run: Run | None = None
    token_ids: list[int] = field(default_factory=list)
    job: Job | None = None
    n_prompt: int = 0
    n_cached: int = 0
    freed: int = 0

    def hold(self, token_ids: list[int]) -> None:
        """These tokens came out of a file, or went."""
        self.token_ids, self.n_prompt, self.n_cached = token_ids, len(token_ids), 0

    def view(self, n_context: int) -> dict[str, Any]:
        """As llama.cpp's /slots shows it, texts left out."""
        run, job = self.run, self.run.job if self.run is not None else self.job
        n_past = run.n_computed if run is not None else len(self.token_ids)
        n_chosen = run.n_chosen if run is not None else max(0, n_past - self.n_prompt)
        n_predict = job.n_predict if job is not None else -1
        return {
            "id": self.id,
            "id_task": job.id if job is not None else -1,
            "n_ctx": n_context,
            "speculative": False,
            "is_processing": run is not None,
            "n_past": n_past,
            "n_prompt_tokens": run.n_prompt if run is not None else self.n_prompt,
            "n_prompt_tokens_cache": run.n_cached if run is not None else self.n_cached,
            "n_prompt_tokens_processed": min(n_past, run.n_prompt) if run is not None else self.n_prompt,
            "params": {"n_predict": n_predict, **({} if job is None else changed(job.sampling))},
            "next_token": {
                "has_next_token": run is not None and not run.is_embedding,
                "n_decoded": n_chosen,
                "n_remain": max(0, n_predict - n_chosen) if n_predict >= 0 else -1,
            },
        }


class SlotActions:
    """Saves, restores and erases slots. `tell` gets what becomes of it: `SlotDone` or `Failed`."""

    def __init__(self, slots: Sequence[Slot], prefixes: Prefixes, archive: Archive, tell: Callable[[Event], None]):
        self._slots, self._prefixes, self._archive, self._tell = slots, prefixes, archive, tell

    def change(self, number: int, action: str, slot_id: int, path: Path | None) -> None:
        """`number` is the id of the events · `path` of the file, for all but "erase"."""
        if not 0 <= slot_id < len(self._slots) or action not in ACTIONS:
            wrong = BadSettings(f"there is no slot {slot_id}, or nothing called {action!r} to do with it")
            self._tell(failed(number, wrong))
            return
        slot = self._slots[slot_id]

        def done(n_tokens: int, n_bytes: int, ms: float, error: GemmafileError | None) -> None:
            is_done = SlotDone(number, slot_id, action, n_tokens, n_bytes, ms)
            self._tell(is_done if error is None else failed(number, error))

        def restored(token_ids: list[int], n_bytes: int, ms: float, error: GemmafileError | None) -> None:
            if slot.run is None and error is None:
                slot.hold(token_ids)
            done(len(token_ids), n_bytes, ms, error)

        if action == "erase":
            done(self._erase(slot), 0, 0.0, None)
            return
        assert path is not None
        if action == "restore":
            self._archive.restore(path, restored)
        else:
            self._archive.save(path, _kept_tokens(slot), done)

    def _erase(self, slot: Slot) -> int:
        """How many tokens went; none while a job needs them."""
        n_erased = 0 if slot.run is not None else self._prefixes.forget(slot.token_ids)
        slot.hold([])
        return n_erased


def _kept_tokens(slot: Slot) -> list[int]:
    """Tokens of a slot, or of the job that runs there, which may be in the tree."""
    run = slot.run
    if run is None:
        return slot.token_ids
    return run.tokens[: run.n_computed] if run.is_sharing else []
