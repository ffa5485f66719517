"""The scheduler: an answer is the same whoever runs beside it, nobody waits for ever, nothing is lost."""

from __future__ import annotations

import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gemmafile.engine.engine import Engine
from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.engine.jobs import End, Failed, Job, Progress, Scores, Token
from gemmafile.engine.passes import SCORED_ROWS
from gemmafile.engine.scheduler import Scheduler
from gemmafile.model.batch import PAGE
from gemmafile.settings import SamplingSettings
from tests.engine.crowd import EOG, Crowd, Table, answer_alone, open_preset, random_job

GREEDY = SamplingSettings(temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crowd")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return open_preset(folder, "gemma2", n_sequences=8)


@pytest.fixture(scope="module")
def table(engine: Engine) -> Table:
    return Table(engine.config.n_vocab)


def crowd(engine: Engine, table: Table, **options: object) -> Crowd:
    return Crowd(Scheduler(engine, table, **options))  # type: ignore[arg-type]


def ids_of(seed: int, n: int, n_vocab: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(EOG + 1, n_vocab) for _ in range(n)]


@pytest.mark.parametrize(
    ("preset", "cache"),
    [
        ("gemma", "f16"),
        ("gemma2", "f16"),
        ("gemma2-odd", "q8_0"),
        ("gemma3", "f16"),
        ("llama", "f32"),
        ("llama3", "bf16"),
    ],
)
def test_answers_do_not_depend_on_who_is_beside(folder: Path, preset: str, cache: str, full: bool) -> None:
    """Random arrivals, cancels, shared beginnings, long prompts, few pages: each answer as if it were alone."""
    engine = open_preset(
        folder, preset, n_sequences=2, context=512, ubatch=64, threads_batch=2, cache_type_k=cache, cache_type_v=cache
    )
    table, rng = Table(engine.config.n_vocab), random.Random(preset)
    beginnings = [ids_of(seed, 200, engine.config.n_vocab) for seed in range(3)]
    jobs = {i: random_job(rng, i, beginnings, engine.config.n_vocab) for i in range(60 if full else 24)}
    alone = {i: answer_alone(engine, job, table) for i, job in jobs.items()}
    everyone = crowd(engine, table, n_slots=5, pass_s=0.002)
    left = list(jobs.values())
    cancelled = set()
    while left or not everyone.scheduler.is_idle:
        for _ in range(rng.choice([0, 0, 1, 3])):
            if left:
                everyone.submit(left.pop())
        if rng.random() < 0.05 and (under_way := set(everyone.events) - set(everyone.ends)):
            cancelled.add(chosen := rng.choice(sorted(under_way)))
            everyone.scheduler.cancel(chosen)
        everyone.step()
    for i, expected in alone.items():
        end = everyone.ends[i]
        assert isinstance(end, End)
        tokens = everyone.tokens.get(i, [])
        if i in cancelled and end.reason == "cancelled":
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected
            assert end.reason == ("stop" if expected[-1] == EOG else "limit")
    stats = everyone.scheduler.stats()
    assert stats["cached_tokens"] > 100, "nothing was shared"
    assert (stats["running"], stats["waiting"], stats["kv_use"]) == (0, 0, 0)
    everyone.scheduler.prefixes.evict(1000)
    assert engine.pages.n_free == engine.pages.n_pages
    engine.close()


def test_pages_that_run_out_lose_no_token(folder: Path) -> None:
    """Answers that grow past the cache: the youngest wait for another turn, and go on where they were."""
    engine = open_preset(folder, "llama", n_sequences=1, context=512)
    table = Table(engine.config.n_vocab, eog_ids=())
    jobs = [Job(i, ids_of(i, 60, engine.config.n_vocab), SamplingSettings(seed=i), n_predict=220) for i in range(4)]
    alone = {job.id: answer_alone(engine, job, table) for job in jobs}
    everyone = crowd(engine, table, n_slots=8)
    everyone.submit(*jobs)
    everyone.finish()
    assert everyone.tokens == alone
    assert everyone.scheduler.totals["preemptions"] > 0
    assert [type(end) for end in everyone.ends.values()] == [End] * 4
    engine.close()


def test_a_long_prompt_does_not_hold_others_up(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, Table(engine.config.n_vocab, ()), n_slots=4, pass_s=1e-9)
    everyone.submit(Job(1, ids_of(1, 5, 400), GREEDY, n_predict=60))
    everyone.step()
    everyone.submit(Job(2, ids_of(2, 900, 400), GREEDY, n_predict=3), Job(3, ids_of(3, 20, 400), GREEDY, n_predict=3))
    seen: dict[int, int] = {}
    for turn in range(200):
        events = everyone.step()
        if 1 not in everyone.ends:
            assert sum(isinstance(event, Token) and event.id == 1 for event in events) == 1, "every pass has its row"
        for event in events:
            if isinstance(event, Token):
                seen.setdefault(event.id, turn)
    assert seen[3] < seen[2], "a short prompt does not wait for the long one"
    assert set(everyone.ends) == {1, 2, 3}


def test_a_further_turn_pays_for_new_text_only(engine: Engine) -> None:
    table = Table(engine.config.n_vocab, ())
    everyone = crowd(engine, table, n_slots=2)
    chat = ids_of(5, 50, 400)
    for turn in range(10):
        everyone.submit(Job(turn, chat, GREEDY, n_predict=30))
        everyone.finish()
        end = everyone.ends[turn]
        assert isinstance(end, End)
        timings = end.timings
        assert (timings.cache_n, timings.prompt_n) == ((0, 50) if turn == 0 else (len(chat) - 12, 12))
        assert timings.predicted_n == 30
        # The last token chosen is not in the cache yet.
        chat = [*chat, *everyone.tokens[turn], *ids_of(100 + turn, 11, 400)]


def test_a_system_prompt_is_held_and_read_once(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, table, n_slots=4)
    system = ids_of(6, 700, 400)
    everyone.submit(*(Job(i, [*system, 10 + i], GREEDY, n_predict=20) for i in range(4)))
    before = everyone.scheduler.totals["rows"]
    most_shared = 0.0
    while not everyone.scheduler.is_idle:
        everyone.step()
        most_shared = max(most_shared, everyone.scheduler.stats()["pages_shared"])
    assert most_shared == 3 * (700 // PAGE)
    assert everyone.scheduler.totals["rows"] - before <= 701 + 4 * 25
    cached = sorted(end.timings.cache_n for end in everyone.ends.values() if isinstance(end, End))
    assert cached == [0, 700, 700, 700]


def test_more_than_may_wait_are_told_when_to_come_again(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, table, n_slots=2, queue_limit=3)
    everyone.submit(*(Job(i, [10 + i], GREEDY, n_predict=5) for i in range(9)))
    everyone.finish()
    refused = {i: end for i, end in everyone.ends.items() if isinstance(end, Failed)}
    assert sorted(refused) == [5, 6, 7, 8], "two run, three wait"
    for failed in refused.values():
        assert (failed.status, failed.kind) == (429, "rate_limit_error")
        assert failed.retry_after_s is not None
        assert failed.retry_after_s >= 1


def test_what_can_never_be_done_is_refused(engine: Engine, table: Table) -> None:
    n_vocab = engine.config.n_vocab
    jobs = [
        (Job(1, []), "empty"),
        (Job(2, [n_vocab]), "vocabulary"),
        (Job(3, [5] * 1025), "1025 tokens and the context holds 1024"),
        (Job(4, [5], SamplingSettings(top_p=7)), "top_p"),
        (Job(5, [5], pooling="max"), "pooling"),
        (Job(6, [5], slot=4), "slot 4"),
        (Job(7, [5], SamplingSettings(grammar="root ::= [")), "grammar"),
        (Job(8, [5], SamplingSettings(json_schema='{"type": "text"}')), "json_schema"),
    ]
    everyone = crowd(engine, table, n_slots=4)
    everyone.submit(*(job for job, _ in jobs))
    everyone.finish()  # two grammars are compiled for that
    for job, words in jobs:
        failed = everyone.ends[job.id]
        assert isinstance(failed, Failed)
        assert failed.status == 400
        assert words in failed.message
    overflow = everyone.ends[3]
    assert isinstance(overflow, Failed)
    assert (overflow.kind, overflow.n_prompt, overflow.n_context) == ("exceed_context_size_error", 1025, 1024)


def test_a_cancelled_job_is_gone_before_the_next_pass(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, table, n_slots=1)
    everyone.submit(Job(1, ids_of(8, 40, 400), GREEDY, n_predict=900), Job(2, [9], GREEDY, n_predict=2))
    everyone.step()
    everyone.step()
    everyone.scheduler.cancel(1)
    everyone.scheduler.cancel(77)
    events = everyone.step()
    assert [type(event) for event in events if event.id == 1] == [End]
    assert [event.id for event in events if isinstance(event, Token)] == [2], "its slot is another's already"
    everyone.finish()
    assert [end.reason for end in everyone.ends.values() if isinstance(end, End)] == ["cancelled", "limit"]


def test_a_deadline_ends_an_answer_running_or_waiting(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, Table(engine.config.n_vocab, ()), n_slots=1)
    jobs = [Job(i, [9 + i], GREEDY, n_predict=-1, deadline_s=0.05) for i in range(2)]
    everyone.submit(*jobs)
    everyone.finish()
    assert [end.reason for end in everyone.ends.values() if isinstance(end, End)] == ["deadline"] * 2
    assert 2 not in everyone.tokens


def test_an_answer_ends_with_its_context(folder: Path) -> None:
    engine = open_preset(folder, "llama", context=100)
    table = Table(engine.config.n_vocab, ())
    everyone = crowd(engine, table, n_slots=2)
    everyone.submit(Job(1, ids_of(1, 90, 400), GREEDY), Job(2, ids_of(1, 100, 400), GREEDY))
    everyone.finish()
    assert [len(everyone.tokens[i]) for i in (1, 2)] == [11, 1]
    assert {end.reason for end in everyone.ends.values() if isinstance(end, End)} == {"context full"}
    engine.close()


def test_a_prompt_may_only_be_read(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, table)
    everyone.submit(Job(1, ids_of(9, 30, 400), n_predict=0))
    everyone.finish()
    assert 1 not in everyone.tokens
    assert isinstance(everyone.ends[1], End)
    everyone.submit(Job(2, ids_of(9, 30, 400), n_predict=1))
    everyone.finish()
    assert [e.cached for e in everyone.events[2] if isinstance(e, Progress)] == [29]


def test_probabilities_and_scores_are_those_of_the_model(engine: Engine, table: Table) -> None:
    ids, n_vocab = ids_of(10, 50, 400), engine.config.n_vocab
    sampling = SamplingSettings(temperature=0.0, n_probs=3)
    everyone = crowd(engine, table)
    everyone.submit(Job(1, ids, sampling, n_predict=2, score_prompt=True), Job(2, ids_of(11, 9, 400), n_predict=20))
    everyone.finish()
    scores = [item for event in everyone.events[1] if isinstance(event, Scores) for item in event.items]
    assert [item[0] for item in scores] == ids
    assert scores[0][1] is None
    again = crowd(engine, table)
    for n in (1, 7, 49):
        again.submit(Job(n, ids[:n], SamplingSettings(temperature=0.0, n_probs=n_vocab), n_predict=1))
        again.finish()
        (token,) = (event for event in again.events[n] if isinstance(event, Token))
        assert dict(token.top or ())[ids[n]] == pytest.approx(scores[n][1], abs=1e-5)
        assert [i for i, _ in (token.top or ())[:3]] == [i for i, _ in scores[n][2] or ()]
    assert all(event.logprob is None for event in everyone.events[2] if isinstance(event, Token))


def test_scores_are_told_once_though_the_prompt_is_read_twice(engine: Engine, table: Table) -> None:
    ids = ids_of(12, 100, 400)
    everyone = crowd(engine, table)
    everyone.submit(Job(1, ids, GREEDY, n_predict=1, score_prompt=True))
    everyone.step()
    (run,) = everyone.scheduler._running
    assert 0 < run.n_scored < 99
    everyone.scheduler._requeue(run)  # as where pages run out
    everyone.finish()
    scores = [event for event in everyone.events[1] if isinstance(event, Scores)]
    assert [item[0] for event in scores for item in event.items] == ids
    at = 0
    for event in scores:
        assert event.first == at
        at += len(event.items)


def test_scored_prompts_share_their_rows(engine: Engine, table: Table) -> None:
    """Each scored row has logits for the whole vocabulary: how many there are depends on no client."""
    everyone = crowd(engine, table, n_slots=8)
    everyone.submit(*(Job(i, ids_of(i, 90, 400), GREEDY, n_predict=1, score_prompt=True) for i in range(6)))
    while not everyone.scheduler.is_idle:
        everyone.step()
        told = [event for events in everyone.events.values() for event in events if isinstance(event, Scores)]
        assert sum(len(event.items) for event in told) <= (SCORED_ROWS + 6) * everyone.scheduler.totals["passes"]
    assert sum(len(event.items) for event in told) == 6 * 90


def test_a_grammar_that_takes_long_holds_nobody_up(
    engine: Engine, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = crowd(engine, table, n_slots=2)
    compiled, begun = threading.Event(), threading.Event()
    from_gbnf = Grammar.from_gbnf

    def slowly(text: str, vocabulary: GrammarVocabulary) -> Grammar:
        begun.set()
        assert compiled.wait(30)
        return from_gbnf(text, vocabulary)

    monkeypatch.setattr(Grammar, "from_gbnf", slowly)
    by_grammar = SamplingSettings(temperature=0.0, grammar='root ::= "t5 t6 "')
    everyone.submit(Job(1, [9], by_grammar), Job(2, [9], by_grammar), Job(3, [8], GREEDY, n_predict=5))
    assert begun.wait(30)
    while 3 not in everyone.ends:
        everyone.step()
    assert 1 not in everyone.ends
    everyone.scheduler.cancel(2)
    compiled.set()
    everyone.finish()
    assert everyone.tokens == {1: [5, 6, EOG], 3: answer_alone(engine, Job(3, [8], GREEDY, n_predict=5), table)}
    assert [end.reason for _, end in sorted(everyone.ends.items()) if isinstance(end, End)] == [
        "stop", "cancelled", "limit",
    ]  # fmt: skip


def test_tokens_are_counted_as_they_were_chosen(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, Table(engine.config.n_vocab, ()), n_slots=2)
    everyone.submit(*(Job(i, ids_of(20 + i, 10, 400), GREEDY, n_predict=4) for i in range(2)))
    everyone.finish()
    everyone.submit(Job(5, ids_of(20, 10, 400), GREEDY, n_predict=1))
    everyone.finish()
    totals = everyone.scheduler.totals
    assert (totals["predicted_tokens"], totals["prompt_tokens"], totals["cached_tokens"]) == (9, 21, 9)
    assert totals["busy_slots"] == 2 * 4 + 1
    assert totals["passes"] == 5


def test_a_job_may_ask_for_its_slot(engine: Engine, table: Table) -> None:
    everyone = crowd(engine, table, n_slots=3)
    everyone.submit(*(Job(i, [9 + i], GREEDY, n_predict=4, slot=2) for i in range(2)), Job(5, [20], n_predict=4))
    everyone.step()
    views = everyone.scheduler.slot_views()
    assert [view["is_processing"] for view in views] == [True, False, True]
    assert (views[2]["id_task"], views[0]["id_task"]) == (0, 5)
    everyone.finish()
    assert [end.slot for i, end in sorted(everyone.ends.items()) if isinstance(end, End)] == [2, 2, 0]


def test_at_rest_memory_is_what_it_was_at_the_start(folder: Path) -> None:
    """Whatever was asked: pages that take memory are those set aside, and the last conversation is all there."""
    engine = open_preset(folder, "llama", n_sequences=8, context=1024)
    everyone = crowd(engine, Table(engine.config.n_vocab, ()), n_slots=4, idle_bytes=16 * engine.cache.page_bytes)
    before = engine.pages.n_touched
    assert before == 16
    jobs = [Job(i, ids_of(i, 40 + 30 * i, engine.config.n_vocab), GREEDY, n_predict=2) for i in range(24)]
    everyone.submit(*jobs)
    everyone.finish()
    assert engine.pages.n_touched > before
    everyone.scheduler.rest()
    assert engine.pages.n_touched == before
    assert everyone.scheduler.stats()["pages_touched"] == before
    last = [*jobs[-1].token_ids, *everyone.tokens[23], 5]
    everyone.submit(Job(99, last, GREEDY, n_predict=1))
    everyone.finish()
    assert everyone.ends[99].timings.cache_n >= len(last) - 2  # type: ignore[union-attr]
    engine.close()


def test_at_rest_values_take_no_memory_and_the_next_answer_is_the_same(tmp_path: Path) -> None:
    """Buffers of a pass are given back, those in shared memory and those in pages of the process's own."""
    engine = open_preset(tmp_path, "gemma2", n_sequences=4, ubatch=512, sizes={"feed_forward_dim": 4096})
    everyone = crowd(engine, Table(engine.config.n_vocab, ()), n_slots=4, idle_bytes=0)
    everyone.scheduler.rest()
    before = resident_bytes()
    jobs = [Job(i, ids_of(i, 700, engine.config.n_vocab), GREEDY, n_predict=6, cache_prompt=False) for i in range(3)]
    everyone.submit(*jobs)
    everyone.finish()
    assert resident_bytes() > before + (8 << 20)  # 512 rows of 4,096 numbers alone
    everyone.scheduler.rest()
    assert resident_bytes() < before + (2 << 20)
    for again in (jobs[::-1], jobs):
        after = Crowd(everyone.scheduler)
        for job in again:
            after.submit(job)
            after.finish()
            everyone.scheduler.rest()
        assert after.tokens == everyone.tokens
    engine.close()


def resident_bytes() -> int:
    """Of this process's anonymous and shared memory."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")) << 10


class Breaking:
    """Stands for something that belongs to a job; when `method` is asked for a second time, that is a bug."""

    def __init__(self, whole: object, method: str):
        self._whole, self._method, self._n, self._text = whole, method, 0, "a secret"

    def __getattr__(self, name: str) -> object:
        self._n += name == self._method
        if self._n > 1:
            raise ZeroDivisionError(self._text)
        return getattr(self._whole, name)


@pytest.mark.parametrize("place", ["submit", "grammar", "sample", "accept", "add", "values"])
def test_a_bug_in_one_job_costs_nobody_else_an_answer(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = open_preset(folder, "gemma2", n_sequences=8)
    table = Table(engine.config.n_vocab)
    jobs = [Job(i, ids_of(i, 30 + 5 * i, 400), SamplingSettings(seed=i), n_predict=12) for i in range(4)]
    alone = {job.id: answer_alone(engine, job, table) for job in jobs}
    everyone = crowd(engine, table, n_slots=8)
    bad = Job(9, ids_of(9, 700, 400), SamplingSettings(seed=9, ignore_eos=True), n_predict=50)
    if place == "submit":
        monkeypatch.setattr(engine, "check_ids", lambda ids: [0][len(ids) == 700])
    elif place == "grammar":
        bad = replace(bad, sampling=SamplingSettings(grammar='root ::= "secret"'))
        monkeypatch.setattr(Grammar, "from_gbnf", lambda text, *_: int(text))
    elif place in ("add", "values"):
        bad = replace(bad, pooling="mean")
    everyone.submit(*jobs[:2], bad, *jobs[2:])
    if place in ("sample", "accept"):
        run = everyone.scheduler._runs[9]
        run.sampler = Breaking(run.sampler, place)  # type: ignore[assignment]
    elif place in ("add", "values"):
        run = everyone.scheduler._runs[9]
        run.pooling = Breaking(run.pooling, place)  # type: ignore[assignment]
        run.pooling._n += place == "values"  # type: ignore[union-attr]
    everyone.finish()
    assert {i: everyone.tokens[i] for i in alone} == alone
    assert isinstance(end := everyone.ends[9], Failed)
    assert (end.status, end.kind) == (500, "server_error")
    assert "bug in the engine" in (logged := capfd.readouterr().err)
    assert "secret" not in end.message + logged
    everyone.scheduler.prefixes.evict(1000)
    assert engine.pages.n_free == engine.pages.n_pages
    everyone.submit(replace(jobs[1], id=10))
    everyone.finish()
    assert everyone.tokens[10] == alone[1]
    engine.close()


def test_a_first_pass_leaves_nothing(folder: Path) -> None:
    engine = open_preset(folder, "gemma2")
    before = engine.backend.n_walked()
    engine.warm_up()
    assert engine.pages.n_free == engine.pages.n_pages
    assert engine.backend.n_walked() != before
    engine.close()
