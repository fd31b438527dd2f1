//! The bounds of a Lark grammar that a request defines, checked before llguidance compiles it.
//!
//! llguidance compiles rules by recursion, so its depth is bounded here, by the number of rules and the nesting within
//! one. Its extensions are refused: special tokens, options, nested grammars and conditions.

/// The maximum number of rules and terminals.
const MOST_RULES: usize = 256;
/// The maximum nesting of parentheses and brackets.
const NESTING: usize = 16;
/// The statements that are allowed.
const STATEMENTS: [&str; 2] = ["import", "ignore"];

/// A position in a grammar's text.
struct Scanner<'a> {
    rest: std::str::Chars<'a>,
    /// The last word.
    word: String,
    rules: usize,
    /// The open parentheses, brackets and braces.
    open: Vec<char>,
}

/// Checks the grammar.
///
/// # Errors
/// The reason why it is refused.
pub(crate) fn check(definition: &str) -> Result<(), String> {
    let mut scanner = Scanner { rest: definition.chars(), word: String::new(), rules: 0, open: Vec::new() };
    while let Some(next) = scanner.rest.next() {
        scanner.take(next)?;
    }
    match scanner.open.pop() {
        Some(open) => Err(format!("a '{open}' is not closed")),
        None => Ok(()),
    }
}

impl Scanner<'_> {
    fn take(&mut self, next: char) -> Result<(), String> {
        match next {
            '"' => self.skip_to('"')?,
            '/' if self.rest.as_str().starts_with('/') => self.skip_line(),
            '#' => self.skip_line(),
            '/' => self.skip_to('/')?,
            '%' => self.statement()?,
            '<' => return Err("special tokens (<…>) are not supported".into()),
            '@' => return Err("references to other grammars (@…) are not supported".into()),
            '=' if self.word == "temperature" => return Err("the attribute 'temperature' is not supported".into()),
            ':' => {
                self.rules += 1;
                if self.rules > MOST_RULES {
                    return Err(format!("it has more than {MOST_RULES} rules"));
                }
            }
            '(' | '[' | '{' => {
                self.open.push(next);
                if self.open.len() > NESTING {
                    return Err(format!("it is nested more than {NESTING} deep"));
                }
            }
            ')' => self.close('(', next)?,
            ']' => self.close('[', next)?,
            '}' => self.close('{', next)?,
            _ => {}
        }
        if next.is_alphanumeric() || next == '_' {
            self.word.push(next);
        } else if !next.is_whitespace() {
            self.word.clear();
        }
        Ok(())
    }

    fn close(&mut self, wanted: char, close: char) -> Result<(), String> {
        if self.open.pop() == Some(wanted) { Ok(()) } else { Err(format!("a '{close}' closes nothing")) }
    }

    /// Skips the rest of a string or of a regular expression.
    fn skip_to(&mut self, end: char) -> Result<(), String> {
        while let Some(next) = self.rest.next() {
            if next == '\\' {
                self.rest.next();
            } else if next == end {
                return Ok(());
            }
        }
        Err(format!("a text that begins with {end} does not end"))
    }

    /// Skips a comment, except for the newline after it.
    fn skip_line(&mut self) {
        let rest = self.rest.as_str();
        self.rest = rest[rest.find('\n').unwrap_or(rest.len())..].chars();
    }

    fn statement(&mut self) -> Result<(), String> {
        let rest = self.rest.as_str();
        let name = &rest[..rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len())];
        if STATEMENTS.contains(&name) {
            return Ok(());
        }
        let name: String = name.chars().take(20).collect();
        Err(format!("the statement %{name} is not supported; allowed: %import, %ignore"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammars_of_rules_terminals_and_imports_pass() {
        for definition in [
            "start: \"a\"",
            "start: (\"a\" | B)~2..3 [c]\nB: /[<@%:({]+\\//\nc: \"<%:\\\"}\" // a comment: (((\n# another <\n",
            "%import common.INT\n%ignore / +/\nstart: INT{1,3}\nstop[stop=\"x\", max_tokens=3]: /.*/",
            "temperature: \"a\"\nstart: temperature",
        ] {
            assert_eq!(check(definition), Ok(()), "{definition}");
        }
    }

    #[test]
    fn what_goes_around_the_bounds_is_refused() {
        for (definition, why) in [
            ("start: <|im_end|>", "special tokens"),
            ("start: <[7]>", "special tokens"),
            ("start: @other", "references"),
            ("%llguidance {\"allow_invalid_utf8\": true}\nstart: /./", "%llguidance"),
            ("start: %json {\"x-guidance\": {}}", "%json"),
            ("start: %lark { start: \"a\" }", "%lark"),
            ("start[temperature = 0.5]: /a/", "temperature"),
            ("start: \"a\" }\nother: {", "closes nothing"),
            ("start: (\"a\"", "not closed"),
            ("start: \"a", "does not end"),
            ("start: (\"a\"]", "closes nothing"),
        ] {
            let refused = check(definition).unwrap_err();
            assert!(refused.contains(why), "{definition}: {refused}");
        }
    }

    #[test]
    fn limit_of_rules_and_nesting_of_a_grammar() {
        let rules = |count: usize| (0..count).map(|at| format!("r{at}: \"a\"\n")).collect::<String>();
        assert!(check(&rules(256)).is_ok() && check(&rules(257)).unwrap_err().contains("256 rules"));
        let nested = |depth: usize| format!("start: {}\"a\"{}", "(".repeat(depth), ")".repeat(depth));
        assert!(check(&nested(16)).is_ok() && check(&nested(17)).unwrap_err().contains("16 deep"));
    }
}
