# The boot code of a packed file: the first Python that runs, by any Python from 3.11 on, without site-packages.
# The head has checked its hash. It checks the index, finds the unpacked packages or has them unpacked, and starts the
# program. Given: f the open file, I = (offset, bytes, SHA-256) of the index, sys.argv = ['-c', FILE, CACHE, words...]
import json
import os
import stat

LOW = [f]
while LOW[-1].fileno() < 3:  # a standard stream was closed: its number must not become ours, nor anybody else's
    LOW.append(os.fdopen(os.dup(LOW[-1].fileno()), "rb"))
f = LOW[-1]
SELF, CACHE, WORDS = sys.argv[1], sys.argv[2], sys.argv[3:]
sha256 = __import__("_sha2" if sys.version_info >= (3, 12) else "_sha256").sha256


def say_nothing_of_interrupts(kind, error, trace):
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = say_nothing_of_interrupts


def die(message, code=1):
    try:
        sys.stderr.write("gemmafile: " + message + "\n")
    except (AttributeError, OSError):
        pass
    sys.exit(code)


def read(offset, size, digest, what):
    """A part of the file, if it is what the index says."""
    f.seek(offset)
    raw = f.read(size)
    if sha256(raw).hexdigest() != digest:
        f.seek(0)
        if repr(I).replace(" ", "").encode() not in f.read(4096) and sys.platform != "win32":
            os.execv("/bin/sh", ["/bin/sh", SELF] + WORDS)  # it was edited since the head was read: again, then
        die("%s is damaged: %s is not what was packed" % (SELF, what))
    return raw


def platform_name():
    machine = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform.rstrip("0123456789"))
    return "%s-%s-cp%d%d" % (system, machine, sys.version_info[0], sys.version_info[1])


def is_ours(path):
    """A folder of our own that nobody else may write, in a place where nobody else may rename it."""
    if not hasattr(os, "getuid"):
        return os.path.isdir(path)
    try:
        own, above = os.lstat(path), os.stat(os.path.join(path, ".."))
    except OSError:
        return False
    open_above = above.st_mode & 0o002 and not above.st_mode & stat.S_ISVTX
    return stat.S_ISDIR(own.st_mode) and own.st_uid == os.getuid() and not own.st_mode & 0o022 and not open_above


def caches():
    """Folders to unpack into, the best first."""
    if CACHE:
        yield CACHE
    home = os.path.expanduser("~")
    places = [os.environ.get("GEMMAFILE_CACHE")]
    if sys.platform == "win32":
        places.append(os.path.join(os.environ.get("LOCALAPPDATA") or home, "gemmafile", "Cache"))
    elif os.path.isabs(home):
        base = os.path.join(home, "Library/Caches" if sys.platform == "darwin" else ".cache")
        places.append(os.path.join(os.environ.get("XDG_CACHE_HOME") or base, "gemmafile"))
    if hasattr(os, "getuid"):
        for base in (os.environ.get("TMPDIR") or "/tmp", "/var/tmp", "/dev/shm"):
            places.append(os.path.join(base, "gemmafile-%d" % os.getuid()))
    for place in places:
        if place and os.path.isabs(place) and place != CACHE:
            yield place


def walk(folder, prefix=""):
    """(name, stat) of all files below a folder; bytecode may come and go meanwhile."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path, name + "/")
            else:
                try:
                    yield name, entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    pass


def mark(status):
    """What changes when a file does: nobody sets the time of change back without being root."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


STRAY = []


def is_whole(folder):
    """Is every file as it was when it was unpacked and checked? Bytecode is too, or it is noted in STRAY: another start
    may be making it at this moment, or have died of it."""
    try:
        with open(folder + "/seal.json", "rb") as seal:
            sealed = json.loads(seal.read())
        STRAY[:] = []
        for name, status in walk(folder):
            if sealed.pop(name, None) != mark(status) and name not in ("used", "seal.lock"):
                if "__pycache__/" in name:
                    STRAY.append(name)
                elif not name.startswith("seal.json"):
                    return False
        return not any("__pycache__/" not in name for name in sealed)
    except (OSError, ValueError):
        return False


