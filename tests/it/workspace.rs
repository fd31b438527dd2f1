//! The workspace's crates, as `cargo metadata` lists them.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use cargo_metadata::{Metadata, MetadataCommand, Package};

/// The target that programs are built for. Without a filter, `cargo metadata` resolves the crates of all targets, which
/// a build does not fetch, and fails offline on a machine with an empty registry.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Returns the repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn command() -> MetadataCommand {
    let mut command = MetadataCommand::new();
    command
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--offline", "--locked", "--filter-platform", TARGET].map(str::to_owned));
    command
}

/// Returns the workspace with all dependencies of its crates.
pub(crate) fn metadata() -> Metadata {
    command().exec().unwrap()
}

/// Returns the workspace's crates.
pub(crate) fn members() -> &'static [Package] {
    static MEMBERS: OnceLock<Vec<Package>> = OnceLock::new();
    MEMBERS.get_or_init(|| command().no_deps().exec().unwrap().packages)
}

/// Returns the folder of a crate.
pub(crate) fn folder(member: &Package) -> &Path {
    member.manifest_path.parent().unwrap().as_std_path()
}
