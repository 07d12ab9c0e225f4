"""Signed bundles: a manifest's Ed25519 signature, checked before anything in it is believed.

The manifest lists every file of the bundle with its SHA-256, so one signature covers them all.
"""

from __future__ import annotations

import base64
import getpass
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BundleError, OutputError
from ..system.files import read_bytes, read_text
from ..system.optional import import_optional
from ..system.staging import staged_file
from .names import MANIFEST

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE_SUFFIX = ".sig"  # after the manifest's name
#: Names the file of public keys of which one must have signed every bundle that is loaded.
REQUIRED_BY = "PARAMORPH_REQUIRE_SIGNATURE"

_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


def sign(folder: Path, key: Path) -> Path:
    """Sign a bundle's manifest.

    Args:
        folder: Of the bundle; the signature becomes a file beside the manifest.
        key: Private key of Ed25519, in PEM; if it is encrypted, its passphrase is asked for.

    Returns:
        File of the signature, 64 bytes in Base64.

    Raises:
        BundleError: There is no manifest.
        OutputError: The key is none, or writing fails.
        MissingDependencyError: Without the extra "signing".
    """
    manifest = folder / MANIFEST
    content = read_bytes(manifest, "the manifest of a bundle", BundleError)
    signature = _private_key(key).sign(content)
    path = _signature_of(manifest)
    with staged_file(path) as staged:
        staged.write_bytes(base64.b64encode(signature) + b"\n")
    return path


def check_signature(manifest: Path, content: bytes) -> None:
    """Check a manifest's signature, if signatures are required.

    Args:
        manifest: Its file.
        content: What was read from it.

    Raises:
        BundleError: It is not signed, or by none of the keys, or there are no keys.
        MissingDependencyError: Without the extra "signing".
    """
    required = os.environ.get(REQUIRED_BY)
    if not required:
        return
    keys = _public_keys(Path(required))
    path = _signature_of(manifest)
    if not os.path.lexists(path):
        raise BundleError(
            f"{manifest.parent}: expected a signed bundle, got one without {path.name}; sign it by "
            "`paramorph-rt sign`, or choose another model."
        )
    text = read_text(path, "the signature of a bundle", BundleError)
    try:
        signature = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        signature = b""
    if not any(_has_signed(key, signature, content) for key in keys):
        raise BundleError(
            f"{path}: expected the signature of {manifest.name} by a key in {required}, got "
            "another; do not use this bundle unless you know who changed it."
        )


def _signature_of(manifest: Path) -> Path:
    return manifest.with_name(manifest.name + SIGNATURE_SUFFIX)


def _has_signed(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    invalid = _cryptography("cryptography.exceptions").InvalidSignature
    try:
        key.verify(signature, content)
    except invalid:
        return False
    return True


def _public_keys(path: Path) -> list[Ed25519PublicKey]:
    serialization = _cryptography("cryptography.hazmat.primitives.serialization")
    ed25519 = _cryptography("cryptography.hazmat.primitives.asymmetric.ed25519")
    content = read_bytes(path, "public keys", BundleError)
    try:
        keys = [serialization.load_pem_public_key(each) for each in _PUBLIC_KEY.findall(content)]
    except ValueError:
        keys = []
    if not keys or not all(isinstance(key, ed25519.Ed25519PublicKey) for key in keys):
        raise BundleError(
            f"{path}: expected public keys of Ed25519 in PEM, got something else; make one by "
            "`openssl pkey -in KEY -pubout`."
        )
    return keys


def _private_key(path: Path) -> Ed25519PrivateKey:
    serialization = _cryptography("cryptography.hazmat.primitives.serialization")
    ed25519 = _cryptography("cryptography.hazmat.primitives.asymmetric.ed25519")
    content = read_bytes(path, "a private key", OutputError)
    try:
        try:
            key = serialization.load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            passphrase = getpass.getpass(f"Passphrase of {path}: ").encode()
            key = serialization.load_pem_private_key(content, passphrase)
    except (ValueError, EOFError):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise OutputError(
            f"{path}: expected a private key of Ed25519 in PEM, and its passphrase if it has one, "
            "got something else; make one by `openssl genpkey -algorithm ed25519`."
        )
    return key


def _cryptography(module: str):  # type: ignore[no-untyped-def]
    return import_optional(module, "signing", "signatures")
