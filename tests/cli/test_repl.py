"""The chat: over a pipe, where stdout is answers and nothing else, and in a terminal, with its keys."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
from pathlib import Path

import pytest

from gemmafile import Model
from gemmafile.cli.lines import history_path
from tests.cli.conftest import Runner
from tests.cli.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, NEWLINE, Terminal
from tests.cli.test_main import start

REFERENCE = ("--backend", "reference", "-c", "256", "--temp", "0")
GEMMA = ("--chat-template", "gemma")  # which knows no system role


@pytest.fixture(scope="module")
def says_the(tiny_path: Path) -> list[str]:
    """Flags that make the model answer "the the"."""
    model = Model.open(tiny_path, backend="reference", context=128)
    return [*REFERENCE, "--logit-bias", f"{model.tokenizer.vocabulary.tokens.index('▁the')}+1000", "-n", "2"]


# --- over a pipe -----------------------------------------------------------------------------------------------------


def test_lines_are_turns_and_stdout_is_answers(command: Runner, tiny_path: Path, says_the: list[str]) -> None:
    done = command("run", tiny_path, *says_the, stdin="hello\n\nand more\n")
    assert (done.code, done.out, done.err) == (0, " the the\n the the\n", "")


def test_a_turn_computes_only_what_is_new(command: Runner, tiny_path: Path) -> None:
    """The second turn's tokens begin with the first turn's, up to where the answer is spelled anew."""
    done = command("run", tiny_path, *REFERENCE, "-n", 5, "-v", stdin="one\ntwo\n")
    first, second = (line for line in done.err.splitlines() if line.startswith("prompt:"))
    assert "cache" not in first
    n_first, n_cached = int(first.split()[1]), int(second.split("(")[1].split()[0])
    assert n_cached >= n_first


def test_what_is_kept_of_a_turn_does_not_change_the_next_answer(
    command: Runner, tiny_path: Path, tmp_path: Path
) -> None:
    done = command(
        "run",
        tiny_path,
        *REFERENCE,
        "-n",
        6,
        stdin="one\ntwo\n/save chat.json\n".replace("chat", str(tmp_path / "chat")),
    )
    messages = json.loads((tmp_path / "chat.json").read_text())
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    with Model.open(tiny_path, backend="reference", context=256) as model:
        fresh = model.chat(messages[:3], max_tokens=6, temperature=0.0)
    assert messages[3]["content"] == fresh.text
    assert done.code == 0


def test_a_first_message_can_be_given(command: Runner, tiny_path: Path, says_the: list[str]) -> None:
    assert command("run", tiny_path, *says_the, "-cnv", "-p", "hello", stdin="more\n").out == " the the\n the the\n"
    assert command("run", tiny_path, *says_the, "-st", "-p", "hello", stdin="more\n").out == " the the\n"
    assert command("run", tiny_path, *says_the, "-st", stdin="one\ntwo\n").out == " the the\n"


def test_the_prompt_of_a_chat_follows_the_template(command: Runner, tiny_path: Path, says_the: list[str]) -> None:
    done = command(
        "run", tiny_path, *says_the, "-st", "-p", "of<end_of_turn>", "-sys", "is", "--verbose-prompt", *GEMMA
    )
    rows = [line.split(maxsplit=1) for line in done.err.splitlines()[1:] if line.startswith("  ")]
    text = "".join(ast.literal_eval(piece) for _, piece in rows)
    assert text == "<bos><start_of_turn>user\nis\n\nof<end_of_turn><end_of_turn>\n<start_of_turn>model\n"
    ids = [int(token_id) for token_id, _ in rows]
    assert ids.count(5) == 1  # the template's; the one in the message is plain text


def test_a_system_prompt_from_a_file_and_its_policy(
    command: Runner, tiny_path: Path, says_the: list[str], tmp_path: Path
) -> None:
    (tmp_path / "system.txt").write_text("is\n")
    words = ("run", tiny_path, *says_the, "-st", "-p", "of", "--verbose-prompt", *GEMMA)
    given = command(*words, "-sysf", tmp_path / "system.txt")
    assert given == command(*words, "-sys", "is")
    turns = command(*words, "-sys", "is", "--system-policy", "user-turn")
    assert sum(line.split()[:1] == ["4"] for line in turns.err.splitlines()) == 3


def test_quotes_and_backslashes_join_lines(
    command: Runner, tiny_path: Path, says_the: list[str], tmp_path: Path
) -> None:
    text = 'one\\\ntwo\n"""three\n\nfour"""\n"""\nfive\n"""\n """six"""\n/save FILE\n'
    command("run", tiny_path, *says_the, stdin=text.replace("FILE", str(tmp_path / "chat.json")))
    messages = [m["content"] for m in json.loads((tmp_path / "chat.json").read_text()) if m["role"] == "user"]
    assert messages == ["one\ntwo", "three\n\nfour", "five", "six"]


def test_multiline_input_ends_with_a_backslash_or_a_slash(
    command: Runner, tiny_path: Path, says_the: list[str], tmp_path: Path
) -> None:
    text = "one\ntwo\\\nthree\nfour/\nfive\n"
    command("run", tiny_path, *says_the, "-mli", stdin=text + f"six\\\n/save {tmp_path / 'chat.json'}\\\n")
    messages = [m["content"] for m in json.loads((tmp_path / "chat.json").read_text()) if m["role"] == "user"]
    assert messages == ["one\ntwo", "three\nfour", "five\nsix"]


def saved(
    command: Runner, tiny_path: Path, flags: list[str], tmp_path: Path, lines: list[str]
) -> list[tuple[str, str]]:
    """(role, content) of a chat after these lines."""
    path = tmp_path / "saved.json"
    done = command("run", tiny_path, *flags, stdin="\n".join([*lines, f"/save {path}", ""]))
    assert f"saved {len(json.loads(path.read_text()))} messages" in done.err
    return [(m["role"], m["content"]) for m in json.loads(path.read_text())]


def test_commands_change_the_chat(command: Runner, tiny_path: Path, says_the: list[str], tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a note\n")
    answer = ("assistant", " the the")
    run = [command, tiny_path, says_the, tmp_path]
    assert saved(*run, ["a", "b", "/undo"]) == [("user", "a"), answer]
    assert saved(*run, ["a", "/undo", "/undo"]) == []
    assert saved(*run, ["a", "/clear", "b"]) == [("user", "b"), answer]
    assert saved(*run, ["/system be", "a", "/clear"]) == [("system", "be")]
    assert saved(*run, ["/system be", "/system not"]) == [("system", "not")]
    assert saved(*run, [f"/read {tmp_path / 'note.txt'}", "a"]) == [("user", "a note\n\na"), answer]
    assert saved(*run, ["a", "/regen"]) == [("user", "a"), answer]
    assert saved(*run, ["/usr/bin is here", " /clear"]) == [
        ("user", "/usr/bin is here"),
        answer,
        ("user", " /clear"),
        answer,
    ]
    assert saved(*run, ["a", "/exit", "b"][:1]) == [("user", "a"), answer]


def test_exit_leaves(command: Runner, tiny_path: Path, says_the: list[str]) -> None:
    assert command("run", tiny_path, *says_the, stdin="a\n/exit\nb\n").out == " the the\n"


def test_regen_gives_another_answer_where_chance_allows(command: Runner, tiny_path: Path) -> None:
    words = ("run", tiny_path, "--backend", "reference", "-c", 256, "--temp", 2, "-n", 8, "--seed", 3)
    first, second = command(*words, stdin="a\n/regen\n").out.splitlines()[:2]
    assert first != second
    assert command(*words, stdin="a\n/regen\n").out.splitlines()[:2] == [first, second]


def test_an_answer_that_cannot_be_given_again_stays(
    command: Runner, tiny_path: Path, says_the: list[str], tmp_path: Path
) -> None:
    lines = ["a", "/system " + "be " * 200, "/regen", "/system"]
    assert saved(command, tiny_path, says_the, tmp_path, lines)[1:] == [("user", "a"), ("assistant", " the the")]


def test_control_tokens_that_are_shown_are_no_part_of_the_chat(
    command: Runner, tiny_path: Path, says_the: list[str], tmp_path: Path
) -> None:
    flags = [*says_the, "--special", "--logit-bias", "5+2000"]
    assert command("run", tiny_path, *flags, stdin="a\n").out == "<end_of_turn>\n"
    assert saved(command, tiny_path, flags, tmp_path, ["a"]) == [("user", "a"), ("assistant", "")]


def test_ctrl_c_ends_a_chat_over_a_pipe(tiny_path: Path, says_the: list[str]) -> None:
    process = start("run", tiny_path, *says_the, "-n", -1, "-c", 8192, "--ignore-eos", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go on\n")
    process.stdin.flush()
    process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/contxt", "there is no command /contxt (did you mean context?); /help lists them"),
        ("/undo", "/undo: there is no message to take back"),
        ("/regen", "/regen: there is no answer to give again"),
        ("/save", "/save needs a file"),
        ("/save /nowhere/at/all", "/nowhere/at/all: cannot be written: No such file or directory"),
        ("/save /", "/: cannot be written: it is a directory"),
        ("/save ~no-such-user/chat.md", "~no-such-user/chat.md: cannot be written: No such file or directory"),
        ("/read /nowhere", "/nowhere: cannot be read: No such file or directory"),
        ("/read ~no-such-user/note", "~no-such-user/note: cannot be read: No such file or directory"),
        ("/read a\0b", "'a\\x00b' cannot be the name of a file"),
    ],
)
def test_a_mistake_is_said_and_the_chat_goes_on(
    command: Runner, tiny_path: Path, says_the: list[str], line: str, says: str
) -> None:
    done = command("run", tiny_path, *says_the, stdin=f"{line}\nhello\n")
    assert says in done.err
    assert done.out == " the the\n"
    assert done.code != 0


def test_questions_are_answered_on_stderr(command: Runner, tiny_path: Path, says_the: list[str]) -> None:
    done = command("run", tiny_path, *says_the, stdin="/stats\na\n/stats\n/context\n/system\n/help\n")
    assert (done.code, done.out) == (0, " the the\n")
    for text in ("no answer yet", "answer: 2 tokens", "of 256 tokens", "2 messages", "no system prompt", "/regen "):
        assert text in done.err


def test_a_full_context_is_said_and_nothing_is_dropped(command: Runner, tiny_path: Path, says_the: list[str]) -> None:
    long = "a " * 60
    done = command("run", tiny_path, *says_the, "-c", 128, stdin=f"{long}\n{long}\n/clear\n{long}\n")
    assert done.out == " the the\n the the\n"
    assert "tokens with this message and the context holds 128: /clear forgets the chat" in done.err
    assert done.code == 1


def test_bytes_that_are_not_utf8_do_not_end_the_chat(command: Runner, tiny_path: Path, says_the: list[str]) -> None:
    done = command("run", tiny_path, *says_the, stdin=b"caf\xe9\nmore\n")
    assert (done.code, done.out) == (0, " the the\n the the\n")


# --- in a terminal ---------------------------------------------------------------------------------------------------


def chat(tiny_path: Path, *flags: object) -> Terminal:
    return Terminal("run", tiny_path, *flags)


def test_a_chat_in_a_terminal(tiny_path: Path, says_the: list[str], tmp_path: Path) -> None:
    with chat(tiny_path, *says_the) as terminal:
        banner = terminal.wait_for("\n> ")
        assert "Tiny random gemma2" in banner
        assert "context 256" in banner
        terminal.type("hello" + ENTER)
        assert "the the\n" in terminal.wait_for("\n> ")
        terminal.type("one" + ALT_ENTER + "two" + NEWLINE)
        terminal.wait_for("the the\n")
        terminal.wait_for("> ")
        terminal.type(f"/save {tmp_path / 'chat.json'}" + ENTER)
        terminal.wait_for("saved 4 messages")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    assert [m["content"] for m in json.loads((tmp_path / "chat.json").read_text())][2] == "one\ntwo"
    history = tmp_path / "state" / "gemmafile" / "history"
    assert "hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(tiny_path: Path, says_the: list[str], tmp_path: Path) -> None:
    with chat(tiny_path, *says_the, "-n", -1, "-c", 8192, "--ignore-eos") as terminal:
        terminal.wait_for("> ")
        terminal.type("go on" + ENTER)
        terminal.wait_for("the the the the")
        terminal.type(CTRL_C)
        terminal.wait_for("\n> ")
        terminal.type(f"/save {tmp_path / 'chat.json'}" + ENTER)
        terminal.wait_for("saved 2 messages")
        terminal.wait_for("> ")
        terminal.type("again" + ENTER)
        terminal.wait_for("the the the")
        terminal.type(CTRL_C)
        terminal.wait_for("\n> ")
        terminal.type(CTRL_C)
        assert terminal.wait() == 0
    assert json.loads((tmp_path / "chat.json").read_text())[1]["content"].startswith(" the the the the")


def test_ctrl_c_drops_a_line_and_leaves_at_an_empty_one(tiny_path: Path, says_the: list[str]) -> None:
    with chat(tiny_path, *says_the) as terminal:
        terminal.wait_for("> ")
        terminal.type("half a thou")
        terminal.wait_for("half a thou")
        terminal.type(CTRL_C)
        terminal.wait_for("> ")
        terminal.type(CTRL_C)
        assert terminal.wait() == 0
        assert "the the" not in terminal.screen


def test_simple_io_has_no_history(tiny_path: Path, says_the: list[str], tmp_path: Path) -> None:
    with chat(tiny_path, *says_the, "--simple-io") as terminal:
        terminal.wait_for("> ")
        terminal.type("hello" + ENTER)
        terminal.wait_for("the the\n")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    assert not (tmp_path / "state").exists()


def test_a_user_without_a_home_has_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs as a number nobody has; platformdirs refuses to name a folder then."""

    def refuse(*words: object, **options: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_state_path", refuse)
    assert history_path() is None


def test_a_history_that_cannot_be_written_is_no_history(
    tiny_path: Path, says_the: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    with chat(tiny_path, *says_the) as terminal:
        terminal.wait_for("> ")
        terminal.type("hello" + ENTER)
        terminal.wait_for("the the\n")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.screen


def test_an_answer_cannot_drive_the_terminal(tiny_path: Path) -> None:
    with Model.open(tiny_path, backend="reference", context=128) as model:
        escape = model.tokenizer.vocabulary.tokens.index("<0x1B>")
    flags = ("--backend", "reference", "-c", 128, "--temp", 0, "--logit-bias", f"{escape}+1000", "-n", 2)
    with Terminal("run", tiny_path, *flags, "-p", "a") as terminal:
        assert terminal.wait() == 0
        assert "a\ufffd\ufffd\n" in terminal.screen
        assert "\x1b" not in terminal.screen


def test_log_disable_leaves_only_the_chat_in_a_terminal(tiny_path: Path, says_the: list[str]) -> None:
    with chat(tiny_path, *says_the, "--log-disable") as terminal:
        assert terminal.wait_for("> ") == "> "
        terminal.type("hello" + ENTER)
        assert terminal.wait_for("\n> ") == "hello\n the the\n> "
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
