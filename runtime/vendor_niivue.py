"""Fetch NiiVue from npm into the report package: script, version and licences.

    python runtime/vendor_niivue.py [VERSION]

Without a version, the one that is there is fetched again and must be the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

VENDORED = Path(__file__).parent / "paramorph_rt/report/vendored"
PACKAGE = "@niivue/niivue"


def main() -> int:
    record = VENDORED / "niivue.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    version = sys.argv[1] if len(sys.argv) > 1 else known["version"]
    with tempfile.TemporaryDirectory() as folder:
        modules = Path(folder) / "node_modules"
        command = ["npm", "install", "--prefix", folder, "--ignore-scripts", "--omit=optional"]
        subprocess.run([*command, f"{PACKAGE}@{version}"], check=True)
        script = (modules / PACKAGE / "dist/niivue.umd.js").read_bytes()
        licences = [
            _entry(path) for path in sorted(modules.rglob("package.json")) if _is_part(path)
        ]
    digest = hashlib.sha256(script).hexdigest()
    if known.get("version") == version and known["sha256"] != digest:
        print(f"{PACKAGE} {version}: expected {known['sha256']}, got {digest}", file=sys.stderr)
        return 1
    (VENDORED / "niivue.umd.js.gz").write_bytes(gzip.compress(script, 9, mtime=0))
    (VENDORED / "LICENSES-of-parts.txt").write_text("\n\n".join(licences) + "\n", encoding="utf-8")
    record.write_text(
        json.dumps({"version": version, "sha256": digest}, indent=2) + "\n", encoding="utf-8"
    )
    return 0


def _is_part(package: Path) -> bool:
    """Whether a package.json is that of a package, and not of a folder within one."""
    owner = package.parent.parent
    home = owner.parent if owner.name.startswith("@") else owner
    return home.name == "node_modules" and package.parent.name != "niivue"


def _entry(package: Path) -> str:
    about = json.loads(package.read_text(encoding="utf-8"))
    text = next(p for p in package.parent.iterdir() if p.name.lower().startswith("licen"))
    terms = text.read_text(encoding="utf-8").strip()
    return f"{about['name']} {about['version']} ({about['license']})\n\n{terms}"


if __name__ == "__main__":
    sys.exit(main())
