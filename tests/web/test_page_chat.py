"""The chat in Chromium, with a real model behind it: asking, branches, tokens, files, what is kept."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Running
from tests.web.browsing import Watch, answer_with, answers, ask, button, open_page, set_grammar, until, wait_for_end
from tests.web.test_documents import make_pdf

pytestmark = pytest.mark.oracle

EXPECT_S = 30


def test_first_visit_to_first_streamed_token(browser: Any, chatty: Running, watch: Watch) -> None:
    start = time.monotonic()
    page = open_page(browser, chatty, watch)
    ask(page, "Tell me a story.", wait=False)
    until(page, "(document.querySelector('.message.assistant .body')?.textContent ?? '').length > 1")
    assert time.monotonic() - start < EXPECT_S
    wait_for_end(page)
    assert len(answers(page)[0]) > 40
    stats = page.inner_text(".stats")
    assert "tokens/s" in stats
    assert "first after" in stats
    assert page.inner_text("#title") == "Tell me a story."
    page.context.close()


def test_what_is_rendered(page: Any) -> None:
    text = "# Title\n\nSome *words* and $x^2$\n\n```python\nprint('hi')\n```\n\n<img src=x onerror=alert(1)>\n"
    answer_with(page, [text[i : i + 7] for i in range(0, len(text), 7)])
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    ask(page, "Show me")
    body = page.query_selector(".message.assistant .body")
    assert body.query_selector("h3").inner_text() == "Title"
    assert body.query_selector("math msup") is not None
    assert body.query_selector(".code .s").inner_text() == "'hi'"
    assert body.query_selector("img") is None
    assert "<img src=x onerror=alert(1)>" in body.inner_text()
    page.click(".copy")
    assert page.evaluate("window.copied") == "print('hi')"


def test_reading_the_prompt_is_shown(page: Any) -> None:
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => { const at = document.querySelector('.prefill');
        if (at) window.seen.push(at.textContent); }).observe(document.body, { childList: true, subtree: true }); }"""
    )
    answer_with(page, ["yes"], progress=(512, 2000))
    ask(page, "A long one")
    assert any("512 of 2,000 tokens" in text for text in page.evaluate("window.seen"))


# --- branches --------------------------------------------------------------------------------------------------------