def keep_bytecode(folder):
    """Have Python make bytecode, if no other start is doing so, and no stray one be loaded. Returns what seals it."""
    try:
        import fcntl

        if PRIVATE:
            raise OSError
        lock = os.open(folder + "/seal.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ImportError):
        sys.dont_write_bytecode = True
        if STRAY:
            sys.pycache_prefix = os.devnull  # none at all, then
        return lambda: None
    if STRAY and is_whole(folder):
        for name in STRAY:
            try:
                os.unlink(os.path.join(folder, name))
            except OSError:
                pass
    from importlib._bootstrap_external import SourceFileLoader

    made, write = [], SourceFileLoader._cache_bytecode

    def note(loader, source, bytecode, data):
        made.append(bytecode)
        return write(loader, source, bytecode, data)

    SourceFileLoader._cache_bytecode = note

    def seal():
        """Add the bytecode made of checked sources to the list of what may be loaded."""
        sys.dont_write_bytecode = True
        try:
            if made or "subprocess" in sys.modules:  # our own children make some too
                with open(folder + "/seal.json", "rb") as old:
                    sealed = json.loads(old.read())
                known = len(sealed)
                sealed.update((name, mark(status)) for name, status in walk(folder) if name.endswith(".pyc"))
                if made or len(sealed) != known:
                    new = "%s/seal.json.%d" % (folder, os.getpid())
                    with open(new, "w") as out:
                        json.dump(sealed, out)
                    os.replace(new, folder + "/seal.json")
        except (OSError, ValueError):
            pass
        os.close(lock)

    return seal


def hold(folder):
    """Keep others from sweeping a folder while this process lives, and say when it was used."""
    try:
        held = os.open(folder + "/used", os.O_RDONLY)
        import fcntl

        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not PRIVATE and os.stat(held).st_mtime < __import__("time").time() - 86400:
            os.utime(folder + "/used")
    except (OSError, ImportError):
        pass


def memory_places():
    """Where something may lie that no disk ever sees."""
    if hasattr(os, "getuid") and sys.platform.startswith("linux"):
        places = [("/dev/shm", "gemmafile-%d" % os.getuid()), ("/run/user/%d" % os.getuid(), "gemmafile")]
        if os.path.isabs(os.environ.get("XDG_RUNTIME_DIR", "")):
            places.insert(1, (os.environ["XDG_RUNTIME_DIR"], "gemmafile"))
        yield from dict.fromkeys(os.path.join(*place) for place in places if os.path.isdir(place[0]))


def remove(folder):
    try:
        for entry in list(os.scandir(folder)):
            remove(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        os.rmdir(folder)
    except OSError:
        pass


def locked(place, how):
    """A handle of a folder with a lock on it that goes with its holders, or None."""
    import fcntl

    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
        return handle
    except OSError:
        os.close(handle)


def leave_nothing(place):
    """A folder for this start alone is removed when this process ends, however it ends: by another that waits for it,
    from before there is such a folder."""
    import atexit
    import signal
    import time

    waiting, alive = os.pipe()
    child = os.fork()
    if child:
        os.close(waiting)
        os.makedirs(place, mode=0o700, exist_ok=True)
        locked(place, 1)  # LOCK_SH, for good

        def end():
            try:
                os.close(alive)
                for _ in range(500):
                    if os.waitpid(child, os.WNOHANG)[0]:
                        break
                    time.sleep(0.01)
            except OSError:
                pass

        atexit.register(end)
        return
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        os.chdir("/")
        for number in (0, 1, 2):
            os.dup2(waiting, number)  # whoever waits for the end of our output must not wait for this
        os.closerange(3, 1 << 16)
        os.read(0, 1)
        remove(place)
        os.rmdir(os.path.dirname(place))  # if nobody else is there
    finally:
        os._exit(0)


def sweep_memory():
    """What a start left in memory that was killed together with the process that would have removed it."""
    for base in memory_places():
        try:
            names = os.listdir(base) if is_ours(base) else []
            for place, pid in [(os.path.join(base, n), n.split("-")[1]) for n in names if n.startswith("private-")]:
                age = __import__("time").time() - os.stat(place).st_mtime
                if age > (600 if is_alive(pid) else 5) and locked(place, 2) is not None:  # LOCK_EX
                    remove(place)
            os.rmdir(base)  # if nobody is there
        except (OSError, ImportError):
            pass


def is_alive(pid):
    return os.path.exists("/proc/" + pid) or not os.path.exists("/proc/self")


INDEX = json.loads(read(*I, "its index"))
INDEX["texts"] = {  # read at once: an edit may take the room of the old ones
    name: read(*INDEX["members"][name], name) for name in (".args", "system-prompt.txt") if name in INDEX["members"]
}
PRIVATE = "--private" in WORDS or INDEX.get("private", False)
sweep_memory()
if os.path.basename(CACHE).startswith("private-"):
    leave_nothing(CACHE)
PLATFORM = platform_name()
ENVIRONMENT = INDEX["environments"].get(PLATFORM)
if ENVIRONMENT is None:
    ENVIRONMENT = INDEX["environments"]["any"]
    import site

    site.main()
    try:
        import numpy  # noqa: F401
    except ImportError:
        have = ", ".join(sorted(name for name in INDEX["environments"] if name != "any")) or "none"
        die("this file has no packages for %s (it has: %s), and this Python has no NumPy" % (PLATFORM, have), 127)

NAME = "env-" + ENVIRONMENT["key"]
GIVEN = os.environ.get("GEMMAFILE_CACHE")
PLACES = list(caches())
for cache in PLACES[:1] if PLACES and PLACES[0] == GIVEN else PLACES:  # where somebody named a place, no other will do
    FOLDER = cache + "/" + NAME
    if os.path.isdir(FOLDER) and is_ours(cache) and is_ours(FOLDER) and is_whole(FOLDER):
        break
else:
    exec(compile(read(*INDEX["unpack"], "its code that unpacks"), "unpack.py", "exec"))
    cache, FOLDER = unpack()  # noqa: F821
for held in (FOLDER, os.path.dirname(os.path.dirname(sys.executable or ""))):
    if os.path.basename(held).startswith(("env-", "rt-")):
        hold(held)
sys.path[:0] = [FOLDER]
sys.argv = [SELF] + WORDS
seal = keep_bytecode(FOLDER)
from importlib import import_module  # noqa: E402

sys.exit(import_module("gemmafile.cli.packed").main(SELF, INDEX, WORDS, cache, seal))
