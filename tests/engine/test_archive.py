"""Saved prefixes: what comes back is what went out; what is not ours is refused in plain words and changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import threading
import time
from pathlib import Path

import pytest

from gemmafile.engine.engine import Engine
from gemmafile.engine.jobs import End, Failed, Job, SlotDone
from gemmafile.engine.saved import fingerprint
from gemmafile.engine.scheduler import Scheduler
from gemmafile.model.batch import PAGE
from gemmafile.settings import SamplingSettings
from tests.engine.crowd import Crowd, Table, answer_alone, open_preset

GREEDY = SamplingSettings(temperature=0.0)
N_SAVED = 300


@pytest.fixture(scope="module", params=["f16", "q8_0"])
def engine(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Engine:
    kind = request.param
    return open_preset(tmp_path_factory.mktemp(kind), "gemma3", 3, cache_type_k=kind, cache_type_v=kind, context=640)


def crowd(engine: Engine, **options: object) -> Crowd:
    return Crowd(Scheduler(engine, Table(engine.config.n_vocab, ()), n_slots=3, **options))  # type: ignore[arg-type]


def finish(everyone: Crowd) -> None:
    end_s = time.monotonic() + 30
    while not everyone.scheduler.is_idle and time.monotonic() < end_s:
        everyone.step()
    assert everyone.scheduler.is_idle


def prompt(seed: int = 1, n: int = N_SAVED) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(4, 400) for _ in range(n)]


def change(everyone: Crowd, number: int, action: str, slot: int, path: Path | None = None) -> SlotDone | Failed:
    everyone.scheduler.change_slot(number, action, slot, path)
    finish(everyone)
    (event,) = everyone.events[number]
    assert isinstance(event, (SlotDone, Failed))
    return event


@pytest.fixture
def saved(engine: Engine, tmp_path: Path) -> Path:
    """A slot's 300 tokens and 9 more, in a file."""
    everyone = crowd(engine)
    everyone.submit(Job(1, prompt(), GREEDY, n_predict=10, slot=1))
    finish(everyone)
    done = change(everyone, 2, "save", 1, tmp_path / "a.keys")
    assert isinstance(done, SlotDone)
    assert (done.n_tokens, done.n_bytes) == (N_SAVED + 9, (tmp_path / "a.keys").stat().st_size)
    assert os.listdir(tmp_path) == ["a.keys"]
    everyone.scheduler.prefixes.evict(100)
    assert engine.pages.n_free == engine.pages.n_pages
    return tmp_path / "a.keys"


def test_what_is_restored_is_not_read_again(engine: Engine, saved: Path) -> None:
    everyone = crowd(engine)
    done = change(everyone, 1, "restore", 2, saved)
    assert isinstance(done, SlotDone)
    assert done.n_tokens == N_SAVED + 9
    assert everyone.scheduler.slot_views()[2]["n_past"] == N_SAVED + 9
    jobs = [Job(10, [*prompt(), 7], GREEDY, n_predict=20), Job(11, prompt(n=200), GREEDY, n_predict=5)]
    alone = [answer_alone(engine, job, Table(engine.config.n_vocab, ())) for job in jobs]
    everyone.submit(*jobs)
    finish(everyone)
    assert [everyone.tokens[job.id] for job in jobs] == alone
    assert [end.timings.cache_n for i in (10, 11) if isinstance(end := everyone.ends[i], End)] == [N_SAVED, 199]
    everyone.scheduler.prefixes.evict(100)


def test_a_slot_is_saved_while_it_runs(engine: Engine, tmp_path: Path) -> None:
    everyone = crowd(engine)
    job = Job(1, prompt(), GREEDY, n_predict=40, slot=0)
    everyone.submit(job)
    for _ in range(5):
        everyone.step()
    done = change(everyone, 2, "save", 0, tmp_path / "b")
    assert isinstance(done, SlotDone)
    assert N_SAVED < done.n_tokens <= N_SAVED + 40
    assert everyone.tokens[1] == answer_alone(engine, job, Table(engine.config.n_vocab, ()))
    everyone.scheduler.prefixes.evict(100)


def test_pages_of_a_file_that_is_read_cut_no_answer_short(engine: Engine, saved: Path) -> None:
    everyone = crowd(engine)
    job = Job(1, prompt(7, 600), GREEDY, n_predict=30)
    reading, go = threading.Event(), threading.Event()
    everyone.scheduler.archive._thread.submit(lambda: (reading.set(), go.wait(30)))
    assert reading.wait(30)
    spare = [engine.pages.take() for _ in range(engine.pages.n_free - 6)]
    everyone.scheduler.change_slot(9, "restore", 0, saved)
    assert engine.pages.n_free == 3
    everyone.submit(job)
    for _ in range(20):
        everyone.step()
    assert 1 not in everyone.ends
    go.set()
    finish(everyone)
    engine.pages.give_back(spare)
    assert [type(event) for event in everyone.events[9]] == [SlotDone]
    assert everyone.tokens[1] == answer_alone(engine, job, Table(engine.config.n_vocab, ()))
    everyone.scheduler.prefixes.evict(100)


