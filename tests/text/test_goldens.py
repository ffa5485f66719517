"""Both real vocabularies against HF tokenizers, from files: `make test` has no HF tokenizers."""

import pytest

from gemmafile.text.tokenizer import Tokenizer
from tests.text.make_goldens import MODELS, N_TEXTS, read_golden


@pytest.mark.parametrize("name", MODELS)
def test_token_ids_are_those_of_hf_tokenizers(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    golden = read_golden(name)
    assert len(golden) == N_TEXTS
    for text, ids in golden:
        assert tokenizer.encode(text, add_special=False, parse_special=True) == ids, ascii(text)
