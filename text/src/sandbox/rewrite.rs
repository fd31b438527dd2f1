//! Rewriting of a template's source: each step whose work or result is not bounded by its own size becomes a filter of
//! `steps`, and raw text is printed like any other value. Nothing else changes: `a ~ b` becomes `a|__cat(b)`,
//! and an error still has the line number in the original source.
//!
//! Uses minijinja's parser, which is behind `unstable_machinery`: therefore `Cargo.toml` pins the exact version.

use minijinja::machinery::{
    Token, WhitespaceConfig,
    ast::{Expr, ForLoop, IfCond, Macro, Spanned, Stmt},
    parse, tokenize,
};

use crate::template_error::reason;

/// The maximum size of a template's source, in bytes. The longest of known models have 40 KiB.
pub(crate) const MAX_SOURCE_BYTES: usize = 256 << 10;

/// The maximum number of tokens in one tag: a chain of operators uses one stack frame for each.
const MAX_TAG_TOKENS: usize = 2000;

/// The maximum number of `elif` branches in a template: the parser nests them.
const MAX_ELIFS: usize = 200;

/// The maximum nesting depth of expressions and statements.
const MAX_NESTING: usize = 1000;

/// The name of the template in its environment.
pub(crate) const NAME: &str = "chat_template";

/// Whitespace control as in transformers.
pub(crate) const WHITESPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

/// Rewrites a template, or returns an error message for its author.
pub(crate) fn rewrite(source: &str) -> Result<String, String> {
    check_size(source)?;
    let parsed = parse(source, NAME, Default::default(), WHITESPACE);
    let tree = parsed.map_err(|error| reason(&error))?;
    let mut writer = Writer { source, out: String::with_capacity(2 * source.len()), line: 1, depth: 0 };
    writer.statement(&tree)?;
    Ok(writer.out)
}

fn check_size(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("it has {} bytes; {MAX_SOURCE_BYTES} are allowed", source.len()));
    }
    let (mut tokens, mut elifs) = (0, 0);
    for token in tokenize(source, false, Default::default(), WHITESPACE) {
        match token {
            Ok((Token::TemplateData(_) | Token::VariableStart | Token::BlockStart, _)) => tokens = 0,
            Ok((Token::Ident("elif"), _)) => elifs += 1,
            Ok(_) => tokens += 1,
            Err(_) => break, // the parser reports a better error
        }
        if tokens > MAX_TAG_TOKENS {
            return Err(format!("one of its tags has more than {MAX_TAG_TOKENS} tokens"));
        }
        if elifs > MAX_ELIFS {
            return Err(format!("it has more than {MAX_ELIFS} elif branches"));
        }
    }
    Ok(())
}

pub(super) type Written = Result<(), String>;

/// A template that is being rewritten.
pub(super) struct Writer<'s> {
    pub(super) source: &'s str,
    out: String,
    /// The line of `out` that is being written.
    pub(super) line: usize,
    depth: usize,
}

impl<'s> Writer<'s> {
    pub(super) fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Opens a tag, on its line in the original source.
    fn open(&mut self, tag: &str, line: usize) {
        self.put(tag);
        while self.line < line {
            self.out.push('\n');
            self.line += 1;
        }
        self.put(" ");
    }

    fn tag(&mut self, text: &str) {
        self.put("{% ");
        self.put(text);
        self.put(" %}");
    }

    fn body(&mut self, body: &[Stmt<'s>]) -> Written {
        body.iter().try_for_each(|statement| self.statement(statement))
    }

    pub(super) fn nested(&mut self, write: impl FnOnce(&mut Self) -> Written) -> Written {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err("it is nested too deep".into());
        }
        let written = write(self);
        self.depth -= 1;
        written
    }

    fn statement(&mut self, statement: &Stmt<'s>) -> Written {
        self.nested(|writer| writer.statement_within(statement))
    }

