"""From logits to the next token.

In: float32 logits of the whole vocabulary and the tokens so far. Out: a `Choice`. Token ids only, no text.
Next: candidates.py (what the samplers work on), truncation.py, penalties.py; grammar.py for constrained answers.

Order, defaults and formulas are those of llama.cpp, release b11549 (common/sampling.cpp): the grammar's mask, logit
biases, then `settings.samplers` in their order, then a draw; with mirostat only temperature and mirostat. The
grammar's mask comes first, so the samplers share out the probability among tokens that may follow.

Randomness is ours: NumPy's PCG64 seeded with `seed`, whose stream is fixed for good. A choice draws one number of
53 bits, preceded by one for XTC where that is on; it falls on the candidates in order of probability. So the same
logits, settings and seed give the same tokens, on any machine and any number of threads. llama.cpp draws from
mt19937: with one seed the two do not choose alike.
"""

from __future__ import annotations

import copy
import itertools
import math
import secrets
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gemmafile.engine import truncation
from gemmafile.engine.candidates import Candidates, Floats, Mass, exponentials, largest
from gemmafile.engine.penalties import Dry, Tokens, apply_penalties
from gemmafile.engine.sampling_options import (
    ALIASES,
    LEAST_TEMPERATURE,
    check_sampling,
    parse_logit_bias,
    parse_samplers,
    parse_sampling_seq,
)
from gemmafile.engine.shortlist import Shortlist, ask_grammar, likeliest_pairs, pairs_of
from gemmafile.errors import GemmafileError
from gemmafile.settings import SamplingSettings

if TYPE_CHECKING:
    from gemmafile.engine.grammar import Grammar

__all__ = ["Choice", "Sampler", "parse_logit_bias", "parse_samplers", "parse_sampling_seq"]

EDITS = ("penalties", "dry")
"""Samplers that change single logits. Whether the grammar's mask comes before or after them makes no difference."""

MOST_ASKED, SPARE = 128, 64
"""A grammar is asked about the likeliest tokens one by one, if at most 128 are wanted, and about 64 more."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token.

    `logprob`  natural logarithm of its probability under the model, before any setting changed it; None unless
               n_probs was asked for
    `top`      the n_probs likeliest tokens under the model and their log-probabilities, likeliest first
    """

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]] = field(default_factory=list)


