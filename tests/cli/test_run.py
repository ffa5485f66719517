"""`gemmafile run` with a prompt: what reaches stdout, what stderr, and when it stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmafile import Model
from gemmafile.cli.escapes import unescape
from gemmafile.errors import BadSettings
from tests.cli.conftest import Runner
from tests.tiny import write_small

REFERENCE = ("--backend", "reference", "-c", "256")
GREEDY = (*REFERENCE, "--temp", "0")
THE, END_OF_TURN = "▁the", 5


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Model:
    return Model.open(tiny_path, backend="reference", context=256)


def always(tiny: Model, *pieces: str) -> list[str]:
    """Flags that make the model say these pieces and nothing else: greedy, by biases that none can beat."""
    ids = [tiny.tokenizer.vocabulary.tokens.index(piece) for piece in pieces]
    return ["--temp", "0", *(word for i in ids for word in ("--logit-bias", f"{i}+1000"))]


def test_stdout_is_the_prompt_and_the_answer(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command("run", tiny_path, *GREEDY, "-p", "the man", "-n", 8)
    expected = tiny.generate("the man", max_tokens=8, temperature=0.0)
    assert done.code == 0
    assert done.out == f"the man{expected.text}\n"
    assert done.err == ""


def test_no_display_prompt_leaves_the_answer(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command("run", tiny_path, *GREEDY, "-p", "the man", "-n", 8, "--no-display-prompt")
    assert done.out == tiny.generate("the man", max_tokens=8, temperature=0.0).text + "\n"


@pytest.mark.parametrize("words", [["run", "-m", "MODEL"], ["-m", "MODEL"], ["MODEL"]])
def test_ways_to_name_the_model(command: Runner, tiny_path: Path, words: list[str]) -> None:
    whole = command("run", tiny_path, *GREEDY, "-p", "a", "-n", 2)
    assert command(*[tiny_path if word == "MODEL" else word for word in words], *GREEDY, "-p", "a", "-n", 2) == whole


def test_a_name_of_the_hub_is_told_how_it_is_fetched(command: Runner) -> None:
    done = command("run", "google/gemma-2-2b-it", "-p", "a")
    assert (done.code, done.out) == (1, "")
    assert "-hf google/gemma-2-2b-it" in done.err
    assert "-hf" not in command("run", "models/none.gguf", "-p", "a").err


def test_the_environment_names_the_model(command: Runner, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_MODEL", str(tiny_path))
    assert command("run", *GREEDY, "-p", "a", "-n", 1).code == 0


def test_a_seed_makes_it_repeatable(command: Runner, tiny_path: Path) -> None:
    words = ("run", tiny_path, *REFERENCE, "-p", "the", "-n", 12, "--temp", 1.5)
    first = command(*words, "--seed", 7)
    assert command(*words, "--seed", 7) == first
    assert command(*words, "--seed", 8).out != first.out


def test_bos_is_added_and_control_tokens_in_the_prompt_are_parsed(command: Runner, tiny_path: Path) -> None:
    done = command(
        "run", tiny_path, *GREEDY, "-p", r"<start_of_turn>a<end_of_turn>\n", "-n", 0, "--special", "--verbose-prompt"
    )
    assert done.out == "<bos><start_of_turn>a<end_of_turn>\n"
    ids = [int(line.split()[0]) for line in done.err.splitlines()[1:]]
    assert ids[0] == 2
    assert ids[1] == 4
    assert ids[-2] == END_OF_TURN


def test_bos_is_not_doubled(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command("run", tiny_path, *GREEDY, "-p", "<bos>the", "-n", 4)
    assert done.out == command("run", tiny_path, *GREEDY, "-p", "the", "-n", 4).out
    assert done.err == "gemmafile: the prompt begins with the BOS token already: none is added\n"
    assert tiny.encode_prompt("<bos>the").count(2) == 1


def test_the_end_of_turn_ends_it_and_is_shown_with_special(command: Runner, tiny_path: Path, tiny: Model) -> None:
    words = ("run", tiny_path, *REFERENCE, *always(tiny, "<end_of_turn>"), "-p", "the", "-n", 9)
    assert command(*words).out == "the\n"
    assert command(*words, "--special").out == "<bos>the<end_of_turn>\n"


def test_ignore_eos_goes_on(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command(
        "run", tiny_path, *REFERENCE, *always(tiny, THE), "--logit-bias", "5+2000", "--ignore-eos", "-p", "a", "-n", 3
    )
    assert done.out == "a the the the\n"


@pytest.mark.parametrize(
    ("stop", "out"),
    [
        (["e t"], "a th\n"),
        (["the the"], "a \n"),
        (["the t", "he"], "a t\n"),
        (["nothing"], "a the the the the\n"),
        (["the the the the t"], "a the the the the\n"),
        (["he\\x20t"], "a t\n"),
    ],
)
def test_reverse_prompts_stop_it_and_are_not_shown(
    command: Runner, tiny_path: Path, tiny: Model, stop: list[str], out: str
) -> None:
    flags = [word for text in stop for word in ("-r", text)]
    done = command("run", tiny_path, *REFERENCE, *always(tiny, THE), *flags, "-p", "a", "-n", 4)
    assert done.out == out


def test_a_control_token_can_be_a_reverse_prompt(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command(
        "run", tiny_path, *REFERENCE, *always(tiny, "<start_of_turn>"), "-r", "<start_of_turn>", "-p", "a", "-n", 4
    )
    assert done.out == "a\n"
    assert "limit" not in done.err


def test_a_prompt_over_the_context_is_an_error_with_both_counts(command: Runner, tiny_path: Path) -> None:
    done = command("run", tiny_path, "--backend", "reference", "-c", 16, "-p", "a " * 40)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "the prompt has 42 tokens and the context holds 16" in done.err


def test_a_context_over_the_models_maximum_is_said(command: Runner, tiny_path: Path) -> None:
    flags = ["--override-kv", "gemma2.context_length=int:64", *REFERENCE, "-p", "a", "-n", 1]
    assert "context 65 is over the 64 tokens" in command("run", tiny_path, *flags, "-c", 65).err
    assert command("run", tiny_path, *flags, "-c", 64).err == ""


@pytest.mark.parametrize("flag", ["-t", "-tb"])
@pytest.mark.parametrize("n", [0, -1])
def test_no_number_of_threads_is_the_default(command: Runner, tiny_path: Path, flag: str, n: int) -> None:
    """-1 is how llama.cpp spells its own default."""
    assert command("run", tiny_path, "-p", "a", "-n", 1, flag, n).code == 0


@pytest.mark.parametrize(("n", "says"), [(-1, True), (-2, False)])
def test_a_full_context_ends_it_and_says_so_unless_asked_for(
    command: Runner, tiny_path: Path, tiny: Model, n: int, says: bool
) -> None:
    done = command(
        "run", tiny_path, "--backend", "reference", "-c", 16, *always(tiny, THE), "-p", "a", "-n", n, "--ignore-eos"
    )
    assert done.code == 0
    assert done.out.count("the") == 16 - len(tiny.encode_prompt("a")) + 1
    assert ("the context of 16 tokens is full" in done.err) is says


def test_a_prompt_from_a_file_is_taken_as_it_is(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("the \\n man\r\n\n")
    words = ("run", tiny_path, *GREEDY, "-n", 0, "-f", tmp_path / "prompt.txt")
    assert command(*words).out == "the \\n man\r\n"
    assert command(*words, "-e").out == "the \n man\r\n"


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_prompt_from_stdin(tiny_path: Path, name: str) -> None:
    from tests.cli.test_main import start

    process = start("run", tiny_path, *GREEDY, "-n", 0, "-f", name, stdin=-1)
    assert process.communicate("the old man\n", timeout=60) == ("the old man\n", "")


def test_a_file_that_is_not_utf8_is_an_error(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    done = command("run", tiny_path, *GREEDY, "-f", tmp_path / "latin1.txt")
    assert done.code == 1
    assert "latin1.txt, byte 3: is not UTF-8 text" in done.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"one\ntwo\r\t", "one\ntwo\r\t"),
        (r"\\n", r"\n"),
        (r"\'\"", "'\""),
        (r"\x41\x7e", "A~"),
        (r"\xf0\x9f\x98\x80", "😀"),
        (r"\q \u0041 \x4 \xg1 ", r"\q \u0041 \x4 \xg1 "),
        ("ends in \\", "ends in \\"),
        ("é\\né", "é\né"),
    ],
)
def test_escapes(text: str, expected: str) -> None:
    assert unescape(text, "-p") == expected


def test_escapes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(BadSettings, match="-p"):
        unescape(r"\xff", "-p")


def test_no_escape(command: Runner, tiny_path: Path) -> None:
    assert command("run", tiny_path, *GREEDY, "-p", r"a\nb", "-n", 0, "--no-escape").out == "a\\nb\n"
    assert command("run", tiny_path, *GREEDY, "-p", r"a\nb", "-n", 0).out == "a\nb\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-ngl", "999"], True), (["-ngl", "all"], True), (["--gpu", "auto"], True),
        (["-ngl", "9", "--gpu", "auto"], True),
        (["-ngl", "0"], False), (["-ngl", "auto"], False), (["--gpu", "disable"], False), ([], False),
        (["-ngl", "999", "--gpu", "disable"], False), (["-ngl", "999", "--log-disable"], False),
    ],
)  # fmt: skip
def test_without_a_gpu_the_cpu_answers_and_says_so_once(
    command: Runner, tiny_path: Path, words: list[str], says: bool
) -> None:
    done = command("run", tiny_path, *GREEDY, "-p", "a", "-n", 1, *words)
    assert done.code == 0
    assert done.err == ("gemmafile: there is no GPU backend yet: the CPU answers\n" if says else "")


def test_verbose_says_what_is_in_force(command: Runner, tiny_path: Path) -> None:
    done = command("run", tiny_path, *REFERENCE, "-p", "the", "-n", 3, "-v", "--seed", 5)
    plain = command("run", tiny_path, *REFERENCE, "-p", "the", "-n", 3, "--seed", 5)
    assert done.out == plain.out
    for text in ("tiny.gguf", "gemma2: 2 layers", "F32 x", "256 of 512 tokens (as asked)", "reference",
                 "penalties -> dry",
                 "seed        5", "prompt: 4 tokens", "answer: 3 tokens", "query scale derived"):  # fmt: skip
        assert text in done.err
    assert plain.err == ""


def test_log_disable_silences_even_verbose(command: Runner, tiny_path: Path) -> None:
    assert (
        command("run", tiny_path, *REFERENCE, "-p", "<bos>a", "-n", 1, "-v", "--log-disable", "--no-warmup").err == ""
    )


def test_accepted_flags_leave_a_note(command: Runner, tiny_path: Path) -> None:
    done = command("run", tiny_path, *GREEDY, "-p", "a", "-n", 1, "--no-warmup")
    assert done.code == 0
    assert done.err.startswith("gemmafile: --no-warmup is accepted and does nothing: ")


def test_metadata_can_be_overridden(command: Runner, tiny_path: Path) -> None:
    done = command(
        "run",
        tiny_path,
        *GREEDY,
        "-p",
        "a",
        "-n",
        0,
        "--special",
        "--override-kv",
        "tokenizer.ggml.add_bos_token=bool:false",
    )
    assert done.out == "a\n"


def test_an_empty_prompt_needs_a_bos(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    assert command("run", tiny_path, *GREEDY, "-p", "", "-n", 1).code == 0
    without = write_small(tmp_path / "llama.gguf", "llama")
    done = command("run", without, *GREEDY, "-p", "", "-n", 1)
    assert (done.code, done.err) == (2, "gemmafile: the prompt is empty: there is nothing to go on from\n")


def test_interactive_completion_appends_what_is_typed(command: Runner, tiny_path: Path, tiny: Model) -> None:
    flags = (*always(tiny, THE), "-n", 1, "--verbose-prompt", "--special")
    done = command(
        "run",
        tiny_path,
        *REFERENCE,
        *flags,
        "-i",
        "-p",
        "a",
        "--in-prefix",
        "<start_of_turn>",
        stdin="b\n<end_of_turn>\n",
    )
    assert done.code == 0
    assert done.out == "<bos>a the the the\n"


def test_interactive_first_waits(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command("run", tiny_path, *REFERENCE, *always(tiny, THE), "-n", 1, "-if", "-p", "a", stdin="")
    assert done.out == "a\n"


def test_a_reverse_prompt_is_the_cue_in_interactive_completion(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command("run", tiny_path, *REFERENCE, *always(tiny, THE), "-n", 5, "-i", "-r", "the", "-p", "a", stdin="b\n")
    assert done.out == "a the the\n"


def test_no_cnv_without_a_prompt_completes_what_is_typed(command: Runner, tiny_path: Path, tiny: Model) -> None:
    done = command("run", tiny_path, *REFERENCE, *always(tiny, THE), "-n", 2, "-no-cnv", stdin="a\nb\n")
    assert done.out == " the the the the\n"
