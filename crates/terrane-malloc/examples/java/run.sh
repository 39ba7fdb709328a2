#!/bin/sh
# Java on Terrane, in one command: an off-heap cache under the preload, beside the system's allocator; then heaps and pools through
# java.lang.foreign, with a JDK of version 22 or later.
#
#   crates/terrane-malloc/examples/java/run.sh [seconds per run]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:-3}
library=${LIBTERRANE:-}
if [ -z "$library" ]; then
    (cd "$here" && cargo build --quiet --release --package terrane-malloc)
    library=$(cd "$here/../../../.." && pwd)/target/release/libterrane.so
fi

# The newest JDK on the machine.
newest= version=0
for java in "$(command -v java || true)" "${JAVA_HOME:-/nonexistent}"/bin/java /usr/lib/jvm/*/bin/java; do
    [ -x "$java" ] || continue
    found=$("$java" -version 2>&1 | sed -n 's/^[^"]*version "\([0-9]*\).*/\1/p')
    if [ "${found:-0}" -gt "$version" ]; then newest=$java version=$found; fi
done
if [ -z "$newest" ]; then
    echo "ok: skipped, no Java on this machine"
    exit 0
fi
"$newest" -version 2>&1 | sed -n 1p

classes=$(mktemp -d)
trap 'rm -rf "$classes"' EXIT
[ -x "$(dirname "$newest")/javac" ] || { echo "ok: skipped, no compiler for Java beside $newest"; exit 0; }
"$(dirname "$newest")"/javac -nowarn -d "$classes" "$here/OffHeap.java" 2>"$classes/log" || { cat "$classes/log"; exit 1; }
for run in 1 2 3; do
    printf 'system   '
    "$newest" -Xmx256m -cp "$classes" OffHeap "$seconds" 2 2>/dev/null
    printf 'terrane  '
    LD_PRELOAD=$library TERRANE_BACKGROUND=on "$newest" -Xmx256m -cp "$classes" OffHeap "$seconds" 2 2>/dev/null
done

if [ "$version" -ge 22 ]; then
    "$(dirname "$newest")"/javac -d "$classes" "$here/Pools.java"
    "$newest" --enable-native-access=ALL-UNNAMED -cp "$classes" Pools "$library" 2>&1
else
    echo "ok: skipped, java.lang.foreign needs a JDK of version 22 or later, not $version"
fi
