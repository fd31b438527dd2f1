//! Adds libtorch's folder to the runtime search path, so that this crate's binaries start without `LD_LIBRARY_PATH`.
//!
//! torch-sys finds libtorch through the same `LIBTORCH` variable. Cargo does not pass a library's link arguments to its
//! dependents, so each crate that links a libtorch binary sets them itself.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    #[expect(clippy::disallowed_methods, reason = "a build script's configuration is its environment")]
    let libtorch = std::env::var("LIBTORCH");
    let Ok(libtorch) = libtorch else { return };
    // First the folder next to the binaries that `make release` fills.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{libtorch}/lib");
    if std::path::Path::new(&libtorch).join("lib/libtorch_cuda.so").exists() {
        // libtorch_cuda registers itself when it is loaded. No symbol of it is referenced, so the linker would drop it.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-L{libtorch}/lib,-ltorch_cuda,--as-needed");
    }
}