class Sampler:
    """Chooses the tokens of one answer. `seed` is the seed in use, also where the settings left it open."""

    def __init__(
        self,
        settings: SamplingSettings,
        n_vocab: int,
        *,
        eog_ids: Collection[int] = (),
        n_context: int = 0,
        token_bytes: Sequence[bytes] | None = None,
        grammar: Grammar | None = None,
    ):
        """
        eog_ids      what `ignore_eos` rules out
        n_context    how far back a repeat_last_n of -1 looks; 0: to the beginning
        token_bytes  the text of every token: only DRY's sequence breakers need it
        grammar      the answer's grammar at its beginning; the sampler works on a copy

        Raises BadSettings naming the field.
        """
        check_sampling(settings, n_vocab)
        self.settings, self.n_vocab, self._n_context = settings, n_vocab, n_context
        self.seed = settings.seed if settings.seed >= 0 else secrets.randbits(32)
        biases = {int(token_id): float(bias) for token_id, bias in settings.logit_bias.items()}
        if settings.ignore_eos:
            biases |= dict.fromkeys(eog_ids, -math.inf)
        self._bias_ids = np.array(sorted(biases), np.int64)
        self._biases = np.array([biases[token_id] for token_id in sorted(biases)], np.float64)
        self._dry = Dry(settings, token_bytes)
        self._first_grammar = grammar
        self._steps = self._chain()
        self._short = self._make_short()
        self.reset()

    def reset(self) -> None:
        """Back to the beginning of an answer: no tokens so far, the seed as new."""
        self._random = np.random.PCG64(self.seed)
        self._history = array("i")
        self._dry.reset()
        self._surprise = 2.0 * self.settings.mirostat_tau
        self.grammar = self._first_grammar.copy() if self._first_grammar is not None else None

    def copy(self) -> Sampler:
        """A sampler that goes on as this one would, independently of it."""
        twin = copy.copy(self)
        twin._random = np.random.PCG64(0)
        twin._random.state = self._random.state
        twin._history = self._history[:]
        twin._dry = copy.copy(self._dry)
        twin.grammar = self.grammar.copy() if self.grammar is not None else None
        return twin

    def accept_prompt(self, token_ids: Iterable[int]) -> None:
        """Notes tokens that were not sampled: penalties count them, the grammar does not see them."""
        for token_id in token_ids:
            self._history.append(token_id)
            self._dry.accept(token_id)

    def accept(self, token_id: int) -> None:
        """Notes the token that was taken. Raises GemmafileError if the grammar does not allow it."""
        if self.grammar is not None:
            self.grammar.accept(token_id)
        self.accept_prompt((token_id,))

    def sample(self, logits: Floats, peaks: Floats | None = None) -> Choice:
        """Chooses a token.

        logits  float32[n_vocab], not changed
        peaks   what a backend's `peaks` says of these logits: saves a search, changes no choice
        Raises GemmafileError if they hold no usable numbers, or if the settings leave no token to choose.
        """
        assert logits.shape == (self.n_vocab,), (logits.shape, self.n_vocab)
        if self._short is not None and (found := self._sample_short(self._short, logits, peaks)) is not None:
            return Choice(found, None)
        best = _usable_maximum(logits)
        candidates = Candidates(logits)
        self._add_biases(candidates)
        grammar = self.grammar
        for name in self._steps:
            if grammar is not None and name not in EDITS:
                self._keep_allowed(candidates, grammar, self._n_wanted(name))
                grammar = None
            self._apply(name, candidates)
        if grammar is not None:
            self._keep_allowed(candidates, grammar, None)
        rank = self._draw(candidates)
        token_id = candidates.token(rank)
        if self.settings.post_sampling_probs:
            return self._choice_after(candidates, rank, token_id)
        if self.settings.n_probs > 0:
            return Choice(token_id, *self._probabilities(logits, best, token_id))
        return Choice(token_id, None)

    def _chain(self) -> tuple[str, ...]:
        """Names of the steps between biases and draw, without those that are off or cannot matter."""
        s = self.settings
        if s.mirostat:
            return ("mirostat",)
        penalised = s.repeat_last_n != 0 and (s.repeat_penalty, s.frequency_penalty, s.presence_penalty) != (1, 0, 0)
        is_on = {
            "penalties": penalised,
            "dry": self._dry.is_on,
            "top_n_sigma": s.top_n_sigma > 0.0,
            "top_k": s.top_k > 0,
            "typ_p": s.typical_p < 1.0,
            "top_p": s.top_p < 1.0,
            "min_p": s.min_p > 0.0,
            "xtc": s.xtc_probability > 0.0,
            "temperature": s.temperature != 1.0 or s.dynatemp_range > 0.0,
        }
        names = tuple(name for name in (ALIASES[name.lower()] for name in s.samplers) if is_on[name])
        if not self._is_greedy or "temperature" not in names:
            return names
        # What comes after a greedy temperature changes nothing; what comes before, if it edits logits or may
        # remove the likeliest.
        before = names[: names.index("temperature")]
        if not {"xtc", "typ_p"} & set(before):
            before = tuple(name for name in before if name in EDITS)
        return (*before, "temperature")

    def _make_short(self) -> Shortlist | None:
        """What the chain does to the few likeliest, where it looks at no others. None: it does."""
        s = self.settings
        is_plain = not (s.n_probs or s.post_sampling_probs or s.mirostat or s.dynatemp_range > 0.0)
        steps = self._steps
        if not is_plain or not steps or not set(steps) <= {"top_k", "top_p", "min_p", "temperature"}:
            return None
        n_wanted = self._n_wanted(steps[0])
        n_biased = len(self._bias_ids)
        if n_wanted is None or n_wanted > MOST_ASKED or n_biased > MOST_ASKED or n_wanted + n_biased >= self.n_vocab:
            return None
        return Shortlist(n_wanted, steps, s.top_p, s.min_p, s.min_keep, s.temperature)

    def _sample_short(self, short: Shortlist, logits: Floats, peaks: Floats | None) -> int | None:
        """The same choice from the likeliest tokens alone. None: it takes all of them."""
        n_biased, grammar = len(self._bias_ids), self.grammar
        n = short.n_wanted + n_biased + (SPARE if grammar is not None else 0)
        found = likeliest_pairs(logits, min(n, self.n_vocab - 1), peaks)
        if found is None:
            return None
        if n_biased:
            found = self._biased(found, logits)[: len(found) - n_biased]
        if grammar is not None:
            asked = ask_grammar(grammar, found, short.n_wanted)
            if asked is None and n_biased:
                return None
            found = pairs_of(np.flatnonzero(grammar.allowed()), logits, short.n_wanted) if asked is None else asked
        if not found or found[-1][0] == -math.inf or found[0][0] == math.inf:
            return None
        return short.choose(found[: short.n_wanted], self._uniform())

    def _biased(self, found: list[tuple[float, int]], logits: Floats) -> list[tuple[float, int]]:
        """The likeliest tokens with biases: whoever was moved may have let as many others in."""
        biases = dict(zip(self._bias_ids.tolist(), self._biases.tolist(), strict=True))
        with np.errstate(over="ignore"):
            moved = (logits[self._bias_ids].astype(np.float64) + self._biases).astype(np.float32).tolist()
        pairs = [pair for pair in found if pair[1] not in biases]
        pairs += zip(moved, biases, strict=True)
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))

    @property
    def _is_greedy(self) -> bool:
        return self.settings.temperature <= LEAST_TEMPERATURE and self.settings.dynatemp_range <= 0.0

    def _n_wanted(self, name: str) -> int | None:
        """How many of the likeliest candidates a step looks at; None: at all of them."""
        if name == "top_k":
            return self.settings.top_k
        return 1 if name == "temperature" and self._is_greedy else None

    def _keep_allowed(self, candidates: Candidates, grammar: Grammar, n_wanted: int | None) -> None:
        """Keeps what the grammar allows, or as many of the likeliest of that as are wanted.

        Asking for the likeliest one by one takes 2 µs each, where a mask may take 8 ms.
        """
        if n_wanted is not None and n_wanted <= MOST_ASKED:
            likeliest = (i for i in candidates.likeliest(n_wanted + SPARE) if grammar.allows(i))
            allowed = list(itertools.islice(likeliest, n_wanted))
            if len(allowed) == n_wanted:
                candidates.keep_ids(allowed)
                return
        mask = np.zeros(self.n_vocab, np.bool_)  # a model may have more logits than tokens: these are ruled out
        known = grammar.allowed()[: self.n_vocab]
        mask[: len(known)] = known
        candidates.keep_allowed(mask)

    def _apply(self, name: str, candidates: Candidates) -> None:
        s = self.settings
        match name:
            case "penalties":
                said = self._last(s.repeat_last_n)
                apply_penalties(candidates, said, s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
            case "dry":
                self._dry.apply(candidates, self._last(s.dry_penalty_last_n))
            case "top_n_sigma":
                truncation.keep_top_n_sigma(candidates, s.top_n_sigma)
            case "top_k":
                truncation.keep_top_k(candidates, s.top_k)
            case "typ_p":
                truncation.keep_typical(candidates, s.typical_p, s.min_keep)
            case "top_p":
                truncation.keep_top_p(candidates, s.top_p, s.min_keep)
            case "min_p":
                truncation.keep_min_p(candidates, s.min_p, s.min_keep)
            case "xtc":
                # The number is drawn whatever the candidates are, so that it shifts no later draw.
                if self._uniform() <= s.xtc_probability:
                    truncation.exclude_top_choices(candidates, s.xtc_threshold, s.min_keep)
            case "temperature":
                truncation.apply_temperature(candidates, s.temperature, s.dynatemp_range, s.dynatemp_exponent)
            case "mirostat":
                truncation.apply_temperature(candidates, s.temperature)
                if s.mirostat == 1:
                    truncation.keep_mirostat_1(candidates, self._surprise, self.n_vocab)
                else:
                    truncation.keep_mirostat_2(candidates, self._surprise)

    def _draw(self, candidates: Candidates) -> int:
        """The rank of a token, drawn by its probability among the candidates."""
        weights = candidates.weights()
        mass = Mass(weights)
        rank = mass.count_reaching(self._uniform() * mass.total, beyond=True) - 1
        while weights[rank] == 0.0:  # where rounding took the sum to its end
            rank -= 1
        if self.settings.mirostat:
            surprise = -math.log2(float(weights[rank]) / mass.total)
            self._surprise -= self.settings.mirostat_eta * (surprise - self.settings.mirostat_tau)
        return rank

    def _uniform(self) -> float:
        """The next random number, from 0 up to but not 1."""
        return float(int(self._random.random_raw()) >> 11) * 2.0**-53

    def _last(self, n: int) -> Tokens:
        """int32: the last `n` tokens; -1: the context's."""
        if n < 0:
            n = self._n_context or len(self._history)
        return np.array(self._history[max(len(self._history) - n, 0) :], np.int32)

    def _add_biases(self, candidates: Candidates) -> None:
        if len(self._bias_ids):
            candidates.edit(self._bias_ids, lambda logits, present: logits + self._biases[present])

    def _choice_after(self, candidates: Candidates, rank: int, token_id: int) -> Choice:
        """As `_choice`, with the probabilities that the token was drawn by."""
        weights = candidates.weights()
        log_total = math.log(Mass(weights).total)
        n = min(self.settings.n_probs, len(weights))
        shown = [(r, float(weights[r])) for r in range(n)]
        top = [(candidates.token(r), math.log(w) - log_total) for r, w in shown if w > 0.0]
        return Choice(token_id, math.log(float(weights[rank])) - log_total, top)

    def score(self, logits: Floats, token_id: int) -> tuple[float, list[tuple[int, float]]]:
        """The log-probability of a token under the model, and the n_probs likeliest ones."""
        return self._probabilities(logits, _usable_maximum(logits), token_id)

    def _probabilities(self, logits: Floats, best: float, token_id: int) -> tuple[float, list[tuple[int, float]]]:
        log_sum = math.log(Mass(exponentials(logits, best)).total) + best
        top: list[tuple[int, float]] = []
        if self.settings.n_probs > 0:
            ids = largest(logits, self.settings.n_probs)
            ids = ids[np.argsort(-logits[ids], kind="stable")]
            top = [(token_id, float(logits[token_id]) - log_sum) for token_id in ids.tolist()]
        return float(logits[token_id]) - log_sum, top


def _usable_maximum(logits: Floats) -> float:
    """The largest logit. Raises GemmafileError for NaN, +inf or nothing but -inf."""
    with np.errstate(invalid="ignore"):
        best = float(logits.max())
    if math.isfinite(best):
        return best
    found = "NaN" if math.isnan(best) else "+inf" if best > 0 else "-inf for every token"
    raise GemmafileError(
        f"the model produced no usable numbers (logits: {found}); the file may be damaged: verify its checksum, "
        "or compare with --backend reference"
    )
