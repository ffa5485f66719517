"""Multiple choices: which of several texts does a model find likeliest? HellaSwag, Winogrande, and the like.

Files are llama.cpp's (tools/perplexity/perplexity.cpp), and so are scores and the order of the tasks, with one
difference: a Winogrande choice too short to be left out is scored behind its own context.

    HellaSwag        text, six lines a task: context, number of the right ending, four endings
    Winogrande       CSV: number, sentence with _ in it, choice 1, choice 2, right one (1 or 2)
    multiple choice  uint32 n, uint32[n] positions in the file, then tasks: question, answers with one label each
                     (1: right), then answers of a second kind, not used; a text is its uint32 length and bytes
"""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gemmafile.errors import GemmafileError
from gemmafile.measure.perplexity import negative_log_likelihoods
from gemmafile.model_api import Model

MAX_ANSWERS = 100
TRAILING_TOKENS = 3
"""A Winogrande choice is left out of its score where more tokens than these follow the common beginning."""
CONFIDENCE = 1.95996398454
"""Standard deviations of a 95% interval."""


@dataclass(frozen=True, slots=True)
class Task:
    """Texts of which one or more are right. `scored_after`  for each text the part whose tokens are not scored; None:
    what all texts have in common"""

    texts: tuple[str, ...]
    right: frozenset[int]
    scored_after: tuple[str, ...] | None = None


def read_hellaswag(text: str, n_tasks: int = 0) -> list[Task]:
    """n_tasks  so many at most, drawn as llama.cpp draws them; 0: all. Raises GemmafileError."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) % 6 or not text.strip():
        raise GemmafileError(f"a HellaSwag file has six lines a task, this one has {len(lines)} lines")
    tasks = []
    for i in range(0, len(lines), 6):
        context, right, *endings = lines[i : i + 6]
        if right.strip() not in ("0", "1", "2", "3"):
            raise GemmafileError(f"line {i + 2} is {right!r}, expected the number of the right ending, 0 to 3")
        tasks.append(Task(tuple(f"{context} {ending}" for ending in endings), frozenset([int(right)])))
    draw, chosen = _Twister(), []
    for _ in range(min(n_tasks or len(tasks), len(tasks))):
        chosen.append(tasks.pop(draw.below(len(tasks))))
    return chosen


def read_winogrande(text: str, n_tasks: int = 0) -> list[Task]:
    """As `read_hellaswag`."""
    tasks = []
    for number, row in enumerate(csv.reader(text.split("\n")), 1):
        if not row:
            continue
        if len(row) < 5 or "_" not in row[1] or row[4].strip() not in ("1", "2"):
            raise GemmafileError(f"row {number}: expected number,sentence with _,choice 1,choice 2,right one (1 or 2)")
        first, _, last = row[1].partition("_")
        starts = tuple(first + choice for choice in row[2:4])
        tasks.append(Task(tuple(start + last for start in starts), frozenset([int(row[4]) - 1]), starts))
    if not tasks:
        raise GemmafileError("there is no task in the file")
    return [tasks[i] for i in _pick(len(tasks), n_tasks)]


def read_multiple_choice(raw: bytes, n_tasks: int = 0) -> list[Task]:
    """As `read_hellaswag`, from bytes."""
    try:
        (count,) = struct.unpack_from("<I", raw, 0)
        if not 0 < count <= len(raw) // 4:
            raise GemmafileError(f"is no multiple-choice file: it would have {count} tasks in {len(raw)} bytes")
        positions = struct.unpack_from(f"<{count}I", raw, 4)
        return [_read_task(raw, positions[i]) for i in _pick(count, n_tasks)]
    except (struct.error, IndexError, UnicodeDecodeError):
        raise GemmafileError("is no multiple-choice file, or is damaged") from None


def _read_task(raw: bytes, at: int) -> Task:
    question, at = _read_text(raw, at)
    (n,) = struct.unpack_from("<I", raw, at)
    if not 0 < n <= MAX_ANSWERS:
        raise GemmafileError(f"a task has {n} answers")
    at, answers = at + 4, []
    for _ in range(n):
        answer, at = _read_text(raw, at)
        answers.append(answer)
    labels = struct.unpack_from(f"<{n}i", raw, at)
    if not question or not all(answers):
        raise GemmafileError("a task has an empty question or answer")
    right = frozenset(i for i, label in enumerate(labels) if label == 1)
    return Task(tuple(f"{question} {answer}" for answer in answers), right)


def _read_text(raw: bytes, at: int) -> tuple[str, int]:
    (n,) = struct.unpack_from("<I", raw, at)
    if at + 4 + n > len(raw):
        raise IndexError
    return raw[at + 4 : at + 4 + n].decode(), at + 4 + n


class _Twister:
    """std::mt19937 of seed 1, and what libstdc++ and llama.cpp make of it."""

    def __init__(self) -> None:
        self._bits = np.random.RandomState(1)

    def word(self) -> int:
        return int(self._bits.randint(0, 2**32, dtype=np.uint32))

    def below(self, n: int) -> int:
        """std::uniform_int_distribution(0, n - 1)"""
        product = self.word() * n
        if product % 2**32 < n:
            while product % 2**32 < -n % 2**32 % n:
                product = self.word() * n
        return product >> 32


def _pick(n: int, n_tasks: int) -> list[int]:
    """Numbers of n_tasks of n; all, in order, where that is 0 or too many."""
    if not 0 < n_tasks < n:
        return list(range(n))
    draw, left, picked = _Twister(), list(range(n)), []
    for _ in range(n_tasks):
        j = int(np.float32(2.0**-32) * np.float32(draw.word()) * np.float32(len(left)))
        picked.append(left[j])
        left[j] = left[-1]
        left.pop()
    return picked


def _n_common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    n = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        n += 1
    return n


def score_task(model: Model, task: Task) -> list[float]:
    """For each text the mean log-likelihood of its own tokens. Raises ContextOverflow."""
    sequences = [model.tokenize(text) for text in task.texts]
    n_common = _n_common(sequences)
    firsts = [n_common] * len(sequences)
    ends = [len(ids) for ids in sequences]
    if task.scored_after is not None:
        if all(len(ids) - n_common > TRAILING_TOKENS for ids in sequences):
            firsts = [len(model.tokenize(start)) for start in task.scored_after]
        ends = [
            len(ids) - 1 if len(ids) - first > 1 else len(ids) for ids, first in zip(sequences, firsts, strict=True)
        ]
    n_shared = max(1, n_common)  # a vocabulary without BOS may share nothing: then nothing is known of a first token
    model.sequence.truncate(0)
    last = model.engine.forward(model.sequence, sequences[0][:n_shared], want="last")
    scores = []
    for ids, first, end in zip(sequences, firsts, ends, strict=True):
        logits = np.concatenate([last, model.engine.forward(model.sequence, ids[n_shared : end - 1], want="all")])
        model.sequence.truncate(n_shared)
        first = max(first, n_shared)
        tokens = ids[first:end]
        rows = logits[first - n_shared : first - n_shared + len(tokens)]
        scores.append(-float(negative_log_likelihoods(rows, tokens).mean()) if tokens else -math.inf)
    return scores


@dataclass(slots=True)
class Tally:
    """How many of the tasks so far were right."""

    n: int = 0
    right: int = 0
    answers: int = 0

    def add(self, task: Task, scores: Sequence[float]) -> int:
        """The number of the text that was chosen: of equal ones the first."""
        chosen = int(np.argmax(scores))
        self.n, self.right, self.answers = self.n + 1, self.right + (chosen in task.right), self.answers + len(scores)
        return chosen

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def error(self) -> float:
        """Standard error of the share."""
        return math.sqrt(self.share * (1 - self.share) / (self.n - 1)) if self.n > 1 else 0.0

    def interval(self) -> tuple[float, float]:
        """95%, by Wilson's score."""
        z = CONFIDENCE**2 / self.n
        half = z * math.sqrt(self.n * (4 * self.share * (1 - self.share) + z)) / (2 * CONFIDENCE)
        middle = self.share + z / 2
        return (middle - half) / (1 + z), (middle + half) / (1 + z)


