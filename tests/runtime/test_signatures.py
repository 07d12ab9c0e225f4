"""Bundles that are signed, and what happens to those that are not."""

from __future__ import annotations

import base64
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from paramorph_rt import brain_masks
from paramorph_rt.bundle import MANIFEST, load_bundle
from paramorph_rt.bundle.signatures import REQUIRED_BY
from paramorph_rt.cli import main
from paramorph_rt.errors import BundleError

from .phantoms import centred_grid, head, volume_of

PEM = serialization.Encoding.PEM
SIGNATURE = MANIFEST + ".sig"


@pytest.fixture(autouse=True)
def _nobody_asks(monkeypatch):
    monkeypatch.setenv(REQUIRED_BY, "")


@pytest.fixture
def keys(tmp_path):
    """Makes files of a private and a public key."""

    def make(name="key", kind=Ed25519PrivateKey, passphrase=b""):
        key = kind.generate()
        encryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase)
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        form = serialization.PrivateFormat.PKCS8
        private.write_bytes(key.private_bytes(PEM, form, encryption))
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(key.public_key().public_bytes(PEM, form))
        return private, public

    return make


@pytest.fixture
def bundle(zero_bundle_path, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(zero_bundle_path, tmp_path / "bundle")


def sign(bundle, key) -> int:
    return main(["sign", str(bundle), "--key", str(key)])


def test_a_signed_bundle_loads(bundle, keys, monkeypatch):
    private, public = keys()
    assert sign(bundle, private) == 0
    monkeypatch.setenv(REQUIRED_BY, str(public))
    load_bundle(bundle)


def test_the_signature_is_ed25519_of_the_manifest(bundle, keys, tmp_path):
    """OpenSSL has the last word."""
    openssl = shutil.which("openssl") or pytest.skip("needs openssl")
    private, public = keys()
    sign(bundle, private)

    raw = tmp_path / "raw"
    raw.write_bytes(base64.b64decode((bundle / SIGNATURE).read_bytes()))
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    subprocess.run([*command, "-in", bundle / MANIFEST, "-sigfile", raw], check=True)


def test_one_of_several_keys_is_enough(bundle, keys, tmp_path, monkeypatch):
    private, public = keys("ours")
    _, other = keys("theirs")
    both = tmp_path / "both.pub"
    both.write_bytes(other.read_bytes() + public.read_bytes())
    sign(bundle, private)
    monkeypatch.setenv(REQUIRED_BY, str(both))
    load_bundle(bundle)


def test_an_encrypted_key(bundle, keys, monkeypatch, capsys):
    private, public = keys(passphrase=b"open sesame")
    monkeypatch.setattr("getpass.getpass", lambda _: "sesame")
    assert sign(bundle, private) == 1
    assert "and its passphrase" in capsys.readouterr().err
    assert not (bundle / SIGNATURE).exists()
    monkeypatch.setattr("getpass.getpass", lambda _: "open sesame")
    assert sign(bundle, private) == 0
    monkeypatch.setenv(REQUIRED_BY, str(public))
    load_bundle(bundle)


def unsigned(bundle, private):
    (bundle / SIGNATURE).unlink()


def of_another_manifest(bundle, private):
    (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes() + b"\n")


def no_base64(bundle, private):
    (bundle / SIGNATURE).write_bytes(b"\xc3\xa9\n")


def too_short(bundle, private):
    (bundle / SIGNATURE).write_bytes(b"AAAA\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unsigned, "expected a signed bundle, got one without"),
        (of_another_manifest, "expected the signature of manifest.json by a key in"),
        (no_base64, "expected the signature of manifest.json by a key in"),
        (too_short, "expected the signature of manifest.json by a key in"),
    ],
)
def test_a_bundle_that_nobody_vouches_for_is_refused(bundle, keys, monkeypatch, change, message):
    private, public = keys()
    sign(bundle, private)
    change(bundle, private)
    load_bundle(bundle)  # whoever does not ask for signatures
    monkeypatch.setenv(REQUIRED_BY, str(public))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_another_key_is_refused(bundle, keys, monkeypatch):
    sign(bundle, keys("mine")[0])
    monkeypatch.setenv(REQUIRED_BY, str(keys("theirs")[1]))
    with pytest.raises(BundleError, match="by a key in"):
        load_bundle(bundle)


def test_what_is_no_key(bundle, keys, tmp_path, monkeypatch, capsys):
    private, public = keys("curve", X25519PrivateKey)
    assert sign(bundle, private) == 1
    assert "expected a private key of Ed25519" in capsys.readouterr().err
    assert sign(bundle, public) == 1
    for wrong in (public, private, tmp_path / "none"):
        monkeypatch.setenv(REQUIRED_BY, str(wrong))
        with pytest.raises(BundleError, match="expected public keys"):
            load_bundle(bundle)


def test_an_altered_file_is_not_signed(bundle, keys, capsys):
    network = bundle / "registration.onnx"
    content = bytearray(network.read_bytes())
    content[-1] ^= 1
    network.write_bytes(content)
    assert sign(bundle, keys()[0]) == 1
    assert "registration.onnx" in capsys.readouterr().err
    assert not (bundle / SIGNATURE).exists()


@pytest.mark.parametrize("command", [["info"], ["triton", "--out-dir", "repo"]])
def test_commands_ask_for_signatures(bundle, keys, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    private, public = keys()
    model = ["--model", str(bundle)] if command == ["info"] else [str(bundle)]
    line = [*command, *model, "--require-signature", str(public)]
    assert main(line) == 1
    assert "expected a signed bundle" in capsys.readouterr().err
    sign(bundle, private)
    assert main(line) == 0


def test_a_cluster_is_not_told_to_ask_for_signatures(keys, tmp_path, capsys):
    """Its workers would not hear of it, and load what nobody signed."""
    _, public = keys()
    (tmp_path / "pairs.csv").write_text("moving,fixed\na.nii.gz,b.nii.gz\n", encoding="utf-8")
    line = ["cohort", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "out")]
    line += ["--scheduler", "tcp://127.0.0.1:1", "--require-signature", str(public)]
    assert main(line) == 1
    assert "set PARAMORPH_REQUIRE_SIGNATURE for each worker" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_network_of_strip_is_asked_for_its_signature(keys, monkeypatch):
    _, public = keys()
    monkeypatch.setenv(REQUIRED_BY, str(public))
    image = volume_of(head, centred_grid("RAS", (20, 20, 20)))
    with pytest.raises(BundleError, match="expected a signed bundle"):
        brain_masks([image])
