"""Samplers among what a grammar allows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.engine.sampler import Sampler
from gemmafile.errors import GemmafileError
from gemmafile.settings import SamplingSettings
from tests.engine.grammars import EOS, SCHEMA, TOKENS, TURN, fits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"mirostat": 2},
        {"top_k": 1},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"typical_p": 0.5},
    ],
    ids=str,
)
def test_sampled_answers_follow_the_grammar(settings: dict[str, Any], vocabulary: GrammarVocabulary) -> None:
    """Though the model would say something else."""
    rng = np.random.default_rng(8)
    sampler = Sampler(
        SamplingSettings(seed=1, n_probs=1, **settings),
        len(TOKENS) + 3,  # a model may have more logits than tokens
        grammar=Grammar.from_json_schema(SCHEMA, vocabulary),
    )
    sampler.accept_prompt(range(50))
    done = b""
    for _ in range(300):
        logits = rng.standard_normal(len(TOKENS) + 3).astype(np.float32)
        logits[len(TOKENS) :] += 30
        logits[[ord('"'), ord("}"), ord("]"), TOKENS.index(b'"}')]] += 3  # come to an end
        choice = sampler.sample(logits)
        assert np.isfinite(choice.logprob)
        sampler.accept(choice.token_id)
        if choice.token_id in (EOS, TURN):
            break
        done += TOKENS[choice.token_id]
    assert sampler.grammar is not None
    assert sampler.grammar.is_finished
    assert fits(json.loads(done)), done
    sampler.reset()
    assert not sampler.grammar.is_finished


def test_probabilities_are_shared_among_what_is_allowed(vocabulary: GrammarVocabulary) -> None:
    """The mask comes before top-k and the others."""
    logits = np.zeros(len(TOKENS), np.float32)
    logits[ord("a")], logits[ord("b")], logits[ord("c")] = 1, 2, 9
    sampler = Sampler(
        SamplingSettings(seed=2, top_k=2, top_p=1.0, min_p=0.0, temperature=1.0),
        len(TOKENS),
        grammar=Grammar.from_gbnf("root ::= [ab]", vocabulary),
    )
    chosen = [sampler.sample(logits).token_id for _ in range(4000)]
    assert set(chosen) == {ord("a"), ord("b")}
    assert chosen.count(ord("b")) / 4000 == pytest.approx(1 / (1 + np.exp(-1)), abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 3, "repeat_penalty": 1.5},
        {"top_k": 90, "logit_bias": {ord("a"): float("-inf")}},
    ],
    ids=str,
)
def test_asking_for_the_likeliest_alone_chooses_as_the_mask_does(
    settings: dict[str, Any], vocabulary: GrammarVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where many tokens are allowed, where few are, and where equals compete for the last place."""
    for text in ('root ::= [^"]*', 'root ::= [a-z]* "1"', 'root ::= "ab" .*', "root ::= [日本あ]+"):
        chosen: list[list[int]] = []
        for most_asked in (128, 0):
            monkeypatch.setattr("gemmafile.engine.sampler.MOST_ASKED", most_asked)
            rng = np.random.default_rng(3)
            grammar = Grammar.from_gbnf(text, vocabulary)
            sampler = Sampler(SamplingSettings(seed=4, **settings), len(TOKENS) + 2, grammar=grammar)
            chosen.append([])
            for _ in range(60):
                logits = np.round(rng.standard_normal(len(TOKENS) + 2) * 3).astype(np.float32)
                logits[-2:] = 50
                chosen[-1].append(sampler.sample(logits).token_id)
                if chosen[-1][-1] in (EOS, TURN):
                    break
                sampler.accept(chosen[-1][-1])
        assert chosen[0] == chosen[1], text


def test_a_grammar_and_biases_that_leave_nothing(vocabulary: GrammarVocabulary) -> None:
    settings = SamplingSettings(logit_bias={ord("a"): float("-inf")})
    sampler = Sampler(settings, len(TOKENS), grammar=Grammar.from_gbnf('root ::= "a"', vocabulary))
    with pytest.raises(GemmafileError, match="no token can be chosen: .*grammar"):
        sampler.sample(np.zeros(len(TOKENS), np.float32))