def test_an_erased_slot_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    everyone = crowd(engine)
    everyone.submit(Job(1, prompt(), GREEDY, n_predict=2, slot=0))
    finish(everyone)
    done = change(everyone, 2, "erase", 0)
    assert isinstance(done, SlotDone)
    assert done.n_tokens == N_SAVED + 1
    assert engine.pages.n_free == engine.pages.n_pages
    empty = change(everyone, 3, "save", 0, tmp_path / "c")
    assert isinstance(empty, Failed)
    assert "nothing of this slot" in empty.message
    assert isinstance(change(everyone, 4, "save", 9, tmp_path / "c"), Failed)


def forge(original: bytes, **fields: object) -> bytes:
    """The same file with other words in its header, its sum made to fit."""
    (n,) = struct.unpack("<I", original[8:12])
    header = json.dumps(json.loads(original[12 : 12 + n]) | fields).encode()
    content = original[:8] + struct.pack("<I", len(header)) + header + original[12 + n : -32]
    return content + hashlib.sha256(content).digest()


def test_hostile_files_are_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    good = saved.read_bytes()
    n_header = 12 + struct.unpack("<I", good[8:12])[0]
    flipped = bytearray(good)
    flipped[-1000] ^= 1
    tokens = bytearray(good)
    tokens[n_header : n_header + 4] = struct.pack("<i", -5)
    cases = {
        b"": "ends too early",
        b"GGUF" + good[4:]: "no file of saved keys",
        good[:40]: "ends too early",
        good[:8] + struct.pack("<I", 1 << 31) + good[12:]: "header would have",
        good[:12] + b"[" * (n_header - 12) + good[n_header:]: "no JSON object",
        good[:-1]: "expected",
        good + b"x": "expected",
        bytes(flipped): "checksum",
        bytes(tokens): "tokens that the model does not have",
        forge(good, model="0" * 32): "another model",
        forge(good, cache_k="f32"): "cache_k",
        forge(good, page=64): "page",
        forge(good, n_tokens=10**12): "room for 640",
        forge(good, n_tokens=True): "room for 640",
        forge(good, n_tokens=N_SAVED): "expected",
        forge(good, n_tokens=None): "room for 640",
    }
    everyone = crowd(engine)
    for i, (content, words) in enumerate(cases.items()):
        path = tmp_path / "hostile"
        path.write_bytes(content)
        failed = change(everyone, i, "restore", 0, path)
        assert isinstance(failed, Failed), words
        assert words in failed.message
        assert (failed.status, engine.pages.n_free) == (400, engine.pages.n_pages)
    os.mkfifo(tmp_path / "pipe")
    for i, (name, words) in enumerate({"none": "cannot be opened", "pipe": "no file", ".": "cannot"}.items()):
        failed = change(everyone, 100 + i, "restore", 0, tmp_path / name)
        assert isinstance(failed, Failed)
        assert words in failed.message or "no file" in failed.message


def test_where_nothing_can_be_written_it_is_said(engine: Engine, saved: Path, tmp_path: Path) -> None:
    everyone = crowd(engine)
    change(everyone, 1, "restore", 0, saved)
    failed = change(everyone, 2, "save", 0, tmp_path / "no" / "folder")
    assert isinstance(failed, Failed)
    assert "cannot be written" in failed.message
    everyone.scheduler.prefixes.evict(100)
    assert engine.pages.n_free == engine.pages.n_pages


def test_prompts_outlive_the_process(engine: Engine, tmp_path: Path) -> None:
    system = prompt(3, 3 * PAGE + 90)
    first = crowd(engine, cache_folder=tmp_path)
    for i in range(3):  # too short, long enough, the same again
        first.submit(Job(i, [*(system[:200] if i == 0 else [*system, *prompt(9, 50)]), i], GREEDY, n_predict=3))
        finish(first)
    assert len(list(tmp_path.iterdir())) == 1
    first.scheduler.archive.close()
    first.scheduler.prefixes.evict(100)
    second = crowd(engine, cache_folder=tmp_path)
    job = Job(1, [*system, *prompt(9, 50), 99], GREEDY, n_predict=5)
    second.submit(job)
    finish(second)
    end = second.ends[1]
    assert isinstance(end, End)
    assert end.timings.cache_n == 4 * PAGE
    assert second.tokens[1] == answer_alone(engine, job, Table(engine.config.n_vocab, ()))
    (path,) = tmp_path.iterdir()
    second.scheduler.prefixes.evict(100)
    path.write_bytes(path.read_bytes()[:-5])
    third = crowd(engine, cache_folder=tmp_path)
    third.submit(job)
    finish(third)
    assert third.tokens[1] == second.tokens[1], "a damaged file costs time and nothing else"
    third.scheduler.archive.close()
    third.scheduler.prefixes.evict(100)


def test_what_a_killed_process_left_is_removed(engine: Engine, tmp_path: Path) -> None:
    for name, age_s in ((".old.keys.1.part", 7200), (".new.keys.2.part", 10), ("kept.keys", 7200), ("other", 7200)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    crowd(engine, cache_folder=tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".new.keys.2.part", "kept.keys", "other"]


def test_fingerprints_tell_models_apart(engine: Engine, tmp_path: Path) -> None:
    same = open_preset(tmp_path, "gemma3", context=640)
    other = open_preset(tmp_path, "gemma3-plain", context=512)
    assert fingerprint(same) == fingerprint(engine)
    assert fingerprint(same) != fingerprint(other)
    scaled = open_preset(tmp_path, "gemma3", context=512, rope_freq_scale=0.5)
    assert fingerprint(scaled) != fingerprint(same)
