//! The invariants between crates, read from `cargo metadata`: see "Walls" in docs/ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// The target that programs are built for. Without a filter, `cargo metadata` resolves the crates of all targets, which
/// a build does not fetch, and fails offline on a machine with an empty registry.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn metadata() -> Metadata {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new()
        .manifest_path(root)
        .other_options(["--offline", "--locked", "--filter-platform", TARGET].map(str::to_owned))
        .exec()
        .unwrap()
}

/// Returns the names of all crates that the crate `room` links, directly or transitively.
fn links(metadata: &Metadata, room: &str) -> BTreeSet<String> {
    let names: BTreeMap<&PackageId, &str> = metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let nodes = &metadata.resolve.as_ref().unwrap().nodes;
    let normal: BTreeMap<&PackageId, Vec<&PackageId>> = nodes
        .iter()
        .map(|node| {
            let deps = node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
            (&node.id, deps.map(|d| &d.pkg).collect())
        })
        .collect();
    let start = metadata.workspace_packages().into_iter().find(|p| p.name.as_str() == room).unwrap();
    let (mut seen, mut next) = (BTreeSet::new(), vec![&start.id]);
    while let Some(id) = next.pop() {
        for dep in &normal[id] {
            if seen.insert(*dep) {
                next.push(dep);
            }
        }
    }
    seen.into_iter().map(|id| names[id].to_owned()).collect()
}

#[test]
fn the_left_half_never_links_libtorch() {
    let metadata = metadata();
    for room in [
        "attune-domain",
        "attune-dataset",
        "attune-store",
        "attune-text",
        "attune-gguf",
        "attune-outbound",
        "attune-process",
        "attune-api",
        "attune-scheduler",
        "attune-cli",
    ] {
        let found = links(&metadata, room);
        assert!(!found.contains("tch") && !found.contains("torch-sys"), "{room} links libtorch");
    }
}

#[test]
fn the_right_half_never_links_postgres() {
    let metadata = metadata();
    for room in ["attune-model", "attune-node", "attune-process", "attune-trainer", "attune-serving"] {
        let found = links(&metadata, room);
        let banned: Vec<_> =
            found.iter().filter(|name| name.starts_with("sqlx") || name.starts_with("aws-sdk")).collect();
        assert!(banned.is_empty(), "{room} links {banned:?}");
    }
}

#[test]
fn doors_never_import_each_other() {
    const DOORS: [&str; 5] = ["attune-api", "attune-scheduler", "attune-trainer", "attune-serving", "attune-cli"];
    let metadata = metadata();
    for door in DOORS {
        let found = links(&metadata, door);
        let others: Vec<_> = DOORS.iter().filter(|other| found.contains(**other)).collect();
        assert!(others.is_empty(), "{door} imports {others:?}");
    }
}

#[test]
fn domain_cannot_fail_for_outside_reasons() {
    let found = links(&metadata(), "attune-domain");
    for banned in ["tokio", "reqwest", "sqlx", "rand", "chrono"] {
        assert!(!found.contains(banned), "domain links {banned}");
    }
}
