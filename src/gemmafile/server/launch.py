"""Starting a server: the model's facts, the engine's process, a socket, uvicorn; and ending it in good order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import math
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import urlencode

import uvicorn

from gemmafile.errors import BadFile, BadSettings, GemmafileError
from gemmafile.server import heap
from gemmafile.server.app import create_app
from gemmafile.server.client import EngineClient
from gemmafile.server.door import Door, ModelFacts
from gemmafile.server.http_protocol import MAX_HEAD_BYTES, bounded
from gemmafile.server.security import is_loopback
from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, ServeSettings, changed

Say = Callable[[str], None]

FIRST_PORT, PORTS = 8080, 100
"""Without --port: 8080, or the next of so many."""


class EngineLost(GemmafileError):
    """There is no engine any more, and there will be none."""


def open_door(
    path: str,
    settings: ServeSettings,
    context: ContextSettings,
    run: RunSettings | None = None,
    sampling: SamplingSettings | None = None,
    template: str | None = None,
    system: str | None = None,
    say: Say = lambda line: None,
) -> Door:
    """The door of a model, its client not started yet. Inside an event loop.

    Raises BadFile or UnsupportedModel for the file, BadSettings for what cannot be served so.
    """
    from gemmafile.files.open import open_model
    from gemmafile.model.config import read_config
    from gemmafile.overrides import apply_overrides
    from gemmafile.text.tokenizer import load_tokenizer

    run = run or RunSettings()
    file = open_model(path)
    apply_overrides(file, context.override_kv)
    config = read_config(file, context)
    n_params = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    model = ModelFacts(path, config, n_params, file.n_bytes, file.metadata)
    arguments = {
        "path": path, "context": changed(context), "serve": changed(settings), "unsecure": run.unsecure,
        "private": run.private, "verbose": run.verbose,
    }  # fmt: skip
    client = EngineClient(arguments, say=say)
    tokenizer = load_tokenizer(file.metadata, file.path)
    door = Door(client, tokenizer, model, settings, sampling or SamplingSettings(), run, template, system)
    door.prepare()  # what is wrong with its template or filters is said now
    return door


# --- keys and sockets ------------------------------------------------------------------------------------------------


def read_keys(settings: ServeSettings) -> list[str]:
    """The API keys that flags and files name. Raises BadFile."""
    keys = [key.strip() for text in settings.api_keys for key in text.split(",")]
    if settings.api_key_file is not None:
        try:
            text = Path(settings.api_key_file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BadFile(settings.api_key_file, f"cannot be read: {error}") from None
        keys += [line.strip() for line in text.splitlines()]
    return list(dict.fromkeys(key for key in keys if key))


def make_key() -> str:
    """A key nobody guesses: 32 characters, 192 bits."""
    return secrets.token_urlsafe(24)


def split_address(text: str) -> tuple[str, int | None]:
    """ "0.0.0.0:8080", "[::1]:80", "localhost", ":8080" -> host and port. Raises BadSettings."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon or (host.count(":") and not host.startswith("[")):
        return text or "127.0.0.1", None
    if not (port.isascii() and port.isdigit()):
        raise BadSettings(f"--listen {text!r}: expected HOST:PORT")
    return host or "127.0.0.1", int(port)


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket: on `port`, or, where None is given, on 8080 or the next one that is free.

    Raises BadSettings when there is no such address, or the port is taken.
    """
    wanted = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else range(port, port + 1)
    for number in wanted:
        try:
            return _listen(host, number)
        except OSError as error:
            if number == wanted[-1] or isinstance(error, (socket.gaierror, PermissionError)):
                raise BadSettings(f"cannot listen on {host}, port {number}: {error.strerror or error}") from None
    raise AssertionError


def _listen(host: str, port: int) -> socket.socket:
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listener = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # on Windows SO_REUSEADDR would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, settings: ServeSettings) -> str:
    """Where a browser on this machine finds the server; of all addresses, this machine's own."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1"
    elif address.version == 6:
        host = f"[{host}]"
    scheme = "https" if settings.ssl_cert_file else "http"
    return f"{scheme}://{host}:{port}{settings.prefix.rstrip('/')}/"


def url_with_key(url: str, keys: Sequence[str]) -> str:
    """The address that lets a browser in: with the first of the keys, where there are any."""
    return f"{url}?{urlencode({'key': keys[0]})}" if keys else url


# --- running ---------------------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """uvicorn's, which ends with exit code 0 after SIGTERM or ctrl-c: a server is stopped so."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def make_server(door: Door, on_error: Callable[[Exception], None] = lambda error: None) -> Server:
    """Raises BadSettings for keys and certificates that cannot be used."""
    settings = door.settings
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # the server has words of its own
    config = uvicorn.Config(
        create_app(door, on_error=on_error), http=bounded(settings.max_connections), loop="asyncio", ws="none",
        lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        timeout_keep_alive=settings.keep_alive, timeout_graceful_shutdown=math.ceil(settings.stop_timeout) + 2,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ssl_keyfile=settings.ssl_key_file, ssl_certfile=settings.ssl_cert_file,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise BadSettings(f"--ssl-key-file, --ssl-cert-file: {error.strerror or error}") from None
    return Server(config)


async def serve(
    door: Door,
    listener: socket.socket,
    on_started: Callable[[], None] | None = None,
    on_error: Callable[[Exception], None] = lambda error: None,
) -> None:
    """Serve until a signal comes, or `door.stop()`. `on_started` is called once the port answers.

    Raises EngineLost when there is no engine any more.
    """
    server = make_server(door, on_error)
    door.stopping = lambda: setattr(server, "should_exit", True)
    client = door.client
    heap.keep_few_arenas()
    await client.start()
    _spare_collector()
    beside = [asyncio.create_task(_watch(door, server, on_started)), asyncio.create_task(_rest(door, server))]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        for close in door.closers:
            close()
        await client.stop()
    if client.failure.done():
        failure = client.failure.result()
        error = EngineLost(failure.message)
        error.exit_code = failure.exit_code or 1
        raise error


async def _watch(door: Door, server: Server, on_started: Callable[[], None] | None) -> None:
    """Tell when the port answers; end the server when the engine is lost; end answers that outlast the deadline."""
    while not server.started:
        await asyncio.sleep(0.02)
    if on_started is not None:
        on_started()
    while not server.should_exit:
        await asyncio.wait({door.client.failure}, timeout=0.1)
        if door.client.failure.done():
            server.should_exit = True
    await asyncio.sleep(door.settings.stop_timeout)
    door.client.fail_jobs(503, "the server is being stopped")


async def _rest(door: Door, server: Server) -> None:
    """Once nobody has asked for heap.REST_S: get warm, the first time; and give back what a busy time left."""
    n_rested, quiet_s = -1, 0.0
    while True:
        await asyncio.sleep(0.25)
        state = server.server_state
        is_quiet = door.client.state == "ready" and not (state.tasks or door.client.jobs)
        quiet_s = quiet_s + 0.25 if is_quiet else 0.0
        if quiet_s >= heap.REST_S and n_rested != state.total_requests:
            if n_rested < 0:
                await asyncio.to_thread(door.warm_up)
            n_rested, quiet_s = state.total_requests, 0.0
            await asyncio.to_thread(heap.give_back)


def _spare_collector() -> None:
    """What is there now stays: the collector need not look at a tokenizer's million objects again and again."""
    gc.collect()
    gc.freeze()


def run_server(
    path: str,
    settings: ServeSettings,
    context: ContextSettings,
    run: RunSettings,
    sampling: SamplingSettings,
    template: str | None,
    system: str | None,
    say: Say,
    on_ready: Callable[[], None] | None = None,
    show_traces: bool = False,
) -> None:
    """Serve a model until a signal ends it. `say` gets the lines a user should see. Raises GemmafileError."""
    from dataclasses import replace

    from gemmafile.server.browser import has_browser, open_browser
    from gemmafile.server.door import check_serve_settings

    if settings.listen is not None:
        host, port = split_address(settings.listen)
        settings = replace(settings, host=host, port=port if port is not None else settings.port)
    check_serve_settings(settings)
    keys = read_keys(settings)
    is_open = not is_loopback(settings.host)
    made = make_key() if is_open and not keys else None
    settings = replace(settings, api_keys=keys or ([made] if made else []))

    async def work() -> None:
        door = open_door(path, settings, context, run, sampling, template, system, say)
        listener = bind(settings.host, settings.port)
        port = listener.getsockname()[1]
        if settings.port is None and port != FIRST_PORT:
            say(f"port {FIRST_PORT} is taken: this is {port}")
        url = url_of(listener, settings)

        def on_started() -> None:
            say(f"serving {door.model_name} at {url}")
            if made is not None:
                say(f"others can reach this server: every request needs the API key {made}")
                say(f"in a browser: {url}?key={made}")
            if settings.browser and settings.webui and has_browser():
                open_browser(url_with_key(url, settings.api_keys))

        async def tell_ready() -> None:
            await door.client.ready.wait()
            if on_ready is not None:
                on_ready()
            info = door.client.info
            if info is not None and run.verbose:
                say(f"ready: context {info.n_ctx}, {info.n_slots} answers at a time, {info.threads} threads")

        telling = asyncio.create_task(tell_ready())

        def on_error(error: Exception) -> None:
            _report(error, say, show_traces)

        try:
            await serve(door, listener, on_started, on_error)
        finally:
            telling.cancel()

    asyncio.run(work())


def _report(error: Exception, say: Say, show_traces: bool) -> None:
    """A bug met while a request was answered: the server goes on."""
    say(f"this is a bug in gemmafile: {type(error).__name__}: {error} (--verbose shows where)")
    if show_traces:
        import traceback

        say("".join(traceback.format_exception(error)))
