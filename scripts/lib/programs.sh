# shellcheck shell=bash
# A Python with the programs that exports are for, which are also those that serving is compared with: PEFT, transformers,
# and llama.cpp, built for this machine's processor. Sourced by scripts/export-test and scripts/bench-serve, after
# scripts/env.

PROGRAMS=$CACHE/exports/bin/python
PROGRAM_NAMES='torch==2.13.0 transformers==5.23.0 peft==0.21.2 gguf==0.19.0 llama-cpp-python==0.3.36'

programs_present() { has_packages "$PROGRAMS" "$PROGRAM_NAMES"; }
programs_make() {
    venv "$CACHE/exports"
    # shellcheck disable=SC2086  # a list
    CMAKE_ARGS=-DGGML_NATIVE=ON "$CACHE/exports/bin/pip" install --disable-pip-version-check $PROGRAM_NAMES ||
        fail "pip could not install $PROGRAM_NAMES: is PyPI reachable, and is there a C++ compiler? ($(tail_hint))"
}
