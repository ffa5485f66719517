"""Awkward texts, the same for a seed everywhere: what tokenizers get wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence

SPACES = [*(" ", "  ", "   ", "\n", "\n\n", "\t", "\t\t", "\r\n", " \n", "\n ", "\u00a0"), *"\u2003\u3000\x85\x0b"]
WORDS = [
    *("The", "quick", "it's", "we'LL", "I'd", "def f(x):", "return", "1234567", "3.14", "naïve", "l’été", "x_y"),
    *("München", "Здравствуй", "мир", "世界", "こんにちは", "한국어", "नमस्ते", "สวัสดี", "עברית", "العربية", "ﬁ"),
    *("😀", "🏳️‍🌈", "👩‍👩‍👧", "🇫🇷", "e\u0301", "a\u0300\u0323\u0308", "\u202eabc\u202c", "\u200b", "ſ", "'ſ", "K"),
    *("http://a.b/c?d=e&f#g", "<h1>", "</table>", "<b>", "> </a>", "> <", "{}", "=>", "!!!", "--", "```", "\\n", "'"),
]
LOOKALIKES = [
    *("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "<mask>", "[multimodal]", "<0x0A>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<s>", "</s>", "<unk>"),
    *("<start_of", "_turn>", "<end_of_turn", "<<end_of_turn>>", "<|im", "_end|>", "<|im_<|im_end|>"),
]
BLOCKS = [
    *((0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF)),
    *((0x900, 0x97F), (0xE00, 0xE7F), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2190, 0x21FF), (0x3040, 0x30FF)),
    *((0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x10330, 0x1034F)),
    *((0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0000, 0xE007F)),
]


def make_texts(n: int, seed: int, pieces: Sequence[str] = WORDS, literal_space: bool = True) -> list[str]:
    """`n` texts. `pieces` of the vocabulary itself make words that nearly merge · `literal_space`  with U+2581."""
    rng = random.Random(seed)
    texts = [rng.choice(_KINDS)(rng, pieces) for _ in range(n)]
    if not literal_space:
        return [text.replace("▁", "_") for text in texts]
    return texts


def _vocabulary(rng: random.Random, pieces: Sequence[str]) -> str:
    return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 40)))


def _sentence(rng: random.Random, pieces: Sequence[str]) -> str:
    return rng.choice(["", " "]).join(rng.choice([*WORDS, *SPACES]) for _ in range(rng.randint(1, 50)))


def _unicode(rng: random.Random, pieces: Sequence[str]) -> str:
    def character() -> str:
        return rng.choice(SPACES) if rng.random() < 0.15 else chr(rng.randint(*rng.choice(BLOCKS)))

    return "".join(character() for _ in range(rng.randint(1, 80)))


def _runs(rng: random.Random, pieces: Sequence[str]) -> str:
    def run() -> str:
        return rng.choice([" ", " ", "\n", "\t", "▁", "a", "=", "7", "👍", "é"]) * rng.randint(1, 70)

    return "".join(rng.choice([run(), rng.choice(WORDS), rng.choice(SPACES), "▁"]) for _ in range(rng.randint(1, 12)))


def _lookalikes(rng: random.Random, pieces: Sequence[str]) -> str:
    parts = [*LOOKALIKES, *LOOKALIKES, *WORDS, *SPACES, "▁", "▁▁"]
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 25)))


def _controls(rng: random.Random, pieces: Sequence[str]) -> str:
    return bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 40))).decode("latin-1")


_KINDS = [_vocabulary, _vocabulary, _sentence, _unicode, _unicode, _runs, _lookalikes, _lookalikes, _controls]
