"""What is counted, and how Prometheus reads it: GET /metrics, with llama.cpp's names and ours.

In: the ends of jobs from client.py, responses from log.py, and what the engine says of itself; nobody's text.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from gemmafile.engine.jobs import End, Event, Failed

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds, self.counts = bounds, [0] * len(bounds)
        self.n, self.sum = 0, 0.0

    def add(self, value: float) -> None:
        self.n, self.sum = self.n + 1, self.sum + value
        for i, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[i] += 1

    def lines(self, name: str) -> list[str]:
        found = [f'{name}_bucket{{le="{bound:g}"}} {n}' for bound, n in zip(self.bounds, self.counts, strict=True)]
        return [*found, f'{name}_bucket{{le="+Inf"}} {self.n}', f"{name}_sum {self.sum:.6g}", f"{name}_count {self.n}"]


class Metrics:
    """Sums since the server was started."""

    def __init__(self) -> None:
        self.n_prompt = self.n_cached = self.n_predicted = self.n_longest = 0
        self.prompt_s = self.predicted_s = 0.0
        self.ends: Counter[str] = Counter()
        self.responses: Counter[tuple[str, int]] = Counter()
        self.first_token_s = Histogram(BUCKETS_S)

    def meet_event(self, event: Event) -> None:
        """The end of a job."""
        if isinstance(event, Failed):
            self.ends["error"] += 1
        elif isinstance(event, End):
            timings = event.timings
            self.ends[event.reason] += 1
            self.n_prompt += timings.prompt_n
            self.n_cached += timings.cache_n
            self.n_predicted += timings.predicted_n
            self.n_longest = max(self.n_longest, timings.cache_n + timings.prompt_n + timings.predicted_n)
            self.prompt_s += timings.prompt_ms / 1000
            self.predicted_s += timings.predicted_ms / 1000
            if timings.predicted_n:
                self.first_token_s.add((event.queued_ms + timings.prompt_ms) / 1000)

    def meet_response(self, route: str, status: int) -> None:
        self.responses[route, status] += 1

    def text(self, stats: dict[str, Any], n_jobs: int, n_restarts: int) -> str:
        """All of it. `stats`  what the engine last said of itself: numbers become gauges under their names."""
        n_running, n_waiting = int(stats.get("running", n_jobs)), int(stats.get("waiting", 0))
        seen = self.n_prompt + self.n_cached
        busy = _rate(stats.get("busy_slots", 0), stats.get("passes", 0))
        rows: list[tuple[str, str, str, float]] = [
            ("llamacpp:prompt_tokens_total", "counter", "Prompt tokens computed", self.n_prompt),
            ("llamacpp:prompt_seconds_total", "counter", "Seconds of that", self.prompt_s),
            ("llamacpp:tokens_predicted_total", "counter", "Tokens chosen", self.n_predicted),
            ("llamacpp:tokens_predicted_seconds_total", "counter", "Seconds of that", self.predicted_s),
            ("llamacpp:n_decode_total", "counter", "Passes of the engine", float(stats.get("passes", 0))),
            ("llamacpp:n_tokens_max", "counter", "Longest prompt and answer", self.n_longest),
            ("llamacpp:n_busy_slots_per_decode", "counter", "Answers a pass", busy),
            ("llamacpp:prompt_tokens_seconds", "gauge", "Computed a second", _rate(self.n_prompt, self.prompt_s)),
            (
                "llamacpp:predicted_tokens_seconds",
                "gauge",
                "Tokens a second",
                _rate(self.n_predicted, self.predicted_s),
            ),
            ("llamacpp:requests_processing", "gauge", "Answers being made", n_running),
            ("llamacpp:requests_deferred", "gauge", "Answers waiting for their turn", n_waiting),
            ("llamacpp:kv_cache_usage_ratio", "gauge", "Share of the cache in use", float(stats.get("kv_use", 0))),
            ("llamacpp:kv_cache_tokens", "gauge", "Tokens in the cache", float(stats.get("kv_tokens", 0))),
            ("gemmafile:cache_hit_ratio", "gauge", "Prompt tokens not computed again", _rate(self.n_cached, seen)),
            ("gemmafile:engine_restarts_total", "counter", "Deaths of the engine", n_restarts),
        ]
        lines: list[str] = []
        for name, kind, help_text, value in rows:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", f"{name} {value:.10g}"]
        for name, value in sorted(stats.items()):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                lines += [f"# TYPE gemmafile:engine_{name} gauge", f"gemmafile:engine_{name} {value:.10g}"]
        lines += ["# TYPE gemmafile:answers_total counter"]
        lines += [f'gemmafile:answers_total{{end="{end}"}} {n}' for end, n in sorted(self.ends.items())]
        lines += ["# TYPE gemmafile:responses_total counter"]
        lines += [
            f'gemmafile:responses_total{{route="{route}",status="{status}"}} {n}'
            for (route, status), n in sorted(self.responses.items())
        ]
        lines += ["# TYPE gemmafile:first_token_seconds histogram"]
        return "\n".join([*lines, *self.first_token_s.lines("gemmafile:first_token_seconds")]) + "\n"


def _rate(amount: float, per: float) -> float:
    return amount / per if per > 0 else 0.0
