//! Dependencies that no file of their crate names.

use std::path::PathBuf;

use cargo_metadata::Package;
use regex_lite::Regex;

use crate::workspace::{folder, members};

/// Dependencies that are named in no file.
const UNNAMED: [(&str, &str); 3] = [
    // Its library's name is md5.
    ("attune-api", "md-5"),
    ("attune-cli", "md-5"),
    // Its feature span-locations gives syn the numbers of lines.
    ("attune-tests", "proc-macro2"),
];

/// The text of all Rust files of a crate.
fn code(package: &Package, sources: &[(PathBuf, String)]) -> String {
    let own = sources.iter().filter(|(path, _)| path.starts_with(folder(package)));
    own.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_dependency_is_used() {
    let sources = super::sources();
    let mut unused = Vec::new();
    for package in members() {
        let code = code(package, &sources);
        for dependency in &package.dependencies {
            let name = dependency.rename.as_deref().unwrap_or(&dependency.name).replace('-', "_");
            let is_excepted = UNNAMED.contains(&(package.name.as_str(), dependency.name.as_str()));
            let is_named = Regex::new(&format!(r"\b{name}(?:::|!|;| as )")).unwrap().is_match(&code);
            if !is_excepted && !is_named {
                unused.push(format!("{}: {}", package.name, dependency.name));
            }
        }
    }
    super::assert_none("dependencies that no file names", &unused);
}