def hellaswag_lines(model: Model, tasks: Sequence[Task]) -> Iterator[str]:
    """llama-perplexity's lines: the share so far, and its 95% interval."""
    tally = Tally()
    yield "task\tacc_norm\t95% confidence interval"
    for task in tasks:
        tally.add(task, score_task(model, task))
        low, high = tally.interval()
        yield f"{tally.n}\t{100 * tally.share:.8f}%\t[{100 * low:.4f}%, {100 * high:.4f}%]"


def winogrande_lines(model: Model, tasks: Sequence[Task]) -> Iterator[str]:
    """The share so far, both scores, the choice taken and the right one."""
    tally = Tally()
    for task in tasks:
        first, second = score_task(model, task)
        chosen = 1 if first > second else 2
        tally.add(task, [chosen == 1, chosen == 2])
        right = min(task.right) + 1
        yield f"{tally.n}\t{100 * tally.share:.4f}\t{first:10.6f}  {second:10.6f}  {chosen}  {right}"
    yield f"Final Winogrande score({tally.n} tasks): {100 * tally.share:.4f} +/- {100 * tally.error:.4f}"


def multiple_choice_lines(model: Model, tasks: Sequence[Task]) -> Iterator[str]:
    """The share so far; at the end what chance would give."""
    tally = Tally()
    yield "task\tacc_norm"
    for task in tasks:
        tally.add(task, score_task(model, task))
        yield f"{tally.n}\t{100 * tally.share:.8f}"
    chance = tally.n / tally.answers
    error = math.sqrt(chance * (1 - chance) / (tally.n - 1)) if tally.n > 1 else 0.0
    yield f"Final result: {100 * tally.share:.4f} +/- {100 * tally.error:.4f}"
    yield f"Random chance: {100 * chance:.4f} +/- {100 * error:.4f}"
