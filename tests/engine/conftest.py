"""What the tests of grammars share."""

from __future__ import annotations

import pytest

from gemmafile.engine.grammar import GrammarVocabulary
from tests.engine.grammars import CONTROL, EOS, TOKENS, TURN


@pytest.fixture(scope="session")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary(TOKENS, eog_ids=[EOS, TURN], control_ids=list(CONTROL.values()))
