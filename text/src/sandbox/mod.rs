//! What keeps a stranger's template within bounds. minijinja counts steps and nothing else: a single step may build a
//! gigabyte (`'a' * n`, `x ~ x`, `'%999999999d' | format(1)`), compare or print a list that holds itself two to the
//! sixtieth times over, or loop for ever (`'a'.count('')`).
//!
//! [`rewrite`] turns a template's source into one in which every such step is a filter of ours; [`steps`] are those
//! filters; [`meter`] is what they draw on. Read in this order.

/// What one rendering may use.
pub(crate) mod meter;

/// Values measured: how large they are written out, and how deep.
pub(crate) mod extent;

/// The source of a template, rewritten.
pub(crate) mod rewrite;

/// Its expressions.
mod expressions;

/// The filters that a rewritten source calls.
pub(crate) mod steps;

/// Filters, methods and functions of minijinja whose result may be much larger than what they are given.
pub(crate) mod builtins;
