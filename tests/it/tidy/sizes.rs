//! The lengths of functions and files, except those of tests, and the number of files in a folder.

use std::{collections::BTreeMap, path::PathBuf};

use syn::{spanned::Spanned, visit::Visit};

/// A function's name and its number of lines, from the signature to the closing brace.
struct Function {
    name: String,
    lines: usize,
}

/// Returns the functions of a file that have a body.
fn functions(file: &syn::File) -> Vec<Function> {
    let mut found = Functions(Vec::new());
    found.visit_file(file);
    found.0
}

struct Functions(Vec<Function>);

impl Functions {
    fn take(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let lines = block.span().end().line - signature.span().start().line + 1;
        self.0.push(Function { name: signature.ident.to_string(), lines });
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if module.ident != "tests" {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.take(&function.sig, &function.block);
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.take(&function.sig, &function.block);
        syn::visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.take(&function.sig, block);
        }
        syn::visit::visit_trait_item_fn(self, function);
    }
}

/// The maximum number of lines of a file, without its tests.
const MAX_FILE_LINES: usize = 500;
/// The maximum number of lines of a function.
const MAX_FUNCTION_LINES: usize = 68;
/// The maximum of the median number of lines of all functions.
const MEDIAN_FUNCTION_LINES: usize = 12;
/// The maximum of the 90th percentile of the number of lines of all files.
const P90_FILE_LINES: usize = 300;
/// The maximum number of files in a folder.
const MAX_FOLDER: usize = 25;
/// The number of files with `unsafe` code: the calls into C, and the thread pool that runs them.
const UNSAFE_FILES: usize = 2;

/// Returns the source files, except those of tests.
fn product() -> Vec<(PathBuf, String)> {
    let is_product = |path: &PathBuf| {
        let within = path.strip_prefix(super::root()).unwrap();
        within.iter().any(|part| part == "src")
            && !within.iter().skip(1).any(|part| part == "tests" || part == "tests.rs")
    };
    super::sources().into_iter().filter(|(path, _)| is_product(path)).collect()
}

#[test]
fn functions_are_short() {
    let mut lengths: Vec<(usize, String)> = product()
        .iter()
        .flat_map(|(path, text)| {
            let file = syn::parse_file(text).unwrap();
            let found = functions(&file);
            found
                .into_iter()
                .map(|found| (found.lines, format!("{}: {}", path.display(), found.name)))
                .collect::<Vec<_>>()
        })
        .collect();
    lengths.sort();
    let median = lengths[lengths.len() / 2].0;
    let longest = lengths.last().unwrap().0;
    println!("FIGURE median_function_lines {median}");
    println!("FIGURE longest_function {longest}");
    let long: Vec<String> = lengths
        .into_iter()
        .filter(|(lines, _)| *lines > MAX_FUNCTION_LINES)
        .map(|(lines, name)| format!("{name}: {lines}"))
        .collect();
    super::assert_none("functions of more than 68 lines", &long);
    assert!(median <= MEDIAN_FUNCTION_LINES, "half of all functions have {median} lines and more");
}

#[test]
fn files_are_short() {
    let mut lengths: Vec<(usize, PathBuf)> =
        product().into_iter().map(|(path, text)| (super::without_tests(&text).lines().count(), path)).collect();
    lengths.sort();
    let p90 = lengths[lengths.len() * 9 / 10].0;
    println!("FIGURE p90_file_lines {p90}");
    assert!(p90 <= P90_FILE_LINES, "one file in ten has {p90} lines and more");
    let long: Vec<String> = super::sources()
        .iter()
        .map(|(path, text)| (path, super::without_tests(text).lines().count()))
        .filter(|(_, lines)| *lines > MAX_FILE_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    super::assert_none("files of more than 500 lines", &long);
}

#[test]
fn folders_are_small() {
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (path, _) in super::sources() {
        *folders.entry(path.parent().unwrap().to_owned()).or_default() += 1;
    }
    println!("FIGURE largest_folder {}", folders.values().max().unwrap());
    let large: Vec<String> = folders
        .iter()
        .filter(|(_, files)| **files > MAX_FOLDER)
        .map(|(folder, files)| format!("{}: {files} files", folder.display()))
        .collect();
    super::assert_none("folders of more than 25 files", &large);
}

#[test]
fn unsafe_code_is_in_few_files() {
    let found: Vec<String> = product()
        .iter()
        .filter(|(_, text)| {
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|code| text.contains(code))
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    println!("FIGURE unsafe_files {}", found.len());
    assert_eq!(found.len(), UNSAFE_FILES, "{found:#?}");
}
