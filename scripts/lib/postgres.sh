# Finds PostgreSQL's own programs. Sourced after steps.sh.

# postgres_bin: the folder that holds initdb and postgres; $ATTUNE_POSTGRES_BIN, else the newest Debian one, else PATH's.
postgres_bin() {
    local bin
    if [ -n "${ATTUNE_POSTGRES_BIN:-}" ]; then
        [ -x "$ATTUNE_POSTGRES_BIN/initdb" ] || return 1
        say "$ATTUNE_POSTGRES_BIN"
        return 0
    fi
    for bin in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
        if [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ]; then
            say "$bin"
            return 0
        fi
    done
    bin=$(command -v initdb) || return 1
    bin=$(dirname "$(readlink -f "$bin")")
    [ -x "$bin/postgres" ] && say "$bin"
}

# unprivileged_user: whom PostgreSQL runs as when we are root, which it refuses to be.
unprivileged_user() { if getent passwd postgres >/dev/null; then say postgres; else say nobody; fi; }
