"""Models from the Hugging Face hub: `owner/repo`, `owner/repo:QUANT`, downloaded into the hub's own cache.

huggingface-hub does the downloading: it resumes, shares its cache with transformers, and knows tokens (HF_TOKEN, `hf
auth login`), other endpoints (HF_ENDPOINT) and HF_HUB_OFFLINE. What it has fetched is held against the hub's SHA-256
here. Of a repository with safetensors the checkpoint is taken, without its pickles; of one with GGUF files the one
that is asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gemmafile.errors import BadFile, BadSettings, GemmafileError, nearest

_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
_FORMAT: Final = re.compile(r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|MXFP4\w*)", re.IGNORECASE)
CHECKPOINT_FILES: Final = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    *("chat_template.*", "additional_chat_templates/*", "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)
PREFERRED: Final = "Q6_K"
"""Taken where a repository has several GGUFs and none was asked for, if it is there: the best all round."""


def split_hub_name(name: str) -> tuple[str, str | None] | None:
    """("owner/repo", "Q6_K" or None) for a name that could be one of the hub's; None for others."""
    repo, _, quant = name.removeprefix("hf:").removeprefix("hf.co/").partition(":")
    if not _NAME.fullmatch(repo) or ".." in repo or repo.startswith((".", "-")):
        return None
    return repo, quant or None


def pull_model(
    name: str, revision: str | None = None, folder: Path | None = None, *, file: str | None = None,
    quiet: bool = False, verify: bool = True, say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Download what `name` means; the path to open: a checkpoint's folder, or a GGUF (of a split one the first part).

    folder  where the files are to lie; None: the hub's cache · verify  hold new files against the hub's SHA-256
    file    the GGUF to take, by its path in the repository
    Raises BadSettings for a name or a choice that cannot be, GemmafileError for what the hub or the net does not give.
    """
    parts = split_hub_name(name)
    if parts is None:
        raise BadSettings(f"{name!r} is no name of the hub's: expected OWNER/REPO or OWNER/REPO:QUANT")
    hub = _import_hub()
    repo, quant = parts
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    with _explained(hub, repo, offline=offline):
        if offline:
            return _find_cached(hub, repo, revision, quant, folder, file)
        api = hub.HfApi(endpoint=_endpoint())
        info = api.model_info(repo, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file for file in info.siblings or []}
        wanted = choose_files(repo, list(sizes), quant) if file is None else parts_of(repo, list(sizes), file)
        started = time.time()
        total = sum(sizes[path].size or 0 for path in wanted)
        say(f"{repo}: {len(wanted)} files, {total / 1e6:,.1f} MB")
        missing = [path for path in wanted if not _is_here(hub, repo, info.sha, path, folder, sizes[path].size)]
        _check_room(hub, folder, sum(sizes[path].size or 0 for path in missing))
        root = Path(_download(hub, repo, revision, wanted, folder, quiet=quiet))
    for path in wanted:
        digest = sizes[path].lfs.sha256 if sizes[path].lfs else None
        if verify and digest is not None:
            _check_digest(root / path, digest, started - 2)
    return _find_door(root, wanted)


def choose_files(repo: str, files: list[str], quant: str | None) -> list[str]:
    """The files of a repository to fetch. Raises BadSettings where there is nothing to be had, or several choices."""
    ggufs = [path for path in files if path.lower().endswith(".gguf") and "mmproj" not in path.lower()]
    if quant is not None:
        found = [path for path in ggufs if quant.lower() in _formats_of(path)]
        if not found:
            known = sorted({fmt.upper() for path in ggufs for fmt in _formats_of(path)})
            have = (
                f"it has {', '.join(known)}" if known else "it has no GGUF files: leave out the part behind the colon"
            )
            raise BadSettings(f"{repo} has no {quant}{nearest(quant.upper(), known)}; {have}")
        return _one_model(repo, found)
    if any(path.endswith(".safetensors") and "/" not in path for path in files):
        return [path for path in files if _is_checkpoint_file(path)]
    if not ggufs:
        if any(path.endswith((".bin", ".pt", ".pth")) for path in files):
            raise BadSettings(f"{repo} has its weights as pickles only, which are never loaded: they can run any code")
        raise BadSettings(f"{repo} has neither safetensors nor GGUF files")
    if len({_PART.sub("", path) for path in ggufs}) == 1:
        return sorted(ggufs)
    best = [path for path in ggufs if PREFERRED.lower() in _formats_of(path)]
    if best:
        return _one_model(repo, best)
    known = sorted({fmt.upper() for path in ggufs for fmt in _formats_of(path)})
    raise BadSettings(f"{repo} has several models: say which, {repo}:QUANT, with one of {', '.join(known)}")


def parts_of(repo: str, files: list[str], file: str) -> list[str]:
    """A GGUF of a repository by its path, with its other parts where it is one. Raises BadSettings."""
    if file not in files or not file.lower().endswith(".gguf"):
        ggufs = [path for path in files if path.lower().endswith(".gguf")]
        raise BadSettings(f"{repo} has no {file}{nearest(file, ggufs)}; it has {', '.join(ggufs) or 'no GGUF files'}")
    return sorted(path for path in files if _PART.sub("", path) == _PART.sub("", file))


def _formats_of(path: str) -> set[str]:
    """The quantisation in a file's name, in small letters: the last part that looks like one."""
    words = re.split(r"[-./]", _PART.sub("", path)[: -len(".gguf")])
    return {word.lower() for word in [w for w in words if _FORMAT.fullmatch(w)][-1:]}


def _one_model(repo: str, found: list[str]) -> list[str]:
    models = sorted({_PART.sub("", path) for path in found})
    if len(models) > 1:
        raise BadSettings(f"{repo} has several of that kind: {', '.join(models)}")
    return sorted(found)


def _is_checkpoint_file(path: str) -> bool:
    from fnmatch import fnmatch

    return any(fnmatch(path, pattern) for pattern in CHECKPOINT_FILES) and (
        "/" not in path or path.startswith("additional_chat_templates/")
    )


def _find_door(root: Path, files: list[str]) -> Path:
    ggufs = [path for path in files if path.lower().endswith(".gguf")]
    return root / min(ggufs) if ggufs else root


# --- the hub's library ------------------------------------------------------------------------------------------------


def _import_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        what = "models are fetched by huggingface-hub, which is not installed: pip install 'gemmafile[hf]'"
        raise BadSettings(what) from None
    return huggingface_hub


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _cache() -> str | None:
    """Read anew each time: the library reads the environment when it is imported."""
    home = os.environ.get("HF_HOME")
    return os.environ.get("HF_HUB_CACHE") or (str(Path(home) / "hub") if home else None)


def _download(hub: Any, repo: str, revision: str | None, files: list[str], folder: Path | None, *, quiet: bool) -> str:
    place = {"local_dir": str(folder)} if folder is not None else {"cache_dir": _cache()}
    if quiet:
        hub.utils.disable_progress_bars()
    try:
        root: str = hub.snapshot_download(
            repo, revision=revision, allow_patterns=[_escape(path) for path in files], endpoint=_endpoint(), **place
        )
    finally:
        if quiet:
            hub.utils.enable_progress_bars()
    return root


def _escape(path: str) -> str:
    import glob

    return glob.escape(path)


def _find_cached(
    hub: Any, repo: str, revision: str | None, quant: str | None, folder: Path | None, file: str | None
) -> Path:
    place = {"local_dir": str(folder)} if folder is not None else {"cache_dir": _cache()}
    patterns = (
        list(CHECKPOINT_FILES) if quant is None and file is None else ["README.md"]
    )  # the library misses what others left out
    root = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=patterns, **place))
    files = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
    files = [path for path in files if not path.startswith(".cache")]
    wanted = choose_files(repo, files, quant) if file is None else parts_of(repo, files, file)
    return _find_door(root, wanted)


