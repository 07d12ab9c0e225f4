"""`paramorph-rt sign`: sign a bundle, and the option that asks for signatures."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_EPILOG = """
The signature covers the manifest, and by the hashes in it every file of the bundle. Whoever loads
the bundle with --require-signature KEYS, or with PARAMORPH_REQUIRE_SIGNATURE=KEYS in the
environment, refuses it unless one of the public keys in KEYS has signed it.

example:
  openssl genpkey -algorithm ed25519 -out private.pem
  openssl pkey -in private.pem -pubout -out public.pem
  paramorph-rt sign BUNDLE --key private.pem
  paramorph-rt infer -m m.nii.gz -f f.nii.gz -o OUT --model BUNDLE --require-signature public.pem
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "sign",
        help="sign a bundle with a private key",
        description="Sign a model bundle with a private key of Ed25519.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    add("--key", type=Path, required=True, metavar="PEM", help="private key of Ed25519")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the bundle's files against the manifest, then sign that."""
    from ..bundle import load_bundle
    from ..bundle.signatures import REQUIRED_BY, sign

    os.environ.pop(REQUIRED_BY, None)  # it is not signed yet
    bundle = load_bundle(args.bundle)
    for file in bundle.files:
        bundle.verified_path(file)
    print(f"wrote {sign(args.bundle, args.key)}")
    return 0


def add_option(parser: argparse.ArgumentParser) -> None:
    """Declare --require-signature, of a command that loads bundles."""
    parser.add_argument(
        "--require-signature",
        type=Path,
        metavar="PEM",
        help="public keys; a model that none of them has signed is refused (default: "
        "$PARAMORPH_REQUIRE_SIGNATURE, or no signature is needed)",
    )


def require(args: argparse.Namespace) -> None:
    """Ask for signatures from here on, in processes that this one starts as well."""
    if getattr(args, "require_signature", None) is not None:
        from ..bundle.signatures import REQUIRED_BY

        os.environ[REQUIRED_BY] = str(args.require_signature.resolve())
