#!/bin/sh
# Makes /opt/envsync/env inside a build, from what `envsync build` put beside this file. Nothing is downloaded.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=/opt/envsync
minor=$(cat "$here/minor")
export UV_CACHE_DIR=/var/cache/envsync UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 UV_OFFLINE=1 NO_COLOR=1

# The base's own Python, if it is of that version and has all of its standard library.
python=
for candidate in "/usr/local/bin/python$minor" "$(command -v "python$minor" || true)" "/usr/bin/python$minor"; do
  if [ -x "$candidate" ] && "$candidate" -I -c 'import asyncio, ctypes, ssl' 2>/dev/null; then
    python=$candidate
    break
  fi
done

# Else the one that came along.
if [ -z "$python" ]; then
  if [ ! -x "$here/python/bin/python$minor" ]; then
    echo "the base image has no Python $minor, and none came along: choose a base that has it" >&2
    exit 1
  fi
  mkdir -p "$root"
  cp -R "$here/python" "$root/python"
  python=$root/python/bin/python$minor
  "$python" -I -S -c 'pass' || {
    echo "the Python $minor that came along does not run here: the base's C library is older, or another" >&2
    exit 1
  }
  # Libraries that many wheels expect of a system: the base's own if it has them, else those that came along.
  for spare in "$root"/python/lib/envsync/spare/*.so*; do
    [ -e "$spare" ] || continue
    "$python" -I -S -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "${spare##*/}" 2>/dev/null \
      || mv "$spare" "$root/python/lib/envsync/"
  done
fi

"$here/uv" venv --quiet --no-config --no-project --python "$python" "$root/env"
"$here/uv" pip sync --no-config --preview-features pylock --no-build --offline \
  --python "$root/env/bin/python" "$here/pylock.toml"
cp "$here/envsync.pth" "$root/env/lib/python$minor/site-packages/envsync.pth"

# What is there now is what the lock says: versions, contents, Python, C library.
"$root/env/bin/python" -B -I - "$here" <<'END'
import json
import sys

paths = list(sys.path)
sys.path.insert(0, sys.argv[1])
from compare import ERROR, FATAL, compare
from scan import scan

with open(f"{sys.argv[1]}/wanted.json", encoding="utf-8") as file:
    wanted = json.load(file)
found = compare(wanted, scan(paths))
for one in found:
    print(f"{one.severity}: {one.subject}: the lock has {one.left or 'none'}, here is {one.right or 'none'}")
sys.exit(any(one.severity in (FATAL, ERROR) for one in found))
END
echo "verified: $("$root/env/bin/python" --version), $(ls "$here/wheels" | wc -l) packages"
