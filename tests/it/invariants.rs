//! The invariants between crates, read from `cargo metadata`: see "Walls" in docs/ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, PackageId, Target};

use crate::workspace::{members, metadata};

/// The left half. A crate that both halves link is in both lists.
const LEFT: [&str; 15] = [
    "attune-domain",
    "attune-dataset",
    "attune-bucket",
    "attune-store",
    "attune-text",
    "attune-dataprep",
    "attune-inference",
    "attune-gguf",
    "attune-inbound",
    "attune-outbound",
    "attune-process",
    "attune-api",
    "attune-scheduler",
    "attune-cli",
    "attune-tests",
];

/// The right half.
const RIGHT: [&str; 9] = [
    "attune-domain",
    "attune-text",
    "attune-gguf",
    "attune-inbound",
    "attune-process",
    "attune-model",
    "attune-node",
    "attune-trainer",
    "attune-serving",
];

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
fn every_crate_belongs_to_a_half() {
    let listed: BTreeSet<&str> = LEFT.into_iter().chain(RIGHT).collect();
    let all: BTreeSet<&str> = members().iter().map(|member| member.name.as_str()).collect();
    assert_eq!(listed, all);
}

#[test]
fn the_left_half_never_links_libtorch() {
    let metadata = metadata();
    for room in LEFT {
        let found = links(&metadata, room);
        assert!(!found.contains("tch") && !found.contains("torch-sys"), "{room} links libtorch");
    }
}

#[test]
fn the_right_half_never_links_postgres() {
    let metadata = metadata();
    for room in RIGHT {
        let found = links(&metadata, room);
        let banned: Vec<_> =
            found.iter().filter(|name| name.starts_with("sqlx") || name.starts_with("aws-sdk")).collect();
        assert!(banned.is_empty(), "{room} links {banned:?}");
    }
}

#[test]
fn binaries_never_import_each_other() {
    let doors: Vec<&str> = members()
        .iter()
        .filter(|member| member.targets.iter().any(Target::is_bin))
        .map(|member| member.name.as_str())
        .collect();
    assert!(doors.contains(&"attune-api"), "the binaries are not found: {doors:?}");
    let metadata = metadata();
    for door in &doors {
        let found = links(&metadata, door);
        let others: Vec<_> = doors.iter().filter(|other| found.contains(**other)).collect();
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
