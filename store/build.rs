//! Rebuilds when `migrations/` changes: `sqlx::migrate!` reads it, and cargo does not watch it.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
