# Shared by every script here: where things are, and how a step is run and reported.
#
# Sourced, never run. Leans on bash, coreutils and util-linux's flock; nothing else.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${ATTUNE_CACHE:-$HOME/.cache/attune}
WHEELS=$CACHE/wheels
LOGS=$CACHE/logs
mkdir -p "$WHEELS" "$LOGS"

if [ -t 1 ]; then GREEN=$'\e[32m' RED=$'\e[31m' DIM=$'\e[2m' PLAIN=$'\e[0m'; else GREEN='' RED='' DIM='' PLAIN=''; fi

# say TEXT: one line to the reader.
say() { printf '%s\n' "$*"; }

# heading TEXT: what the following lines belong to.
heading() { printf '\n%s== %s ==%s\n' "$DIM" "$*" "$PLAIN"; }

# fail TEXT: ends the step (or the script) with a reason a person can act on.
fail() {
    if [ -n "${STEP_REASON:-}" ]; then printf '%s\n' "$*" >"$STEP_REASON"; else printf '%sfailed:%s %s\n' "$RED" "$PLAIN" "$*" >&2; fi
    exit 1
}

# elapsed SECONDS: "7s", "3m07s".
elapsed() { if [ "$1" -lt 60 ]; then printf '%ds' "$1"; else printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); fi; }

