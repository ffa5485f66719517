"""What is known to go wrong with models in one file, whether it does on this machine, and what to do here.

Next to read: doctor.py, which asks the machine and prints this.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

Gotcha = dict[str, str]
"""`gotcha` what goes wrong · `here`  "no", "yes", "maybe" or "unknown" · `fix` what to do, on this machine"""

_BINFMT = Path("/proc/sys/fs/binfmt_misc")


def gotchas(report: dict[str, Any], path: Path | None) -> list[Gotcha]:
    """All of them, for a report of doctor.py's and the file that it is about."""
    name = f"./{path.name}" if path else "./FILE.llamafile"
    found = [*_starting(report, path, name), *_room(report), *_answers(report, name), *_server(name), *_trust(name)]
    return [{"gotcha": what, "here": here, "fix": fix} for what, here, fix in found]


Row = tuple[str, str, str]


def _starting(report: dict[str, Any], path: Path | None, name: str) -> list[Row]:
    system = report["here"]["system"]
    takers = ", ".join(binfmt_handlers())
    taken = f"; binfmt_misc has {takers}, none of which is for such files" if takers else ""
    state, fix = _executable(path, name)
    return [
        ("will not start: exec format error; Wine, binfmt_misc, old shells or a subprocess in the way", "no",
         f"it begins with #!, so the kernel starts /bin/sh{taken}; where a tool insists on its own way: sh {name}"),
        ("will not start: no permission", state, fix),
        ("Windows refuses programs over 4 GB", "yes" if system == "Windows" else "no",
         f"rename it to NAME.cmd, or: py {name}" if system == "Windows" else "this is not Windows; there: NAME.cmd"),
        ("antivirus, Gatekeeper, quarantine", "maybe" if system in ("Windows", "Darwin") else "no",
         f"xattr -d com.apple.quarantine {name}" if system == "Darwin"
         else f"the head is text and the rest an ordinary ZIP, nothing is packed or hidden: {name} --verify"),
    ]  # fmt: skip


def binfmt_handlers() -> list[str]:
    """Names of what is registered in Linux's binfmt_misc to start files by their first bytes."""
    try:
        return sorted(p.name for p in _BINFMT.iterdir() if p.name not in ("register", "status"))
    except OSError:
        return []


def _executable(path: Path | None, name: str) -> tuple[str, str]:
    """May the file be started where it lies?"""
    if path is None or os.name != "posix" or not path.exists():
        return "unknown", f"chmod +x {name}, or: sh {name}"
    if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
        return "yes", f"programs may not run from {path.absolute().parent} (noexec): sh {name}, or move it"
    if path.suffix != ".gguf" and not os.access(path, os.X_OK):
        return "yes", f"chmod +x {name}"
    return "no", f"it may be started where it lies; elsewhere: chmod +x {name}, or: sh {name}"


def _room(report: dict[str, Any]) -> list[Row]:
    cache, model = report["cache"], report.get("model")
    needs = ""
    if model is not None:
        needs = f"{(model['weights_bytes'] + model['cache_bytes']) / 1e9:.1f} GB with the whole context; "
    return [
        ("the cache folder does not let programs run (noexec)", "yes" if cache.get("noexec") else "no",
         "GEMMAFILE_CACHE=/a/folder/that/does; others are tried by themselves"),
        ("no room for what is unpacked", "yes" if cache.get("free_bytes", 1 << 40) < 150_000_000 else "no",
         f"free 150 MB in {cache['folder']}, or set GEMMAFILE_CACHE"),
        ("weights larger than memory", "unknown" if model is None else "no" if model["fits"] else "yes",
         f"{needs}-c 2048 takes less; weights are mapped, and read from disk again and again where they do not fit"),
    ]  # fmt: skip


def _answers(report: dict[str, Any], name: str) -> list[Row]:
    kernels, own = report["kernels"], report["here"]
    return [
        ("the GPU is not used: NVIDIA, AMD, Intel, Vulkan, Metal", "yes", report["gpu"] + ", and says so for -ngl"),
        ("old CPU: AVX required, illegal instruction", "no" if kernels["compiled"] else "yes",
         f"here: {kernels['tier']}; what the CPU lacks is never executed"),
        ("slower than expected", "no" if kernels["compiled"] else "yes",
         f"{own['cores']} cores here, all of them used (-t N); gemmafile bench {name}: what this machine could do"),
        ("context too short or silently cut", "no",
         "the model's maximum by default, as far as memory goes; -c N; the server refuses longer ones, with counts"),
        ("wrong prompt template, stop tokens in the answer", "no",
         "the model's own is used; --chat-template names another"),
        ("Gemma 2 comes out wrong (soft caps, window, query scale)", "no",
         "tested against transformers; --backend reference computes the same slowly, to compare"),
        ("system prompt refused, roles must alternate", "no",
         "--system-policy: merge (into the first message, the default), user-turn, error, system-turn"),
        ("functions: calls that are no JSON", "no", "the server's tools follow a grammar: a call is well formed"),
        ("embeddings wrong or zero", "no", "the server's; --pooling mean, cls or last where the model does not say"),
    ]  # fmt: skip


def _server(name: str) -> list[Row]:
    return [
        ("the server hangs, slots busy, a client is gone", "no",
         "who leaves ends its answer; --max-tokens, --max-seconds and --max-queue bound the rest; ctrl-c ends it"),
        ("open to the network by mistake", "no",
         "it listens on this machine alone; --host 0.0.0.0 asks for an API key, and makes one; --ssl-cert-file"),
        ("runs as a service, in a container", "no",
         f"gemmafile service {name} prints a unit; /health answers while it loads; caches are whole or not there"),
        ("chat history: saved, exported", "no", "/save chat.md in the terminal; the page keeps and exports its chats"),
    ]  # fmt: skip


def _trust(name: str) -> list[Row]:
    return [
        ("engine out of date, and the file so large", "no",
         f"gemmafile edit {name} --engine: the installed engine in seconds, the weights stay"),
        ("who made this file, is it whole", "no", f"{name} --inspect, --verify; gemmafile verify {name} --key PEM"),
        ("noise on stdout", "no", "stdout is the answer alone; --log-disable for stderr too"),
        ("traces left behind", "no", "--private: no history, nothing written"),
    ]  # fmt: skip
