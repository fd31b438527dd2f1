//! The sandbox of untrusted chat templates. minijinja only limits the number of steps: a single step may build a
//! gigabyte (`'a' * n`, `x ~ x`, `'%999999999d' | format(1)`), compare or print a list that contains itself 2^60 times,
//! or never terminate (`'a'.count('')`).
//!
//! `rewrite` turns a template's source into one in which every such step is one of our filters; `steps` has those
//! filters; `meter` has their budget. The modules are in reading order.

/// The limits of one rendering.
pub(crate) mod meter;

/// The limits of values: expanded size and depth.
pub(crate) mod extent;

/// Rewriting of a template's source.
pub(crate) mod rewrite;

/// Rewriting of its expressions.
mod expressions;

/// The filters in rewritten templates.
pub(crate) mod steps;

/// Filters, methods and functions of minijinja whose result may be much larger than their arguments.
pub(crate) mod builtins;
