#!/bin/sh
# Resolve every *.in to a pinned *.txt. dev holds everything, so the others are constrained by it and can share one
# environment. torch stays out. For Python 3.11.0, the oldest: it needs the most packages, and all run on newer ones.
set -eu
cd "$(dirname "$0")"

pin() {
    name=$1
    shift
    uv pip compile --quiet --python-version 3.11.0 --python-platform linux --no-emit-package torch \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@" "$name.in" >"$name.txt.new"
    { echo "# Made from $name.in by \`make pins\`; do not edit."; cat "$name.txt.new"; } >"$name.txt"
    rm "$name.txt.new"
}

pin dev
for part in web gpu base redis; do
    pin "$part" --constraint dev.txt
done