def test_stop_and_go_on(page: Any) -> None:
    page.evaluate("location.reload()")
    page.wait_for_selector("html[data-started]", state="attached")
    page.click("#settings-open")
    page.fill("#set-n_predict", "1500")
    ask(page, "Count from one to a thousand.", wait=False)
    page.wait_for_selector(".message.assistant .live p")
    assert page.get_attribute("#messages", "aria-busy") == "true", "it is shown while it is written"
    page.click("#stop")
    wait_for_end(page)
    stopped = answers(page)[0]
    assert stopped
    page.fill("#set-n_predict", "5")
    button(page, "Go on").click()
    wait_for_end(page)
    assert answers(page)[0].startswith(stopped[: len(stopped) // 2])
    assert len(page.query_selector_all(".message.assistant")) == 1, "it went on in its place"


def test_a_stopped_answer_goes_on_as_if_it_had_not_been(page: Any) -> None:
    """At temperature 0 both ways lead to the same words."""
    ask(page, "What is the capital of France?")
    whole = answers(page)[0]
    page.click("#settings-open")
    page.fill("#set-n_predict", "6")
    button(page, "Answer again").click()
    wait_for_end(page)
    assert whole.startswith(answers(page)[0])
    page.fill("#set-n_predict", "34")
    button(page, "Go on").click()
    wait_for_end(page)
    assert answers(page)[0] == whole


def test_edit_branch_and_turn_back(page: Any) -> None:
    ask(page, "Say a word about cats.")
    first = answers(page)[0]
    button(page, "Edit", "user").click()
    page.fill(".edit-box textarea", "Say a word about ships.")
    page.click(".edit-box .strong")
    wait_for_end(page)
    second = answers(page)[0]
    assert second != first
    assert page.inner_text(".message.user .branch") == "2/2"
    button(page, "Previous version", "user").click()
    page.wait_for_selector("text=about cats")
    assert answers(page)[0] == first
    button(page, "Answer again").click()
    wait_for_end(page)
    assert page.inner_text(".message.assistant .branch") == "2/2"
    assert answers(page)[0] == first, "temperature 0: the same again"


def test_an_answer_can_be_edited_too(page: Any) -> None:
    answer_with(page, ["wrong"])
    ask(page, "Hi")
    button(page, "Edit").click()
    page.fill(".edit-box textarea", "right")
    page.click(".edit-box .strong")
    page.wait_for_selector(".message.assistant >> text=right")
    asked = answer_with(page, ["next"])
    ask(page, "And?")
    assert [m["content"] for m in asked[-1]["messages"]] == ["Hi", "right", "And?"]


def test_delete_and_undo(page: Any) -> None:
    answer_with(page, ["one"])
    ask(page, "A")
    ask(page, "B")
    assert len(page.query_selector_all(".message")) == 4
    button(page, "Delete", "user").click()
    until(page, "document.querySelectorAll('.message').length === 2")
    page.click(".toast >> text=Undo")
    until(page, "document.querySelectorAll('.message').length === 4")


def test_fork_at_a_token(page: Any) -> None:
    ask(page, "What is the capital of France?")
    before = answers(page)[0]
    button(page, "Tokens").click()
    tokens = page.query_selector_all(".tok")
    assert len(tokens) >= 10
    words = [token.inner_text() for token in tokens]
    tokens[2].click()
    choice = page.query_selector("#token-pop li button:not(:disabled) span")
    word = choice.inner_text()
    choice.click()
    wait_for_end(page)
    after = answers(page)[0]
    assert after != before
    assert after.startswith("".join(words[:2]).strip())
    assert word.strip() in after
    assert page.inner_text(".message.assistant .branch") == "2/2"
    button(page, "Tokens").click()
    assert page.query_selector_all(".tok")[2].inner_text().strip() == word.strip()


def test_a_fork_keeps_to_the_grammar(page: Any) -> None:
    set_grammar(page, 'root ::= [A-Za-z ]{20,30} "%!"')
    ask(page, "Will it rain?")
    before = answers(page)[0]
    assert re.fullmatch(r"[A-Za-z ]{20,30}%!", before)
    button(page, "Tokens").click()
    page.query_selector_all(".tok")[1].click()
    choices = page.query_selector_all("#token-pop li button:not(:disabled) span:first-child")
    next(choice for choice in choices if re.fullmatch("[A-Za-z ]+", choice.inner_text())).click()
    wait_for_end(page)
    assert page.query_selector(".problem") is None
    assert answers(page)[0] != before
    assert re.fullmatch(r"[A-Za-z ]{20,30}%!", answers(page)[0])


# --- files -----------------------------------------------------------------------------------------------------------

DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.querySelector("#main").dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


def drop(page: Any, name: str, raw: bytes) -> None:
    page.evaluate(DROP, [name, "application/octet-stream", base64.b64encode(raw).decode()])


def test_dropped_files_are_counted_and_sent(page: Any) -> None:
    asked = answer_with(page, ["read"])
    drop(page, "a.pdf", make_pdf("Words of a PDF"))
    drop(page, "b.py", b"x = '```'\n")
    until(page, "[...document.querySelectorAll('.chip')].filter((c) => /tokens/.test(c.textContent)).length === 2")
    assert "1 pages" in page.inner_text("#attachments")
    until(page, "document.querySelector('#context-text').textContent !== ''")
    ask(page, "What is in them?")
    sent = asked[0]["messages"][-1]["content"]
    assert "a.pdf\n```\nWords of a PDF\n```" in sent
    assert "b.py\n````\nx = '```'\n````" in sent
    assert sent.endswith("What is in them?")
    assert page.inner_text(".message.user .chip").startswith("a.pdf, ")


def test_a_picture_is_refused_in_words(page: Any, watch: Watch) -> None:
    drop(page, "a.png", b"\x89PNG\r\n\x1a\n")
    page.wait_for_selector(".toast >> text=is a picture")
    assert page.query_selector(".chip") is None
    assert len(watch.complaints) == 1
    watch.complaints.clear()  # the browser itself tells the console of a 400


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_conversations_are_kept_found_renamed_and_deleted(page: Any) -> None:
    answer_with(page, ["The answer speaks of zebras."])
    ask(page, "First one")
    page.click("#new-chat")
    answer_with(page, ["Nothing special."])
    ask(page, "Second one")
    page.reload()
    page.wait_for_selector("html[data-started]", state="attached")
    assert page.inner_text("#title") == "Second one", "the one that was open"
    assert [e.inner_text() for e in page.query_selector_all(".conversation .name")] == ["Second one", "First one"]
    page.fill("#search", "zebra")
    page.wait_for_selector(".snippet >> text=zebra")
    assert len(page.query_selector_all(".conversation")) == 1
    page.click(".conversation .name")
    page.wait_for_selector(".message >> text=speaks of zebras")
    page.fill("#search", "")
    until(page, "document.querySelectorAll('.conversation').length === 2")
    page.click(".conversation.current .icon")
    page.click("#menu >> text=Rename")
    page.fill("#asked", "Animals")
    page.keyboard.press("Enter")
    page.wait_for_selector("#title >> text=Animals")
    page.click(".conversation.current .icon")
    page.click("#menu >> text=Delete")
    until(page, "document.querySelectorAll('.conversation').length === 1")
    page.click(".toast >> text=Undo")
    until(page, "document.querySelectorAll('.conversation').length === 2")


def test_export_and_import(page: Any, tmp_path: Path) -> None:
    ask(page, "Tell me about *rivers*.")
    button(page, "Answer again").click()
    wait_for_end(page)
    whole = answers(page)[0]

    def export(item: str) -> Path:
        page.click("#open-data")
        with page.expect_download() as download:
            page.click(f"#menu >> text={item}")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path

    markdown = export("this conversation as Markdown").read_text()
    assert markdown.startswith("# Tell me about *rivers*.\n\n## You\n\nTell me about *rivers*.\n\n## Answer\n\n")
    path = export("all conversations")
    found = json.loads(path.read_text())
    assert found["format"] == "gemmafile conversations 1"
    assert len(found["conversations"][0]["messages"]) == 3
    page.click(".conversation .icon")
    page.click("#menu >> text=Delete")
    until(page, "document.querySelectorAll('.conversation').length === 0")

    def bring(path: Path) -> None:
        page.click("#open-data")
        with page.expect_file_chooser() as chooser:
            page.click("#menu >> text=Import")
        chooser.value.set_files(path)

    bring(path)
    page.wait_for_selector(".conversation .name")
    page.click(".conversation .name")
    page.wait_for_selector(".message.assistant .branch >> text=2/2")
    assert answers(page)[0] == whole
    button(page, "Tokens").click()
    assert len(page.query_selector_all(".tok")) > 10, "tokens travel too"
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]})
    )
    bring(other)
    until(page, "document.querySelectorAll('.conversation').length === 2")
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    bring(bad)
    page.wait_for_selector(".toast >> text=cannot be imported")


def test_a_report_holds_prompt_answer_and_settings(page: Any, tmp_path: Path) -> None:
    ask(page, "Hello")
    button(page, "Report this answer").click()
    page.select_option("#report-kind", "wrong")
    page.fill("#report-comment", "It is not so.")
    with page.expect_download() as download:
        page.click("dialog >> text=Save the report")
    path = tmp_path / "report.json"
    download.value.save_as(path)
    report = json.loads(path.read_text())
    assert report["request"]["messages"] == [{"role": "user", "content": "Hello"}]
    assert report["request"]["seed"] >= 0
    assert (report["reason"], report["comment"]) == ("wrong", "It is not so.")
    assert (
        report["answer"] == page.evaluate("document.querySelector('.message.assistant .body').innerText")
        or report["answer"]
    )
    assert report["defaults"]["temperature"] == 0.0
    assert report["token_ids"]
