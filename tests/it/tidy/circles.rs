//! Import cycles: files of one crate that import each other, directly or indirectly.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use syn::{Item, UseTree, visit::Visit};

use crate::workspace::{folder, members};

/// The path of a module in its crate, such as `["jobs", "estimate"]`.
type Module = Vec<String>;

/// The imports between the files of one crate.
pub(crate) struct Imports {
    files: BTreeMap<Module, PathBuf>,
    edges: BTreeMap<Module, BTreeSet<Module>>,
}

impl Imports {
    /// Parses the imports of the files below `src`, except those of tests.
    pub(crate) fn of(src: &Path, sources: &[(PathBuf, String)]) -> Self {
        let own: Vec<_> = sources
            .iter()
            .filter_map(|(path, text)| Some((module(path.strip_prefix(src).ok()?)?, path, text)))
            .collect();
        let files: BTreeMap<_, _> = own.iter().map(|(module, path, _)| (module.clone(), (*path).clone())).collect();
        let edges = own
            .iter()
            .map(|(module, _, text)| {
                let parsed = syn::parse_file(text).unwrap();
                let mut paths = Paths { module: module.clone(), found: BTreeSet::new() };
                paths.visit_file(&parsed);
                let targets = paths.found.iter().filter_map(|path| file_of(path, &files));
                (module.clone(), targets.filter(|target| target != module).collect())
            })
            .collect();
        Self { files, edges }
    }

    /// Returns the strongly connected components of more than one file: the files that import each other.
    pub(crate) fn circles(&self) -> Vec<Vec<&Path>> {
        let reached: BTreeMap<&Module, _> = self.edges.keys().map(|module| (module, self.reached(module))).collect();
        let circle = |module: &Module| -> Vec<&Path> {
            let mutual = reached[module].iter().filter(|other| reached[*other].contains(module));
            mutual.map(|other| self.files[*other].as_path()).collect()
        };
        let circles: BTreeSet<_> = self.edges.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
        circles.into_iter().collect()
    }

    /// Returns the modules that a module imports, directly or indirectly; the module itself if it is in a circle.
    fn reached<'a>(&'a self, module: &'a Module) -> BTreeSet<&'a Module> {
        let (mut reached, mut next) = (BTreeSet::new(), vec![module]);
        while let Some(module) = next.pop() {
            next.extend(self.edges[module].iter().filter(|target| reached.insert(*target)));
        }
        reached
    }
}

/// Returns the module of a file below `src`; `None` for tests and `main`.
fn module(path: &Path) -> Option<Module> {
    let mut module: Module = path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.iter().any(|part| matches!(part.as_str(), "tests" | "bin")) || module == ["main"] {
        return None;
    }
    if module.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib")) {
        module.pop();
    }
    Some(module)
}

/// Returns the module of the file that has the longest known prefix of a path. The crate's root does not count, since
/// it only declares modules.
fn file_of(path: &[String], files: &BTreeMap<Module, PathBuf>) -> Option<Module> {
    (1..=path.len()).rev().map(|length| path[..length].to_vec()).find(|part| files.contains_key(part))
}

/// The visitor that collects a file's paths into its own crate.
struct Paths {
    module: Module,
    found: BTreeSet<Module>,
}

impl Paths {
    /// Adds a path that begins with `crate`, `self` or `super`, relative to the crate's root.
    fn take(&mut self, path: &[String]) {
        let mut from = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self") => self.module.clone(),
            Some("super") => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            _ => return,
        };
        let mut rest = &path[1..];
        while rest.first().is_some_and(|part| part == "super") {
            from.pop();
            rest = &rest[1..];
        }
        from.extend_from_slice(rest);
        self.found.insert(from);
    }

    fn take_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |part: &syn::Ident| [before, &[part.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.take_tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) => self.take(&with(&name.ident)),
            UseTree::Rename(name) => self.take(&with(&name.ident)),
            UseTree::Glob(_) => self.take(before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.take_tree(before, tree)),
        }
    }
}

impl<'a> Visit<'a> for Paths {
    fn visit_item(&mut self, item: &'a Item) {
        if let Item::Mod(module) = item
            && module.content.is_some()
            && module.ident == "tests"
        {
            return;
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.take_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.take(&parts);
        syn::visit::visit_path(self, path);
    }
}

#[test]
fn files_of_a_room_need_each_other_in_one_direction() {
    let sources = super::sources();
    let circles: Vec<String> = members()
        .iter()
        .flat_map(|member| {
            let imports = Imports::of(&folder(member).join("src"), &sources);
            imports.circles().iter().map(|circle| format!("{circle:?}")).collect::<Vec<_>>()
        })
        .collect();
    println!("FIGURE import_circles {}", circles.len());
    super::assert_none("files that import each other in a cycle", &circles);
}

#[test]
fn a_circle_is_found_through_use_lines_paths_and_groups() {
    let file = |name: &str, text: &str| (PathBuf::from("src").join(name), text.to_owned());
    let circle_of = |files: &[(PathBuf, String)]| {
        let imports = Imports::of(Path::new("src"), files);
        imports.circles().iter().map(|circle| circle.len()).collect::<Vec<_>>()
    };
    let two = file("b/two.rs", "use super::super::a::{One, Other as Third};");
    let one = |body: &str| file("a.rs", body);
    assert_eq!(circle_of(&[one("use crate::{c::C, b::two::Two};"), two.clone(), file("c.rs", "")]), [2]);
    assert_eq!(circle_of(&[one("fn f() { crate::b::two::f(); }"), two.clone()]), [2]);
    assert_eq!(circle_of(&[one("use crate::b; fn f() {}"), two.clone(), file("b/mod.rs", "mod two;")]), [0; 0]);
    // A cycle through tests does not count.
    assert_eq!(circle_of(&[one("#[cfg(test)]\nmod tests { use crate::b::two::Two; }"), two]), [0; 0]);
    let three = [one("use crate::b::B;"), file("b.rs", "use crate::c::C;"), file("c.rs", "use crate::a::A;")];
    assert_eq!(circle_of(&three), [3]);
}
