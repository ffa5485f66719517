"""ed25519 signatures of a manifest, by OpenSSL: the library that Python's hashlib brings along, called through ctypes.

Keys are PEM files as `openssl genpkey -algorithm ed25519` writes them; the signature is 64 bytes over the manifest's
bytes (RFC 8032), so that stock tools check it too: see docs/format.md.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

from gemmafile.errors import BackendUnavailable, BadFile

_ED25519 = 1087
_SPKI = bytes.fromhex("302a300506032b6570032100")
"""What stands before the 32 bytes of a public key in its DER form (RFC 8410)."""

SIGNATURE_BYTES = 64


@cache
def _library() -> Any:
    """libcrypto. Raises BackendUnavailable where there is none."""
    here = Path(sys.prefix) / "lib"
    names = [str(path) for pattern in ("libcrypto.so*", "libcrypto*.dylib") for path in sorted(here.glob(pattern))]
    names += ["libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib", "libcrypto-3-x64.dll", "libcrypto-3.dll"]
    for name in names:
        try:
            library: Any = ctypes.CDLL(name)
            library.EVP_PKEY_new_raw_public_key.restype = ctypes.c_void_p
        except (OSError, AttributeError):
            continue
        for function in ("EVP_MD_CTX_new", "BIO_new_mem_buf", "PEM_read_bio_PrivateKey"):
            getattr(library, function).restype = ctypes.c_void_p
        return library
    raise BackendUnavailable("signatures need OpenSSL's libcrypto 1.1.1 or newer, which was not found here")


class Signer:
    """A private key. `public_pem` the public key that belongs to it. Raises BadFile for a file that is no such key."""

    def __init__(self, path: Path):
        try:
            pem = path.read_bytes()
        except OSError as error:
            raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
        library = _library()
        bio = library.BIO_new_mem_buf(pem, len(pem))
        key = library.PEM_read_bio_PrivateKey(ctypes.c_void_p(bio), None, None, ctypes.c_char_p(b""))
        library.BIO_free(ctypes.c_void_p(bio))
        raw, size = ctypes.create_string_buffer(32), ctypes.c_size_t(32)
        if not key or library.EVP_PKEY_get_raw_public_key(ctypes.c_void_p(key), raw, ctypes.byref(size)) != 1:
            raise BadFile(path, "is no ed25519 private key without a passphrase (openssl genpkey -algorithm ed25519)")
        self._key, self.public_pem = key, to_pem(raw.raw)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        library = _library()
        context = ctypes.c_void_p(library.EVP_MD_CTX_new())
        out, size = ctypes.create_string_buffer(SIGNATURE_BYTES), ctypes.c_size_t(SIGNATURE_BYTES)
        good = library.EVP_DigestSignInit(context, None, None, None, ctypes.c_void_p(self._key)) == 1
        good = (
            good
            and library.EVP_DigestSign(context, out, ctypes.byref(size), message, ctypes.c_size_t(len(message))) == 1
        )
        library.EVP_MD_CTX_free(context)
        if not good:
            raise BackendUnavailable("OpenSSL could not sign")
        return out.raw


def is_signed_by(public_pem: bytes, signature: bytes, message: bytes) -> bool:
    """Did the holder of this key sign these bytes? Raises BadFile for what is no key, BackendUnavailable."""
    library = _library()
    raw = from_pem(public_pem)
    if len(signature) != SIGNATURE_BYTES:
        return False
    key = library.EVP_PKEY_new_raw_public_key(_ED25519, None, raw, ctypes.c_size_t(32))
    if not key:
        return False
    context = ctypes.c_void_p(library.EVP_MD_CTX_new())
    good = library.EVP_DigestVerifyInit(context, None, None, None, ctypes.c_void_p(key)) == 1
    good = good and (
        library.EVP_DigestVerify(
            context, signature, ctypes.c_size_t(len(signature)), message, ctypes.c_size_t(len(message))
        )
        == 1
    )
    library.EVP_MD_CTX_free(context)
    library.EVP_PKEY_free(ctypes.c_void_p(key))
    return bool(good)


def to_pem(raw: bytes) -> bytes:
    """A public key's 32 bytes as PEM."""
    body = base64.b64encode(_SPKI + raw).decode()
    return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n".encode()


def from_pem(pem: bytes) -> bytes:
    """The 32 bytes. Raises BadFile."""
    try:
        lines = [line for line in pem.decode("ascii").split("\n") if line and not line.startswith("-----")]
        der = base64.b64decode("".join(lines), validate=True)
    except ValueError:
        der = b""
    if len(der) != 44 or not der.startswith(_SPKI):
        raise BadFile("public key", "is no ed25519 public key in PEM form")
    return der[12:]


def fingerprint(pem: bytes) -> str:
    """What people compare: SHA-256 of the key's DER form, as `openssl pkey -pubin -outform DER | sha256sum` says it."""
    return hashlib.sha256(_SPKI + from_pem(pem)).hexdigest()
