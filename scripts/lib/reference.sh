# shellcheck shell=bash
# A Python with the reference implementations, at the versions that the fixtures and the benchmark name, and the base model
# as they read it. Sourced by scripts/golden, scripts/bench-train and the other benchmarks, after scripts/env.

REFERENCE=$CACHE/reference/bin/python
REFERENCE_NAMES='torch==2.13.0 transformers==5.23.0 peft==0.21.2 bitsandbytes==0.50.2'
BASE_FOLDER=$CACHE/models/SmolLM2-135M-Instruct

reference_present() { has_packages "$REFERENCE" "$REFERENCE_NAMES"; }
reference_make() {
    venv "$CACHE/reference"
    # shellcheck disable=SC2086  # a list
    "$CACHE/reference/bin/pip" install --disable-pip-version-check $REFERENCE_NAMES accelerate gguf ||
        fail "pip could not install $REFERENCE_NAMES: is PyPI (or the mirror in pip's configuration) reachable? ($(tail_hint))"
}

# The folder that `attune models convert` makes of scripts/base-model's file; needs scripts/setup.
folder_present() { [ -e "$BASE_FOLDER/model.safetensors" ] && [ -e "$BASE_FOLDER/tokenizer.json" ] && say "$BASE_FOLDER"; }
folder_make() {
    cd "$ROOT" || fail "$ROOT is gone"
    cargo build --locked --workspace --bins || fail "cargo could not build ($(tail_hint))"
    rm -rf "$BASE_FOLDER"
    "$CARGO_TARGET_DIR/debug/attune" models convert "$BASE_FOLDER.Q4_1.gguf" "$BASE_FOLDER"
}
