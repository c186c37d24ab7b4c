#!/bin/sh
# Prints the interpreter that `make setup` builds with: $PYTHON, else the newest supported one that is there. There means
# that it runs, which one of pyenv's shims need not, and makes environments, which Debian's python3 alone does not.
set -eu
supported="3.14 3.13 3.12 3.11" # everything in constraints.txt has wheels for these

probe='
import sys
version = "%d.%d" % sys.version_info[:2]
if version not in sys.argv[1:]:
    sys.exit("it is Python " + version)
if sys.implementation.name != "cpython":
    sys.exit("it is " + sys.implementation.name)
try:
    import ensurepip, venv
except ImportError:
    sys.exit("it makes no environments (Debian has that in python3-venv)")
'

newline='
'
fits() { # sets reason
    reason=$("$1" -c "$probe" $supported 2>&1) && return
    reason=${reason%%"$newline"*}
    reason=${reason##*: } # without the names that a shell or pyenv puts before "not found"
    reason=${reason:-it does not run}
    return 1
}

if [ -n "${PYTHON:-}" ]; then
    if fits "$PYTHON"; then echo "$PYTHON"; exit; fi
    echo "error: PYTHON=$PYTHON: $reason; supported are $supported" >&2
    exit 2
fi
managed=$(uv python find --system '>=3.11,<3.15' 2>/dev/null) || managed= # uv's own need not be on the PATH
for python in $(printf 'python%s ' $supported) python3 $managed; do
    if fits "$python"; then echo "$python"; exit; fi
done
echo "error: none of Python $supported is here and makes environments; get one with \`uv python install 3.13\`, or on" \
    "Debian \`apt install python3-venv\`; PYTHON=name takes one from elsewhere" >&2
exit 2
