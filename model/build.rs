//! Adds libtorch to the runtime library path, so that this crate's tests run without `LD_LIBRARY_PATH`.
//!
//! torch-sys finds libtorch through the same `LIBTORCH`. Cargo does not pass a library's link arguments on to dependent
//! crates, so each crate that links libtorch into a program sets them in its own build script.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    #[expect(clippy::disallowed_methods, reason = "a build script's configuration is its environment")]
    let libtorch = std::env::var("LIBTORCH");
    let Ok(libtorch) = libtorch else { return };
    // First the folder next to the binaries that `make release` fills.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{libtorch}/lib");
    if std::path::Path::new(&libtorch).join("lib/libtorch_cuda.so").exists() {
        // libtorch_cuda registers itself when it is loaded. Nothing refers to its symbols, so the linker would drop it.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-L{libtorch}/lib,-ltorch_cuda,--as-needed");
    }
}
