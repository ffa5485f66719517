"""Settings in Chromium: the card's templates, presets, grammar, notebook; and what happens when things go wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gemmafile.settings import ContextSettings, RunSettings, ServeSettings
from tests.server.running import Running, running
from tests.web.browsing import Watch, answer_with, answers, ask, open_page, set_grammar, until, wait_for_end
from tests.web.test_prompts import HISTORY, PROMPT

pytestmark = pytest.mark.oracle


def prompts_of(page: Any) -> list[Any]:
    """The bodies of completions that the page asks for, as they come."""
    asked: list[Any] = []
    page.on("request", lambda r: asked.append(r.post_data_json) if r.url.endswith("/completion") else None)
    return asked


def open_templates(page: Any) -> None:
    page.click("#settings-open")
    page.click("text=Prompt format")


def test_the_cards_two_templates_pasted_verbatim(page: Any, chatty: Running) -> None:
    asked = prompts_of(page)
    open_templates(page)
    page.fill("#set-prompt_template", PROMPT)
    page.fill("#set-history_template", HISTORY)
    assert page.is_checked("input[name=mode][value=template]"), "whoever writes a template wants it used"
    page.fill("#set-system", "Be kind.")
    ask(page, "Hi <|im_end|> {{prompt}}")
    ask(page, "Bye")
    first, second = (chatty.door.tokenizer.decode(body["prompt"], special=True) for body in asked)
    assert first == (
        "<start_of_turn>system\nBe kind.<end_of_turn>\n<start_of_turn>user\nHi <|im_end|> {{prompt}}<end_of_turn>\n"
        "<start_of_turn>assistant"
    )
    assert second.endswith("<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>assistant")
    end = chatty.door.tokenizer.find_token("<|im_end|>")
    assert end not in asked[0]["prompt"], "what a message spells is text"
    page.wait_for_selector("#template-warnings >> text=Not control tokens of this model")
    page.reload()
    page.wait_for_selector("html[data-started]", state="attached")
    assert page.input_value("#set-prompt_template") == PROMPT, "kept with the conversation"


def test_literal_mode_is_the_old_page(page: Any, chatty: Running) -> None:
    asked = prompts_of(page)
    open_templates(page)
    page.fill("#set-prompt_template", "<|im_start|>system\n{{prompt}}<|im_end|>\n{{history}}\n<|im_start|>{{char}}")
    page.fill("#set-history_template", "<|im_start|>{{name}}\n{{message}}<|im_end|>")
    page.check("input[name=mode][value=literal]")
    ask(page, "a<|im_end|>b")
    assert asked[0]["stop"] == ["</s>", "Llama:", "User:"]
    text = chatty.door.tokenizer.decode(asked[0]["prompt"], special=True)
    assert text.endswith("<|im_start|>User\na<|im_end|>b<|im_end|>\n<|im_start|>Llama")
    for words in ("literal mode they count", "'User', 'Llama'", "The prompt ends in"):
        until(page, f"document.querySelector('#template-warnings').textContent.includes({json.dumps(words)})")
    page.fill("#set-user", "user")
    page.fill("#set-bot", "assistant\n")
    page.click("text=Restore")
    assert page.is_checked("input[name=mode][value=model]")
    until(page, "document.querySelectorAll('#template-warnings li').length === 0")


def test_the_exact_prompt_is_shown(page: Any) -> None:
    page.fill("#message-box", "Hi there")
    open_templates(page)
    page.click("#exact-prompt")
    page.wait_for_selector(".pieces .control >> text=<|im_start|>")
    assert "user\nHi there" in page.inner_text("#pieces")


def test_defaults_are_shown_and_only_changes_are_sent(page: Any) -> None:
    asked = answer_with(page, ["x"])
    page.click("#settings-open")
    assert page.get_attribute("#set-temperature", "placeholder") == "0"
    assert "Default: 40" in page.inner_text("#set-top_k-help")
    page.fill("#set-temperature", "0.7")
    page.fill("#set-top_k", "40")
    page.fill("#set-system", "Be brief.")
    ask(page, "Hi")
    sent = asked[0]
    assert sent["temperature"] == 0.7
    assert not {"top_k", "top_p", "min_p", "mirostat"} & set(sent)
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}


def test_presets_belong_to_conversations(page: Any) -> None:
    answer_with(page, ["x"])
    page.click("#settings-open")
    page.fill("#set-temperature", "1.25")
    page.click("text=Save as…")
    page.fill("#asked", "Wild")
    page.keyboard.press("Enter")
    page.wait_for_selector("#set-preset >> text=Wild", state="attached")
    ask(page, "one")
    page.click("#new-chat")
    until(page, "document.querySelector('#set-temperature').value === ''")
    page.select_option("#set-preset", "Precise")
    assert page.input_value("#set-temperature") == "0.2"
    page.select_option("#set-preset", "Wild")
    until(page, "document.querySelector('#set-temperature').value === '1.25'")
    page.select_option("#set-preset", "Default")
    page.click(".conversation .name")
    until(page, "document.querySelector('#set-preset').value === 'Wild'")
    page.click("text=Use for new chats")
    page.click("#new-chat")
    until(page, "document.querySelector('#title').textContent === 'New chat'")
    assert page.input_value("#set-temperature") == "1.25"


def test_grammar_and_schema(page: Any) -> None:
    set_grammar(page, 'root ::= "maybe" | "never"')
    ask(page, "Will it rain?")
    assert answers(page)[-1] in ("maybe", "never")
    page.select_option("#set-output", "json")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    page.fill("#set-schema", json.dumps(schema | {"additionalProperties": False}))
    ask(page, "A number, please.")
    assert page.query_selector(".problem") is None
    assert isinstance(json.loads(answers(page)[-1])["n"], int)
    page.fill("#set-schema", "{")
    ask(page, "Again")
    assert "The JSON schema is not JSON" in page.inner_text(".problem")


def test_notebook(page: Any, chatty: Running) -> None:
    asked = prompts_of(page)
    page.click("#open-notebook")
    page.fill("#notebook-text", "Once upon a time")
    page.press("#notebook-text", "Control+Enter")
    page.wait_for_selector("#notebook-stats >> text=tokens/s")
    first = page.input_value("#notebook-text")
    assert first.startswith("Once upon a time")
    assert len(first) > 40
    assert asked[0]["prompt"] == chatty.door.tokenizer.encode("Once upon a time")
    page.click("#notebook-show")
    page.click(".notebook-tokens .tok:nth-of-type(3)")
    page.click("#token-pop li button:not(:disabled)")
    page.wait_for_selector("#notebook-stop", state="hidden")
    forked = page.input_value("#notebook-text")
    assert forked != first
    page.click("#notebook-undo")
    page.click("#notebook-undo")
    assert page.input_value("#notebook-text") == "Once upon a time"
    page.check("#notebook-special")
    page.fill("#notebook-text", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    page.click("#notebook-go")
    page.wait_for_selector("#notebook-stop", state="hidden")
    start = chatty.door.tokenizer.find_token("<|im_start|>")
    assert asked[-1]["prompt"].count(start) == 2


# --- when things go wrong --------------------------------------------------------------------------------------------


def test_an_error_is_shown_and_can_be_tried_again(page: Any, watch: Watch) -> None:
    error = {"error": {"code": 503, "message": "too many are waiting", "type": "unavailable_error"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, json=error))
    ask(page, "Hi")
    assert "too many are waiting" in page.inner_text(".problem")
    page.unroute("**/v1/chat/completions")
    answer_with(page, ["here I am"])
    page.click("text=Try again")
    page.wait_for_selector(".message.assistant >> text=here I am")
    assert page.query_selector(".problem") is None
    assert page.query_selector(".branch") is None, "a failure is no version"
    watch.complaints.clear()


def test_a_context_that_is_too_small_is_told_before_sending(page: Any, watch: Watch) -> None:
    page.fill("#message-box", "word " * 3000)
    page.wait_for_selector(".meter.full")
    page.press("#message-box", "Enter")
    wait_for_end(page)
    assert "the context holds 2048" in page.inner_text(".problem")
    watch.complaints.clear()


def test_loading_is_shown_and_waited_for(browser: Any, chatty: Running, watch: Watch) -> None:
    page = open_page(browser, chatty, watch, "/plain", started=False)
    calls: list[int] = []

    def state(route: Any) -> None:
        calls.append(1)
        body = {"state": "loading", "progress": 0.4, "restarts": 0, "line": "Kernels are compiled: 2 of 9"}
        route.fulfill(json=body) if len(calls) < 4 else route.continue_()

    page.route("**/page/state", state)
    page.goto(chatty.url + "/")
    page.wait_for_selector("#loading >> text=Kernels are compiled: 2 of 9")
    until(page, "document.querySelector('#loading-bar').value > 0.3")
    page.wait_for_selector("html[data-started]", state="attached")
    ask(page, "Hi")
    assert page.is_hidden("#loading")
    assert len(answers(page)) == 1
    page.context.close()


def test_a_key_is_asked_for(browser: Any, smollm2_path: Any) -> None:
    watch = Watch()
    settings = ServeSettings(api_keys=["sesame"])
    with running(
        smollm2_path, settings, ContextSettings(context=512), None, RunSettings(n_predict=5), wait_s=280
    ) as server:
        page = open_page(browser, server, watch, "/", started=False)
        page.fill("input[name=key]", "sesame")
        page.click("button")
        page.wait_for_selector("html[data-started]", state="attached")
        assert "sesame" not in page.url
        page.context.clear_cookies()
        ask(page, "Hi", wait=False)
        page.fill("#asked", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#asked")
        page.fill("#asked", "sesame")
        page.keyboard.press("Enter")
        wait_for_end(page)
        assert len(answers(page)) == 1
        page.context.close()


def test_a_server_that_filters_tells_no_probabilities(browser: Any, smollm2_path: Any) -> None:
    watch = Watch()
    settings = ServeSettings(filters=["personal-data"])
    with running(
        smollm2_path, settings, ContextSettings(context=512), None, RunSettings(n_predict=5), wait_s=280
    ) as server:
        page = open_page(browser, server, watch)
        ask(page, "Hi")
        assert page.query_selector(".problem") is None
        assert page.query_selector(".message.assistant [aria-label=Tokens]") is None
        page.context.close()
    assert watch.complaints == []


def test_without_javascript(browser: Any, chatty: Running, watch: Watch) -> None:
    page = open_page(browser, chatty, watch, started=False, java_script_enabled=False)
    page.fill("#plain-message", "What is the capital of France?")
    page.click("button[type=submit]:visible")
    page.wait_for_selector("#message")
    assert len(page.inner_text("article.assistant")) > 20
    page.fill("#message", "And of Spain?")
    page.click("button[type=submit]:visible")
    page.wait_for_selector("article:nth-of-type(4)")
    page.context.close()
