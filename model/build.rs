//! Tells the linker where libtorch lies, so that this crate's tests start without `LD_LIBRARY_PATH`.
//!
//! torch-sys finds libtorch through the same `LIBTORCH`; cargo hands link arguments of a library on to nobody, so each
//! crate of the right half that links a program says it for itself.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    #[expect(clippy::disallowed_methods, reason = "a build script's configuration is its environment")]
    let libtorch = std::env::var("LIBTORCH");
    if let Ok(libtorch) = libtorch {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
}
