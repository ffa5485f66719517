"""Real sessions of the clients that people use, each as its own documentation has it, with SmolLM2 behind them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmafile.settings import ContextSettings
from tests.server.running import Running, running

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
PARIS: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> Iterator[Running]:
    with running(smollm2_path, context=ContextSettings(context=4096)) as server:
        yield server


def check_person(text: str) -> None:
    person = json.loads(text)
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 120


# --- openai ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def openai_client(real: Running) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_openai_chat(openai_client: Any) -> None:
    ask = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 16, "temperature": 0}
    whole = openai_client.chat.completions.create(**ask)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.completion_tokens <= 16
    text = ""
    usage = None
    for chunk in openai_client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage == whole.usage or usage.total_tokens == whole.usage.total_tokens
    several = openai_client.chat.completions.create(**{**ask, "temperature": 1}, n=2, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert len(several.choices[0].logprobs.content[0].top_logprobs) == 2


def test_openai_async_and_its_stream_helper(real: Running) -> None:
    import openai

    async def session() -> str:
        async with openai.AsyncOpenAI(base_url=f"{real.url}/v1", api_key="none") as client:
            ask = {"model": "m", "messages": HELLO, "max_tokens": 300, "temperature": 0}
            async with client.chat.completions.stream(**ask) as stream:
                async for _ in stream:
                    pass
                found = await stream.get_final_completion()
            both = await asyncio.gather(*(client.chat.completions.create(**ask) for _ in range(2)))
            assert {each.choices[0].message.content for each in both} == {found.choices[0].message.content}
            return str(found.choices[0].message.content)

    assert asyncio.run(session())


@pytest.mark.parametrize("stream", [False, True])
def test_openai_tools_there_and_back(openai_client: Any, stream: bool) -> None:
    chat = openai_client.chat.completions
    ask = {"model": "m", "max_tokens": 100, "temperature": 0, "tools": [WEATHER]}
    if stream:
        with chat.stream(messages=PARIS, tool_choice="required", **ask) as events:
            for _ in events:
                pass
            message = events.get_final_completion().choices[0].message
    else:
        message = chat.create(messages=PARIS, tool_choice="required", **ask).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"]
    messages = [
        *PARIS,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny, 20"},
    ]
    for turn in messages:
        if isinstance(turn.get("tool_calls"), list):
            for each in turn["tool_calls"]:
                each["function"].pop("parsed_arguments", None)
        turn.pop("parsed", None)
    after = chat.create(messages=messages, **ask)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_openai_parses_a_pydantic_model(openai_client: Any) -> None:
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        name: str = Field(max_length=20)
        age: int = Field(ge=0, le=120)

    ask: Any = {"model": "m", "messages": [{"role": "user", "content": "Describe a person."}], "max_tokens": 200}
    found = openai_client.chat.completions.parse(**ask, response_format=Person, temperature=0)
    assert isinstance(found.choices[0].message.parsed, Person)
    again = openai_client.responses.parse(model="m", input="Describe a person.", text_format=Person, temperature=0)
    assert isinstance(again.output_parsed, Person)


def test_openai_completions_embeddings_models(openai_client: Any) -> None:
    found = openai_client.completions.create(model="m", prompt="Once upon a time", max_tokens=8, logprobs=2, echo=True)
    assert found.choices[0].text.startswith("Once upon a time")
    assert len(found.choices[0].logprobs.tokens) > 8
    streamed = openai_client.completions.create(model="m", prompt=["a", "b"], max_tokens=4, stream=True)
    assert {choice.index for chunk in streamed for choice in chunk.choices} == {0, 1}
    vectors = openai_client.embeddings.create(model="m", input=["a cat", "the dog"])  # base64 on the wire
    assert [len(entry.embedding) for entry in vectors.data] == [576, 576]
    assert sum(x * x for x in vectors.data[0].embedding) == pytest.approx(1, abs=1e-4)
    names = [model.id for model in openai_client.models.list()]
    assert openai_client.models.retrieve(names[0]).id == names[0]


def test_openai_responses(openai_client: Any) -> None:
    ask = {"model": "m", "input": "Say hello.", "max_output_tokens": 300, "temperature": 0}
    whole = openai_client.responses.create(**ask)
    assert whole.output_text
    with openai_client.responses.stream(**ask) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert final.output_text == whole.output_text
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    tool = {"type": "function", "name": "get_weather", "description": "Weather", "parameters": CITY, "strict": False}
    called = openai_client.responses.create(
        model="m", input="What is the weather in Paris?", tools=[tool], tool_choice="required", temperature=0
    )
    (call,) = called.output
    assert json.loads(call.arguments)["city"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [*PARIS, call.model_dump(exclude_none=True), result]
    assert openai_client.responses.create(model="m", input=items, tools=[tool], max_output_tokens=16).output


def test_openai_errors_have_their_classes(openai_client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as wrong:
        openai_client.chat.completions.create(model="m", messages=[])
    assert wrong.value.status_code == 400
    with pytest.raises(openai.BadRequestError) as long:
        openai_client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.type == "exceed_context_size_error"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("gpt-4")
    with pytest.raises(openai.BadRequestError):
        openai_client.chat.completions.create(model="m", messages=HELLO, stream=True, temperature="hot")


# --- others ---------------------------------------------------------------------------------------------------------


def test_ollama(real: Running) -> None:
    import ollama

    client = ollama.Client(host=real.url)
    model = client.list().models[0].model
    options = {"temperature": 0, "num_predict": 16}
    whole = client.chat(model=model, messages=HELLO, options=options)
    parts = [part.message.content for part in client.chat(model=model, messages=HELLO, options=options, stream=True)]
    assert "".join(parts) == whole.message.content
    assert client.generate(model=model, prompt="Say hello.", options=options).response == whole.message.content
    person = client.chat(model=model, messages=[{"role": "user", "content": "Describe a person."}], format=SCHEMA,
                         options={"temperature": 0, "num_predict": 200})  # fmt: skip
    check_person(person.message.content)

    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return city

    answer = client.chat(model=model, messages=PARIS, tools=[get_weather], options=options)
    assert answer.done
    history = [*PARIS, {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
        {"role": "tool", "tool_name": "get_weather", "content": "sunny"}]  # fmt: skip
    assert client.chat(model=model, messages=history, tools=[get_weather], options=options).done
    assert len(client.embed(model=model, input=["a", "b"]).embeddings) == 2
    assert len(client.embeddings(model=model, prompt="a").embedding) == 576
    assert client.show(model).modelinfo["llama.block_count"] == 30
    assert client.ps().models[0].model == model
    with pytest.raises(ollama.ResponseError) as wrong:
        client.chat(model="nothing", messages=HELLO)
    assert wrong.value.status_code == 404
    assert "not found" in wrong.value.error


def test_anthropic(real: Running) -> None:
    import anthropic

    tool: Any = {"name": "get_weather", "description": "Weather", "input_schema": CITY}
    with anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0) as client:
        ask: Any = {"model": "m", "max_tokens": 16, "messages": HELLO, "extra_body": {"temperature": 0}}
        whole = client.messages.create(**ask, system="Be brief.")
        assert whole.content[0].text  # type: ignore[union-attr]
        with client.messages.stream(**ask, system="Be brief.") as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == whole.content[0].text  # type: ignore[union-attr]
        assert final.usage.output_tokens == whole.usage.output_tokens
        assert client.messages.count_tokens(model="m", messages=HELLO).input_tokens > 5
        ask |= {"max_tokens": 100, "messages": PARIS, "tools": [tool]}
        with client.messages.stream(**ask, tool_choice={"type": "any"}) as stream:
            called = stream.get_final_message()
        assert called.stop_reason == "tool_use"
        (block,) = called.content
        assert block.input["city"]  # type: ignore[union-attr,index]
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}  # type: ignore[union-attr]
        messages = [*PARIS, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(**{**ask, "messages": messages, "max_tokens": 16}).content
        with pytest.raises(anthropic.BadRequestError) as wrong:
            client.messages.create(**{**ask, "messages": []})
        assert wrong.value.status_code == 400


def test_langchain(real: Running) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    here: Any = {"base_url": f"{real.url}/v1", "api_key": "none", "model": "m"}
    chat: Any = ChatOpenAI(**here, temperature=0, max_tokens=100)
    whole = chat.invoke("Say hello.")
    assert "".join(chunk.content for chunk in chat.stream("Say hello.")) == whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    called = chat.bind_tools([WEATHER], tool_choice="required").invoke("What is the weather in Paris?")
    assert called.tool_calls[0]["name"] == "get_weather"
    person = {**SCHEMA, "title": "Person", "description": "A person"}
    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(person, method=method).invoke("Describe a person.")
        assert set(found) == {"name", "age"}
    texts: Any = OpenAIEmbeddings(
        base_url=f"{real.url}/v1", api_key="none", model="m", check_embedding_ctx_length=False
    )
    assert len(texts.embed_query("a cat")) == 576


def test_llm(real: Running, tmp_path: Path) -> None:
    """simonw's llm, as a command, with the server as one of its extra OpenAI models."""
    command = shutil.which("llm") or str(Path(os.sys.executable).parent / "llm")  # type: ignore[attr-defined]
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: m\n  api_base: {real.url}/v1\n  api_key_name: none\n"
        "  supports_schema: true\n  supports_tools: true\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}

    def run(*arguments: str) -> str:
        done = subprocess.run([command, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    fixed = ("-m", "here", "--key", "none", "-o", "temperature", "0", "-o", "max_tokens", "120")
    streamed, whole = run("Say hello.", *fixed), run("Say hello.", *fixed, "--no-stream")
    assert streamed == whole != "\n"
    assert run("And again.", *fixed, "-c")
    check_person(run("Describe a person.", *fixed, "--schema", json.dumps(SCHEMA)))


def test_openai_in_node(real: Running, tmp_path: Path) -> None:
    """The Node client, where npm and its registry can be reached."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("no Node")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "openai@6"]
    got = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    if got.returncode != 0:
        pytest.skip(f"npm: {got.stderr[-200:]}")
    program = tmp_path / "session.mjs"
    program.write_text(Path(__file__).with_name("openai_session.mjs").read_text())
    done = subprocess.run(
        [node, str(program), f"{real.url}/v1"], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("done")
