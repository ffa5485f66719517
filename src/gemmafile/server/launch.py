"""Starting a server: the model's facts, the engine's process, a socket, uvicorn."""

from __future__ import annotations

import math
import socket
from typing import Any

from gemmafile.errors import BadSettings
from gemmafile.server.client import EngineClient
from gemmafile.server.door import Door, ModelFacts
from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, ServeSettings, changed


def open_door(
    path: str,
    settings: ServeSettings,
    context: ContextSettings,
    run: RunSettings | None = None,
    sampling: SamplingSettings | None = None,
    template: str | None = None,
    say: Any = lambda line: None,
) -> Door:
    """The door of a model, and its client, not started yet. Inside an event loop.

    Raises BadFile or UnsupportedModel for the file.
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
    return Door(client, tokenizer, model, settings, sampling or SamplingSettings(), run, template)


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket: on `port`, or, where None is given, on 8080 or the next one that is free.

    Raises BadSettings when there is no such address, or the port is taken.
    """
    wanted = range(8080, 8180) if port is None else [port]
    for number in wanted:
        try:
            return _listen(host, number)
        except OSError as error:
            if number == wanted[-1]:
                raise BadSettings(f"cannot listen on {host}, port {number}: {error.strerror or error}") from None
    raise AssertionError


def _listen(host: str, port: int) -> socket.socket:
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(door: Door, listener: socket.socket) -> None:
    """Serve until a signal comes."""
    import uvicorn

    from gemmafile.server.app import create_app

    config = uvicorn.Config(
        create_app(door), http="h11", loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
        timeout_keep_alive=door.settings.keep_alive,
        timeout_graceful_shutdown=math.ceil(door.settings.stop_timeout),
    )  # fmt: skip
    server = uvicorn.Server(config)
    door.stopping = lambda: setattr(server, "should_exit", True)
    await door.client.start()
    try:
        await server.serve(sockets=[listener])
    finally:
        await door.client.stop()