def _is_here(hub: Any, repo: str, commit: str, path: str, folder: Path | None, size: int | None) -> bool:
    """Was a file fetched before? Then it takes no room any more."""
    if folder is not None:
        return (folder / path).is_file() and (folder / path).stat().st_size == size
    found = hub.try_to_load_from_cache(repo, path, cache_dir=_cache(), revision=commit)
    return isinstance(found, str)


def _check_room(hub: Any, folder: Path | None, n_bytes: int) -> None:
    import shutil

    place = folder or Path(_cache() or hub.constants.HF_HUB_CACHE)
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise GemmafileError(f"{n_bytes / 1e6:,.0f} MB are needed, and {place} has {free / 1e6:,.0f} MB left")


def _check_digest(path: Path, digest: str, since_s: float) -> None:
    """Hold a new file against its SHA-256; one that is not what it should be is removed. Raises BadFile."""
    real = path.resolve()
    if real.stat().st_mtime < since_s:
        return  # was there before, and was checked when it came
    found = hashlib.sha256()
    with real.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    if found.hexdigest() != digest:
        real.unlink()
        if path.is_symlink():
            path.unlink()
        raise BadFile(path, f"has SHA-256 {found.hexdigest()[:16]}..., the hub says {digest[:16]}...: fetch it again")


@contextmanager
def _explained(hub: Any, repo: str, *, offline: bool) -> Iterator[None]:
    """The hub's errors in a line that says what to do."""
    errors = hub.errors
    place = f"{_endpoint() or 'https://huggingface.co'}/{repo}"
    token = "HF_TOKEN=hf_... (a token with read access, from the settings of your account)"
    try:
        yield
    except errors.GatedRepoError as error:
        has_token = bool(os.environ.get("HF_TOKEN") or hub.get_token())
        todo = "the token given has no access yet" if has_token else f"then set {token}"
        raise GemmafileError(f"{repo} is gated: accept its terms at {place}, {todo}") from error
    except errors.RevisionNotFoundError as error:
        raise BadSettings(f"{repo} has no such revision; see {place}") from error
    except errors.RepositoryNotFoundError as error:
        raise BadSettings(f"the hub has no {repo}, or it is private: for a private one set {token}") from error
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise GemmafileError(f"{repo} is not in the cache, and HF_HUB_OFFLINE is set") from error
        raise GemmafileError(f"{repo} could not be fetched: {_first_line(error)}; run again to resume") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise GemmafileError(f"{repo} could not be fetched: {_first_line(error)}; run again to resume") from error
    except Exception as error:  # what the library's own client raises differs from release to release
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3", "hf_xet")):
            raise
        raise GemmafileError(f"{repo} could not be fetched: {_first_line(error)}; run again to resume") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
