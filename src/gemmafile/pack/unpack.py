# Runs inside the boot code when the packages of a file are not unpacked yet: unpack() -> (cache, folder).
# Wheels are checked whole before a byte of them is used, unpacked into a folder of another name, sealed, and renamed.
# One process of those that start at once does it; a lock that the system drops with its holder keeps the others waiting.
import contextlib
import io
import re
import shutil
import tempfile
import time
import zipfile
import zlib  # noqa: F401  a Python without it cannot unpack: said before anything is written
from concurrent.futures import ThreadPoolExecutor

try:
    import fcntl
except ImportError:
    fcntl = None

WAIT_S = 120
KEPT, KEPT_DAYS = 6, 60
LEFT_OVER_S = 3600
SKIPPED = re.compile(r"(^|/)(tests?|testing/_private/extbuild)/|\.(pyi|h|a|c|cpp|pyx|pxd)$|^numpy/(f2py|distutils)/")


def safe(name):
    """The name of a file below the folder. Refused: whatever could lead out of it, on any system."""
    parts = name.split("/")
    odd = name.startswith("/") or any(c in name for c in "\\:\0") or any(p in ("", ".", "..") for p in parts)
    reserved = any(re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", p) or p != p.rstrip(" .") for p in parts)
    if odd or reserved:
        die("%s: unsafe name in a package: %r" % (SELF, name))
    return name


def files_of(wheel):
    """(place in the folder, entry) of what a wheel installs."""
    for entry in wheel.infolist():
        name = entry.filename
        if name.endswith("/"):
            continue
        if (entry.external_attr >> 16) & 0o170000 == 0o120000:
            die("%s: a link in a package: %r" % (SELF, name))
        top, _, rest = name.partition("/")
        if top.endswith(".data"):
            kind, _, name = rest.partition("/")
            if kind not in ("purelib", "platlib"):
                continue
        if not SKIPPED.search(name):
            yield safe(name), entry


def write_all(wheels, jobs, folder):
    seal = {}
    opened = [zipfile.ZipFile(io.BytesIO(raw)) for raw in wheels]
    for number, name, entry in jobs:
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        with open(target, "xb") as out:
            out.write(opened[number].read(entry))
        seal[name] = mark(os.stat(target))
    return seal


def fill(folder):
    """All packages into a new folder, the seal last."""
    wheels = [read(*INDEX["members"][member], member) for member in ENVIRONMENT["members"]]
    jobs = []
    for number, raw in enumerate(wheels):
        try:
            jobs += [(number, name, entry) for name, entry in files_of(zipfile.ZipFile(io.BytesIO(raw)))]
        except zipfile.BadZipFile as error:
            die("%s: %s is no wheel: %s" % (SELF, ENVIRONMENT["members"][number], error))
    jobs.sort(key=lambda job: -job[2].file_size)
    seal = {}
    with ThreadPoolExecutor(2) as pool:
        for part in pool.map(lambda i: write_all(wheels, jobs[i::2], folder), range(2)):
            seal.update(part)
    with open(folder + "/used", "xb"):
        pass
    with open(folder + "/seal.json", "x") as out:
        json.dump(seal, out)


def lock_file(path):
    """A lock that goes with its holder; where the file system has none, the rename decides alone."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600)
    end = time.monotonic() + WAIT_S
    while fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        except OSError:
            break
    return handle


def unpack_into(cache):
    folder = cache + "/" + NAME
    os.makedirs(cache, mode=0o700, exist_ok=True)
    if not is_ours(cache):
        raise PermissionError("it belongs to, or may be written by, somebody else")
    if hasattr(os, "ST_NOEXEC") and os.statvfs(cache).f_flag & os.ST_NOEXEC:
        raise PermissionError("programs may not run from there")
    handle = lock_file(folder + ".lock")
    try:
        if os.path.isdir(folder):
            if is_ours(folder) and is_whole(folder):
                return folder
            os.rename(folder, tempfile.mkdtemp(prefix=NAME + ".old-", dir=cache))
        sweep(cache)
        if not WORDS or sys.stderr is not None and sys.stderr.isatty():
            say_unpacking()
        fresh = tempfile.mkdtemp(prefix=NAME + ".tmp-", dir=cache)
        try:
            fill(fresh)
            os.rename(fresh, folder)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not (is_ours(folder) and is_whole(folder)):
                raise
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return folder
    finally:
        os.close(handle)


def say_unpacking():
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write("gemmafile: unpacking (first start only)\n")


def sweep(cache):
    """What dead processes left behind, and what was not used for long. Only while the lock is held."""
    entries = [entry for entry in os.scandir(cache) if re.match(r"(env|rt)-[0-9a-f]{16}", entry.name)]
    for entry in entries:
        if entry.name.startswith(NAME + ".") and not entry.name.endswith(".lock") or is_left_over(entry):
            shutil.rmtree(entry.path, ignore_errors=True)
    whole = [entry for entry in entries if re.fullmatch(r"(env|rt)-[0-9a-f]{16}", entry.name)]
    for kind in ("env-", "rt-"):
        by_use = sorted((used(entry.path), entry.path) for entry in whole if entry.name.startswith(kind))
        old = time.time() - KEPT_DAYS * 86400
        for when, path in by_use[:-KEPT] + [pair for pair in by_use[-KEPT:] if pair[0] < old]:
            if os.path.basename(path) != NAME and path != os.path.dirname(os.path.dirname(sys.executable)):
                forget(path)


def is_left_over(entry):
    """Did a process that unpacked another file's packages or Python die of it long ago?"""
    try:
        made = entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return False
    return re.match(r"(env|rt)-[0-9a-f]{16}\.(tmp|old)", entry.name) is not None and made < time.time() - LEFT_OVER_S


def used(path):
    try:
        status = os.stat(path + "/used")
        return max(status.st_mtime, status.st_ctime)  # a runtime's file is dated 2001 until it is first used
    except OSError:
        return 0.0


def forget(path):
    """Remove a folder that nobody holds."""
    try:
        held = os.open(path + "/used", os.O_RDONLY)
    except OSError:
        held = None
    try:
        if fcntl is not None and held is not None:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        away = tempfile.mkdtemp(prefix=os.path.basename(path) + ".old-", dir=os.path.dirname(path))
        os.rename(path, away)
        shutil.rmtree(away, ignore_errors=True)
    except OSError:
        pass
    finally:
        if held is not None:
            os.close(held)


def unpack():
    tried = []
    for cache in private_places() if PRIVATE else PLACES:
        try:
            return cache, unpack_into(cache)  # or finds it there
        except OSError as error:
            tried.append("%s (%s)" % (cache, error.strerror or error))
    what = "%d MB): tried %s" % (ENVIRONMENT["unpacked_mb"], "; ".join(tried) or "nothing")
    if PRIVATE:
        die("--private unpacks in memory only, and there is no place for the packages of this file (%s. Started once"
            " without it, the file is unpacked" % what)
    die("no place to unpack the packages of this file (%s. GEMMAFILE_CACHE names a folder of your own that has room and"
        " lets programs run" % what)


def private_places():
    """Folders in memory for this start alone, gone when it ends."""
    if os.path.basename(CACHE).startswith("private-"):
        yield CACHE
        return
    for base in memory_places():
        with contextlib.suppress(OSError):
            os.makedirs(base, mode=0o700, exist_ok=True)
            if is_ours(base):
                place = "%s/private-%d-%d" % (base, os.getpid(), time.time_ns())
                leave_nothing(place)
                yield place
