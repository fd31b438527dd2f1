//! Rewriting of a template's expressions: the part of `rewrite` that decides which operations become filters.

use minijinja::machinery::ast::{
    BinOp, BinOpKind, Call, CallArg, CallType, CompareOpKind, Const, Expr, Filter, IfExpr, Spanned, UnaryOpKind,
};

use super::rewrite::{Writer, Written};

/// Tests that check a value's kind only.
const CHEAP_TESTS: [&str; 14] = [
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "iterable",
    "sequence",
    "number",
    "boolean",
    "true",
    "false",
    "integer",
    "float",
    "divisibleby",
];

/// Functions whose result is small, or is iterated step by step.
const CHEAP_FUNCTIONS: [&str; 5] = ["range", "namespace", "raise_exception", "loop", "super"];

impl<'s> Writer<'s> {
    /// Writes an expression that an attribute, an index or a call may follow.
    fn atom(&mut self, expression: &Expr<'s>) -> Written {
        if is_chain(expression) {
            self.put("(");
            self.any(expression)?;
            self.put(")");
            return Ok(());
        }
        self.any(expression)
    }

    pub(super) fn any(&mut self, expression: &Expr<'s>) -> Written {
        self.nested(|writer| writer.expression(expression))
    }

    fn expression(&mut self, expression: &Expr<'s>) -> Written {
        match expression {
            Expr::Var(name) => self.put(name.id),
            Expr::Const(constant) => self.constant(constant)?,
            Expr::GetAttr(attribute) => {
                self.atom(&attribute.expr)?;
                self.put(".");
                self.put(attribute.name);
            }
            Expr::GetItem(item) => {
                self.atom(&item.expr)?;
                self.put("[");
                self.any(&item.subscript_expr)?;
                self.put("]");
                self.put(if is_chain(expression) { "|__timed" } else { "" });
            }
            Expr::Slice(slice) => {
                self.atom(&slice.expr)?;
                self.put("[");
                self.bound(slice.start.as_ref())?;
                self.put(":");
                self.bound(slice.stop.as_ref())?;
                self.put(":");
                self.bound(slice.step.as_ref())?;
                self.put("]|__kept");
            }
            Expr::UnaryOp(operation) => {
                self.put(match operation.op {
                    UnaryOpKind::Not => "(not ",
                    UnaryOpKind::Neg => "(-",
                });
                self.any(&operation.expr)?;
                self.put(")");
            }
            Expr::BinOp(operation) => self.operation(expression, operation)?,
            Expr::Compare(compare) => {
                self.put("(");
                self.any(&compare.expr)?;
                for next in &compare.ops {
                    self.put(comparison(next.op));
                    self.any(&next.expr)?;
                }
                self.put(")|__timed");
            }
            Expr::IfExpr(choice) => self.choice(choice)?,
            Expr::Filter(filter) => self.filter(filter)?,
            Expr::Test(test) => {
                self.put("(");
                self.any(&test.expr)?;
                self.put(" is ");
                self.put(test.name);
                self.arguments(&test.args)?;
                self.put(if is_chain(expression) { ")|__timed" } else { ")" });
            }
            Expr::Call(call) => {
                self.call(call)?;
                self.put(if is_chain(expression) { "|__kept" } else { "" });
            }
            Expr::List(_) | Expr::Map(_) => self.collection(expression)?,
        }
        Ok(())
    }

    fn choice(&mut self, choice: &IfExpr<'s>) -> Written {
        self.put("(");
        self.any(&choice.true_expr)?;
        self.put(" if ");
        self.any(&choice.test_expr)?;
        if let Some(otherwise) = &choice.false_expr {
            self.put(" else ");
            self.any(otherwise)?;
        }
        self.put(")");
        Ok(())
    }

    /// Writes a list or a dict.
    fn collection(&mut self, expression: &Expr<'s>) -> Written {
        match expression {
            Expr::List(list) => {
                self.put("[");
                for (i, item) in list.items.iter().enumerate() {
                    self.put(if i == 0 { "" } else { ", " });
                    self.any(item)?;
                }
                self.put("]");
            }
            Expr::Map(map) => {
                self.put("{ ");
                for (i, (key, value)) in map.keys.iter().zip(&map.values).enumerate() {
                    self.put(if i == 0 { "" } else { ", " });
                    self.any(key)?;
                    self.put(": ");
                    self.any(value)?;
                }
                self.put(" }");
            }
            _ => {}
        }
        self.put(if is_chain(expression) { "|__kept" } else { "" });
        Ok(())
    }

    /// Writes a literal as in the source.
    fn constant(&mut self, constant: &Spanned<Const>) -> Written {
        let span = constant.span();
        let text = self.source.get(span.start_offset as usize..span.end_offset as usize);
        let text = text.ok_or("it has a literal that cannot be read")?;
        self.line += text.matches('\n').count();
        self.put(text);
        self.put(" ");
        Ok(())
    }

    fn bound(&mut self, bound: Option<&Expr<'s>>) -> Written {
        bound.map_or(Ok(()), |bound| self.any(bound))
    }

    fn operation(&mut self, whole: &Expr<'s>, operation: &BinOp<'s>) -> Written {
        if let Some(step) = step(operation.op) {
            self.any(&operation.left)?;
            self.put(step);
            self.put("(");
            self.any(&operation.right)?;
            self.put(")");
            return Ok(());
        }
        self.put("(");
        self.operands(operation)?;
        self.put(if is_chain(whole) { ")|__timed" } else { ")" });
        Ok(())
    }

