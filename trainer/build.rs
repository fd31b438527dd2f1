//! Tells the linker where libtorch lies, so that this crate's binaries start without `LD_LIBRARY_PATH`.
//!
//! torch-sys finds libtorch through the same `LIBTORCH`; cargo hands link arguments of a library on to nobody, so each
//! crate of the right half that links a program says it for itself.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    #[expect(clippy::disallowed_methods, reason = "a build script's configuration is its environment")]
    let libtorch = std::env::var("LIBTORCH");
    let Ok(libtorch) = libtorch else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    if std::path::Path::new(&libtorch).join("lib/libtorch_cuda.so").exists() {
        // The CUDA half registers itself when it is loaded; as nothing calls it by name, the linker would leave it out.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-L{libtorch}/lib,-ltorch_cuda,--as-needed");
    }
}