    fn statement_within(&mut self, statement: &Stmt<'s>) -> Written {
        match statement {
            Stmt::Template(template) => self.body(&template.children),
            Stmt::EmitRaw(raw) => {
                self.raw(raw.raw);
                Ok(())
            }
            Stmt::EmitExpr(emit) => {
                self.open("{{", line(emit));
                self.any(&emit.expr)?;
                self.put(" }}");
                Ok(())
            }
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::IfCond(condition) => {
                self.if_condition(condition, "if")?;
                self.tag("endif");
                Ok(())
            }
            Stmt::Set(set) => {
                self.open("{% set", line(set));
                self.target(&set.target, false)?;
                self.put(" = ");
                self.any(&set.expr)?;
                self.put(if has_attribute(&set.target) { "|__stored %}" } else { " %}" });
                Ok(())
            }
            Stmt::Do(act) => {
                self.open("{% do", line(act));
                self.call(&act.call)?;
                self.put(" %}");
                Ok(())
            }
            Stmt::Continue(_) => {
                self.tag("continue");
                Ok(())
            }
            Stmt::Break(_) => {
                self.tag("break");
                Ok(())
            }
            Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                Err("it includes another template, which is not supported".into())
            }
            block => self.block(block),
        }
    }

    /// Writes a tag with a body and an end tag.
    fn block(&mut self, block: &Stmt<'s>) -> Written {
        let (body, end) = match block {
            Stmt::WithBlock(with) => {
                self.open("{% with", line(with));
                for (i, (target, value)) in with.assignments.iter().enumerate() {
                    self.put(if i == 0 { "" } else { ", " });
                    self.target(target, true)?;
                    self.put(" = ");
                    self.any(value)?;
                }
                (&with.body, "endwith")
            }
            Stmt::SetBlock(set) => {
                self.open("{% set", line(set));
                self.target(&set.target, false)?;
                if let Some(filter) = &set.filter {
                    self.put(" | ");
                    self.any(filter)?;
                }
                (&set.body, "endset")
            }
            Stmt::AutoEscape(escape) => {
                self.open("{% autoescape", line(escape));
                self.any(&escape.enabled)?;
                (&escape.body, "endautoescape")
            }
            Stmt::FilterBlock(filtered) => {
                self.open("{% filter", line(filtered));
                self.any(&filtered.filter)?;
                (&filtered.body, "endfilter")
            }
            Stmt::Block(named) => {
                self.open("{% block", line(named));
                self.put(named.name);
                self.put(if named.required { " required" } else { "" });
                (&named.body, "endblock")
            }
            Stmt::Macro(declared) => {
                self.open("{% macro", line(declared));
                self.put(declared.name);
                self.parameters(declared)?;
                (&declared.body, "endmacro")
            }
            Stmt::CallBlock(called) => {
                self.open("{% call", line(called));
                self.parameters(&called.macro_decl)?;
                self.put(" ");
                self.call(&called.call)?;
                (&called.macro_decl.body, "endcall")
            }
            _ => return Err("it has a tag that is not supported".into()),
        };
        self.put(" %}");
        self.body(body)?;
        self.tag(end);
        Ok(())
    }

    fn raw(&mut self, text: &str) {
        self.put("{{ \"");
        for character in text.chars() {
            match character {
                '"' => self.put("\\\""),
                '\\' => self.put("\\\\"),
                '\n' => self.put("\\n"),
                '\r' => self.put("\\r"),
                other => self.out.push(other),
            }
        }
        self.put("\" }}");
    }

    fn for_loop(&mut self, each: &Spanned<ForLoop<'s>>) -> Written {
        self.open("{% for", line(each));
        self.target(&each.target, false)?;
        self.put(" in ");
        self.any(&each.iter)?;
        if let Some(filter) = &each.filter_expr {
            self.put(" if ");
            self.any(filter)?;
        }
        self.put(if each.recursive { " recursive %}" } else { " %}" });
        self.body(&each.body)?;
        if !each.else_body.is_empty() {
            self.tag("else");
            self.body(&each.else_body)?;
        }
        self.tag("endfor");
        Ok(())
    }

    fn if_condition(&mut self, condition: &Spanned<IfCond<'s>>, word: &str) -> Written {
        self.open(if word == "if" { "{% if" } else { "{% elif" }, line(condition));
        self.any(&condition.expr)?;
        self.put(" %}");
        self.body(&condition.true_body)?;
        match condition.false_body.as_slice() {
            [] => Ok(()),
            [Stmt::IfCond(next)] => self.nested(|writer| writer.if_condition(next, "elif")),
            body => {
                self.tag("else");
                self.body(body)
            }
        }
    }

    fn parameters(&mut self, declared: &Macro<'s>) -> Written {
        self.put("(");
        let plain = declared.args.len().saturating_sub(declared.defaults.len());
        for (i, name) in declared.args.iter().enumerate() {
            self.put(if i == 0 { "" } else { ", " });
            self.target(name, true)?;
            if let Some(default) = i.checked_sub(plain).and_then(|i| declared.defaults.get(i)) {
                self.put("=");
                self.any(default)?;
            }
        }
        self.put(")");
        Ok(())
    }

    /// Writes the target of an assignment. Nested lists of names are in parentheses.
    fn target(&mut self, target: &Expr<'s>, within: bool) -> Written {
        match target {
            Expr::List(list) => {
                self.put(if within { "(" } else { "" });
                for (i, item) in list.items.iter().enumerate() {
                    self.put(if i == 0 { "" } else { ", " });
                    self.nested(|writer| writer.target(item, true))?;
                }
                self.put(if list.items.len() == 1 { "," } else { "" });
                self.put(if within { ")" } else { "" });
                Ok(())
            }
            Expr::GetAttr(attribute) => {
                self.nested(|writer| writer.target(&attribute.expr, true))?;
                self.put(".");
                self.put(attribute.name);
                Ok(())
            }
            Expr::Var(name) => {
                self.put(name.id);
                Ok(())
            }
            _ => Err("it assigns to an expression that is not a name".into()),
        }
    }
}

fn line<T>(node: &Spanned<T>) -> usize {
    usize::from(node.span().start_line)
}

fn has_attribute(target: &Expr<'_>) -> bool {
    match target {
        Expr::GetAttr(_) => true,
        Expr::List(list) => list.items.iter().any(has_attribute),
        _ => false,
    }
}