# step NAME CHECK ACT: skips when CHECK holds, else runs ACT with its output in a log, and says which and why on failure.
#
# CHECK prints what it found (shown when the step is skipped). ACT may call `fail`.
step() {
    local name=$1 check=$2 act=$3 found start=$SECONDS rc log ticker reason
    if found=$("$check"); then
        printf '  %sok%s      %-14s %s\n' "$GREEN" "$PLAIN" "$name" "$found"
        return 0
    fi
    log=$LOGS/setup-${name// /-}.log
    reason=$(mktemp "$CACHE/.reason.XXXXXX")
    printf '  ...     %-14s %s\n' "$name" "log: $log"
    # A sign of life every half minute; the step itself stays in the foreground, so that Ctrl-C reaches it.
    (
        trap 'kill "$nap" 2>/dev/null; exit 0' TERM
        while :; do
            sleep 30 & nap=$!
            wait "$nap"
            printf '  ...     %-14s %s so far\n' "$name" "$(elapsed $((SECONDS - start)))"
        done
    ) &
    ticker=$!
    set +e
    (
        set -euo pipefail
        STEP_REASON=$reason
        "$act"
    ) >"$log" 2>&1 </dev/null
    rc=$?
    set -e
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    if [ $rc -eq 0 ]; then
        rm -f "$reason"
        printf '  %sdone%s    %-14s %s\n' "$GREEN" "$PLAIN" "$name" "$(elapsed $((SECONDS - start)))"
        return 0
    fi
    printf '  %sFAILED%s  %-14s after %s\n' "$RED" "$PLAIN" "$name" "$(elapsed $((SECONDS - start)))" >&2
    if [ -s "$reason" ]; then
        sed 's/^/          /' "$reason" >&2
    elif [ "$(df --output=avail -k "$CACHE" | tail -n 1)" -lt 4096 ]; then
        say "          no space left on the disk of $CACHE" >&2 # nor for the reason's own file
    else
        say "          unexpected; the last lines of $log:" >&2
        tail -n 5 "$log" | sed 's/^/          | /' >&2
    fi
    rm -f "$reason"
    if [ "${ATTUNE_SETUP_LOCK:-}" = "$CACHE" ]; then rm -rf "$CACHE"/.new.*; fi
    exit 1
}

# locked: waits until no other set-up works on the same cache; held until the script ends, and by what it calls.
locked() {
    [ "${ATTUNE_SETUP_LOCK:-}" = "$CACHE" ] && return 0
    exec 9>"$CACHE/.setup.lock"
    if ! flock -n 9; then
        say "  waiting for another set-up that uses $CACHE"
        flock 9
    fi
    export ATTUNE_SETUP_LOCK=$CACHE
    # What a killed set-up left half-made. Nothing else is called `.new.*`.
    rm -rf "$CACHE"/.new.* "$CACHE"/.reason.*
}

# apt_install WHAT-FOR PACKAGE…: installs Debian packages, or says what to type.
apt_install() {
    local what=$1
    shift
    command -v apt-get >/dev/null || fail "$what is missing, and this is not a Debian-like system: install it with your package manager (Debian calls it: $*)"
    if [ "$(id -u)" -ne 0 ]; then fail "$what is missing. Type:  sudo apt-get install -y $*   and run this again"; fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y --no-install-recommends "$@" && return 0
    apt-get update || fail "$what is missing, and apt-get update failed: is the package mirror reachable? ($(tail_hint))"
    apt-get install -y --no-install-recommends "$@" || fail "apt-get install $* failed ($(tail_hint))"
}

# tail_hint: where to read more, for a reason text.
tail_hint() { printf 'see the logs in %s' "$LOGS"; }

# venv DIR: a Python environment of our own, so that a system Python that refuses pip (PEP 668) is no hindrance.
venv() {
    [ -x "$1/bin/pip" ] && return 0
    rm -rf "$1"
    if ! python3 -m venv "$1"; then
        rm -rf "$1"
        apt_install "Python's venv module" python3-venv
        python3 -m venv "$1" || fail "python3 -m venv $1 failed ($(tail_hint))"
    fi
}

# has_packages PYTHON NAMES: fails unless a Python has all packages of a list such as "torch==2.13.0 peft==0.21.2".
has_packages() {
    "$1" - "$2" 2>/dev/null <<'PYTHON'
import importlib.metadata, sys
for name in sys.argv[1].split():
    package, version = name.split("==")
    assert importlib.metadata.version(package).split("+")[0] == version
print(sys.argv[1])
PYTHON
}

# wheel FILE-PATTERN REQUIREMENT [PIP-OPTION…]: the path of a wheel in the download cache; fetched from PyPI when absent.
wheel() {
    local pattern=$1 requirement=$2 found dir
    shift 2
    # shellcheck disable=SC2086  # the pattern is meant to expand
    found=$(ls -1 "$WHEELS"/$pattern 2>/dev/null | head -n 1)
    if [ -n "$found" ]; then
        printf '%s\n' "$found"
        return 0
    fi
    venv "$CACHE/venv-tools" >&2
    dir=$(mktemp -d "$CACHE/.new.wheel.XXXXXX")
    if ! "$CACHE/venv-tools/bin/pip" download --disable-pip-version-check --no-deps --only-binary=:all: -d "$dir" "$@" "$requirement" >&2; then
        rm -rf "$dir"
        fail "pip could not download $requirement: is PyPI (or the mirror in pip's configuration) reachable? ($(tail_hint))
A wheel put into $WHEELS by hand is used as it is."
    fi
    # shellcheck disable=SC2086
    found=$(cd "$dir" && ls -1 $pattern 2>/dev/null | head -n 1)
    [ -n "$found" ] || fail "pip downloaded $requirement under an unexpected name: $(ls "$dir")"
    mv "$dir/$found" "$WHEELS/$found"
    rm -rf "$dir"
    printf '%s\n' "$WHEELS/$found"
}

# take WHEEL DEST RULE…: files out of a wheel. A damaged one is removed, so that the next run fetches it again.
take() {
    local said
    said=$(python3 "$ROOT/scripts/lib/unwheel.py" "$@" 2>&1) && return 0
    case $said in
        *"No space left"*) fail "no space left on the disk of $CACHE" ;;
        *) rm -f "$1"; fail "$said
The file was removed; run this again to fetch it again." ;;
    esac
}

# timed NAME COMMAND…: a heading, the command with its own output, and how long it took.
timed() {
    local name=$1 start=$SECONDS
    shift
    heading "$name"
    "$@" || fail "$name (after $(elapsed $((SECONDS - start)))): $*"
    say "$name: $(elapsed $((SECONDS - start)))"
}
