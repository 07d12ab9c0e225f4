#!/usr/bin/env bash
# The steps of the Dockerfile on a machine that has nothing: a minimal Debian of the same release as
# this one, the wheel, and a registration by a user without a home or a name, without a network, on
# a file system that is read-only but for the output folder.
#
#   sudo tests/clean_machine.sh WHEEL [EXTRA]
#
# Needs root, Debian's mmdebstrap, and a Python with pip, which fetches what the wheel asks for; where
# packages come from is this machine's own business.
set -euo pipefail
wheel=$(realpath "$1")
extra=${2:+[$2]}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
. /etc/os-release

work=$(mktemp -d)
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT
chmod 755 "$work"

sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
    [ ! -s "$file" ] || sources+=("$file")
done
mmdebstrap --quiet --variant=minbase --include=python3-venv --dpkgopt=force-unsafe-io \
    --aptopt='Acquire::Check-Valid-Until "false"' "$VERSION_CODENAME" "$root" "${sources[@]}"

version=$(chroot "$root" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -m pip download --quiet --dest "$root/wheels" --only-binary=:all: \
    --python-version "$version" "$wheel$extra"
chroot "$root" python3 -m venv /opt/paramorph
chroot "$root" env -i /opt/paramorph/bin/python -m pip install --quiet --no-index \
    --find-links /wheels "paramorph-rt$extra"
rm -r "$root/wheels"
cp -r "$here/../examples/colin27" "$root/images"
cp "$here/installed/register.py" "$root/register.py"
mkdir "$root/out"
chown 12345:12345 "$root/out"

# Mounts and network of this block's own, which end with it.
export root
unshare --mount --net --pid --fork bash -euo pipefail <<'INSIDE'
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$root/out" "$root/out"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
chroot --userspec=12345:12345 "$root" env -i PATH=/opt/paramorph/bin:/usr/bin:/bin bash -euc '
    for place in /elsewhere /tmp/elsewhere; do
        if touch $place 2>/dev/null; then echo "expected a read-only file system" >&2; exit 1; fi
    done
    paramorph-rt info
    python /register.py /images /out'
INSIDE
ls -l "$root/out/command"
echo "the clean machine registers"
