"""The page when two things happen at once, or the browser does not do as it should."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Running
from tests.web.browsing import Watch, answer_with, answers, ask, open_page, until, wait_for_end

pytestmark = pytest.mark.oracle


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """Of a server whose model is never asked."""
    watch = Watch()
    opened = open_page(browser, server, watch)
    yield opened
    opened.context.close()
    assert watch.complaints == []


def choose(page: Any, title: str) -> None:
    page.click(f".conversation .name >> text={title}")


def hold_loading(page: Any) -> list[bool]:
    """The engine is being loaded, as the page hears it, until something is put into this list."""
    is_ready: list[bool] = []

    def fulfil(route: Any) -> None:
        if is_ready:
            route.continue_()
        else:
            body = json.dumps({"state": "loading", "progress": 0.5, "restarts": 0})
            route.fulfill(status=200, content_type="application/json", body=body)

    page.route("**/page/state", fulfil)
    page.reload()
    page.wait_for_selector("html[data-started]", state="attached")
    return is_ready


def test_an_answer_is_asked_for_with_the_settings_of_its_own_conversation(page: Any) -> None:
    is_ready = hold_loading(page)
    asked = answer_with(page, ["Ahoy"])
    page.click("#settings-open")
    page.fill("#set-system", "You are a pirate.")
    ask(page, "First one", wait=False)
    page.click("#new-chat")
    until(page, "document.getElementById('title').textContent === 'New chat'")
    page.fill("#set-system", "You are a poet.")
    is_ready.append(True)
    wait_for_end(page)
    assert asked[0]["messages"][0] == {"role": "system", "content": "You are a pirate."}
    assert answers(page) == []
    choose(page, "First one")
    page.wait_for_selector(".message >> text=Ahoy")


def test_an_answer_can_be_stopped_while_the_model_is_loaded(page: Any) -> None:
    hold_loading(page)
    ask(page, "First one", wait=False)
    page.click("#stop")
    start_s = time.monotonic()
    wait_for_end(page)
    assert time.monotonic() - start_s < 5
    assert page.is_visible("#send")


def test_the_conversation_that_was_chosen_last_is_shown(page: Any) -> None:
    """Though the other one takes longer to be rendered."""
    for title, text in (("First one", "alpha"), ("Second one", "beta")):
        answer_with(page, [text])
        ask(page, title)
        page.click("#new-chat")
    page.reload()
    page.wait_for_selector("html[data-started]", state="attached")
    page.evaluate(
        """() => { const real = window.fetch; window.fetch = async (url, options) => {
        if (String(options?.body).includes("alpha")) await new Promise((run) => setTimeout(run, 600));
        return real(url, options); }; }"""
    )
    choose(page, "First one")
    choose(page, "Second one")
    page.wait_for_timeout(1200)
    assert (answers(page), page.inner_text("#title")) == (["beta"], "Second one")


def test_a_name_given_during_an_answer_stays(page: Any) -> None:
    is_ready = hold_loading(page)
    answer_with(page, ["done"])
    ask(page, "First one", wait=False)
    page.click("#new-chat")
    choose(page, "First one")
    page.wait_for_selector(".message.user >> text=First one")
    page.click(".conversation.current .icon")
    page.click("#menu >> text=Rename")
    page.fill("#asked", "Animals")
    page.keyboard.press("Enter")
    page.wait_for_selector("#title >> text=Animals")
    is_ready.append(True)
    wait_for_end(page)
    assert answers(page) == ["done"]
    page.reload()
    page.wait_for_selector("#title >> text=Animals")


def test_a_full_disk_ends_no_chat(page: Any) -> None:
    answer_with(page, ["One"])
    page.evaluate(
        """() => { IDBObjectStore.prototype.put = () => {
        throw new DOMException("there is no room", "QuotaExceededError"); }; }"""
    )
    ask(page, "First one")
    assert answers(page) == ["One"]
    assert "there is no room" in page.inner_text("#toasts")
    assert page.is_visible("#send")
    ask(page, "Second one")
    assert answers(page) == ["One", "One"]


def test_what_is_odd_in_an_imported_file_is_left_out(page: Any, tmp_path: Path) -> None:
    timings = [{"predicted_n": 5}, {"predicted_n": 5, "prompt_n": 1, "prompt_ms": 2, "predicted_per_second": "fast"}]
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    messages += [{"role": "assistant", "content": f"answer {i}", "timings": told} for i, told in enumerate(timings)]
    settings = {"sampling": None, "system": 5, "n_predict": "x", "mode": None, "n_probs": {}, "grammar": []}
    (tmp_path / "odd.json").write_text(json.dumps({"title": "Odd", "messages": messages, "settings": settings}))
    page.click("#open-data")
    with page.expect_file_chooser() as chooser:
        page.click("#menu >> text=Import")
    chooser.value.set_files(tmp_path / "odd.json")
    choose(page, "Odd")
    page.wait_for_selector(".message >> text=answer 1")
    assert answers(page) == ["answer 0", "answer 1"]
    assert page.inner_text(".stats") == "5 tokens"
    asked = answer_with(page, ["Well"])
    ask(page, "And now?")
    assert asked[0]["messages"][-1]["content"] == "And now?"
    page.reload()
    page.wait_for_selector("html[data-started]", state="attached")
    assert page.inner_text("#title") == "Odd"