    /// Writes the operands of a chain of the same operator within one pair of parentheses: the parser counts nested
    /// parentheses as nesting.
    fn operands(&mut self, operation: &BinOp<'s>) -> Written {
        match &operation.left {
            Expr::BinOp(left) if is_logic(left.op) && operator(left.op) == operator(operation.op) => {
                self.nested(|writer| writer.operands(left))?;
            }
            left => self.any(left)?,
        }
        self.put(operator(operation.op));
        self.any(&operation.right)
    }

    fn filter(&mut self, filter: &Filter<'s>) -> Written {
        if let Some(value) = &filter.expr {
            self.any(value)?;
            self.put("|");
        }
        self.put(filter.name);
        self.arguments(&filter.args)?;
        self.put("|__kept");
        Ok(())
    }

    pub(super) fn call(&mut self, call: &Call<'s>) -> Written {
        self.atom(&call.expr)?;
        self.put("(");
        self.listed(&call.args)?;
        self.put(")");
        Ok(())
    }

    fn arguments(&mut self, arguments: &[CallArg<'s>]) -> Written {
        if !arguments.is_empty() {
            self.put("(");
            self.listed(arguments)?;
            self.put(")");
        }
        Ok(())
    }

    fn listed(&mut self, arguments: &[CallArg<'s>]) -> Written {
        for (i, argument) in arguments.iter().enumerate() {
            self.put(if i == 0 { "" } else { ", " });
            let value = match argument {
                CallArg::Pos(value) => value,
                CallArg::PosSplat(value) => {
                    self.put("*");
                    value
                }
                CallArg::KwargSplat(value) => {
                    self.put("**");
                    value
                }
                CallArg::Kwarg(name, value) => {
                    self.put(name);
                    self.put("=");
                    value
                }
            };
            self.any(value)?;
        }
        Ok(())
    }
}

/// Returns whether an expression is written with a filter at its end.
fn is_chain(expression: &Expr<'_>) -> bool {
    match expression {
        Expr::Var(_) | Expr::Const(_) | Expr::GetAttr(_) | Expr::UnaryOp(_) | Expr::IfExpr(_) => false,
        Expr::Slice(_) | Expr::Filter(_) | Expr::Compare(_) => true,
        // The key of a dict, or an index up to 1000, is cheap.
        Expr::GetItem(item) => match &item.subscript_expr {
            Expr::Const(key) => key.value.as_str().is_none() && key.value.as_usize().is_none_or(|index| index > 1000),
            _ => true,
        },
        Expr::BinOp(operation) => {
            let short = |side: &Expr<'_>| matches!(side, Expr::Const(_));
            match operation.op {
                BinOpKind::Add | BinOpKind::Mul | BinOpKind::Concat => true,
                BinOpKind::In => !is_constant(&operation.right),
                BinOpKind::Eq | BinOpKind::Ne | BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte => {
                    !short(&operation.left) && !short(&operation.right)
                }
                _ => false,
            }
        }
        Expr::Test(test) => !CHEAP_TESTS.contains(&test.name),
        Expr::Call(call) => match call.identify_call() {
            CallType::Function(name) => !CHEAP_FUNCTIONS.contains(&name),
            CallType::Block(_) => false,
            CallType::Method(..) | CallType::Object(_) => true,
        },
        Expr::List(_) | Expr::Map(_) => !is_constant(expression),
    }
}

fn is_constant(expression: &Expr<'_>) -> bool {
    match expression {
        Expr::Const(_) => true,
        Expr::List(list) => list.items.iter().all(|item| matches!(item, Expr::Const(_))),
        Expr::Map(map) => map.keys.iter().chain(&map.values).all(|item| matches!(item, Expr::Const(_))),
        _ => false,
    }
}

const fn is_logic(operation: BinOpKind) -> bool {
    matches!(operation, BinOpKind::ScAnd | BinOpKind::ScOr)
}

fn step(operation: BinOpKind) -> Option<&'static str> {
    match operation {
        BinOpKind::Concat => Some("|__cat"),
        BinOpKind::Add => Some("|__add"),
        BinOpKind::Mul => Some("|__mul"),
        _ => None,
    }
}

const fn operator(operation: BinOpKind) -> &'static str {
    match operation {
        BinOpKind::Eq => " == ",
        BinOpKind::Ne => " != ",
        BinOpKind::Lt => " < ",
        BinOpKind::Lte => " <= ",
        BinOpKind::Gt => " > ",
        BinOpKind::Gte => " >= ",
        BinOpKind::ScAnd => " and ",
        BinOpKind::ScOr => " or ",
        BinOpKind::Sub => " - ",
        BinOpKind::Div => " / ",
        BinOpKind::FloorDiv => " // ",
        BinOpKind::Rem => " % ",
        BinOpKind::Pow => " ** ",
        BinOpKind::In => " in ",
        BinOpKind::Add => " + ",
        BinOpKind::Mul => " * ",
        BinOpKind::Concat => " ~ ",
    }
}

const fn comparison(operation: CompareOpKind) -> &'static str {
    match operation {
        CompareOpKind::Eq => " == ",
        CompareOpKind::Ne => " != ",
        CompareOpKind::Lt => " < ",
        CompareOpKind::Lte => " <= ",
        CompareOpKind::Gt => " > ",
        CompareOpKind::Gte => " >= ",
        CompareOpKind::In => " in ",
        CompareOpKind::NotIn => " not in ",
    }
}
