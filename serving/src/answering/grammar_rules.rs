//! The text of grammars, in llguidance's variant of Lark.
//!
//! If a call and an answer of a schema both start with a brace, the call is expressed as a schema too: the lexer is
//! greedy, so a call whose head were one literal would exclude an answer that starts alike.

use attune_domain::serve::{Form, ToolChoice, Tools};
use attune_text::{error::EncodeError, model::TextModel, tools::ToolFormat};
use llguidance::regex_to_lark;
use serde_json::{Value, json};

use crate::error::Failure;

/// The whitespace between JSON tokens: at most one space, so that no model fills its answer with it.
const WHITE_SPACE: &str = " ";

/// The allowed tool calls, as grammar rules.
pub(crate) struct Calls {
    /// `true` if the answer must be a call.
    required: bool,
    /// The rules `calls`, and `free`: text, or calls after text.
    rules: String,
}

impl Calls {
    /// Returns the rules of the calls, or `None` if calls are forbidden or need no grammar. They need one if a call is
    /// required, a tool is strict, or the rest of the answer is `bound` to a format.
    pub(crate) fn of(text: &TextModel, tools: &Tools, bound: bool) -> Result<Option<Self>, Failure> {
        let format = format_of(text)?;
        let required = matches!(tools.choice, ToolChoice::Required | ToolChoice::Named { .. });
        let strict = tools.definitions.iter().any(|tool| tool.strict);
        if tools.choice == ToolChoice::None || !(required || strict || bound) {
            return Ok(None);
        }
        let opening = text.tokenizer().id_of(format.opening()).filter(|id| text.tokenizer().is_special(*id));
        Ok(Some(Self { required, rules: call_rules(format, opening, tools) }))
    }
}

/// Returns the model's format of tool calls.
///
/// # Errors
/// [`Failure::Prompt`]: the model has no chat template.
pub(crate) fn format_of(text: &TextModel) -> Result<ToolFormat, Failure> {
    text.template().map(ToolFormat::of).ok_or(Failure::Prompt(EncodeError::NoTemplate))
}

/// Returns the grammar of an answer, or `None` if it is unconstrained.
pub(crate) fn grammar(form: &Form, calls: Option<&Calls>) -> Option<String> {
    let body = match form {
        Form::Free => None,
        Form::Json => Some(json_rule("body", &json!({"type": "object"}), true)),
        Form::Schema { schema, strict } => Some(json_rule("body", schema, *strict)),
        Form::Regex { pattern } => Some(format!("body: /{}/\n", regex_to_lark(without_anchors(pattern), ""))),
        // Alone, the grammar stays as it is, so that the lines in errors are its own.
        Form::Lark { definition } if calls.is_none() => return Some(definition.clone()),
        Form::Lark { definition } => Some(format!("body: %lark {{\n{definition}\n}}\n")),
        Form::Choice { texts } => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            Some(format!("body: CHOICE\nCHOICE: {}\n", texts.join(" | ")))
        }
    };
    let (start, rules) = match (body, calls) {
        (None, None) => return None,
        (Some(body), None) => ("body", body),
        (_, Some(calls)) if calls.required => ("calls", calls.rules.clone()),
        (Some(body), Some(calls)) => ("body | calls", format!("{body}{}", calls.rules)),
        (None, Some(calls)) => ("free", calls.rules.clone()),
    };
    Some(format!("start: {start}\n{rules}"))
}

/// Returns the rule for JSON of a schema. If `strict`, keywords that cannot be enforced are refused, else ignored.
fn json_rule(name: &str, schema: &Value, strict: bool) -> String {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({"allOf": [schema]}) };
    schema["x-guidance"] = json!({"whitespace_pattern": WHITE_SPACE, "lenient": !strict});
    format!("{name}: %json {schema}\n")
}

fn call_rules(format: ToolFormat, opening: Option<u32>, tools: &Tools) -> String {
    let wanted = tools.definitions.iter().enumerate().filter(|(_, tool)| tools.choice.admits(&tool.name));
    let (mut names, mut rules) = (Vec::new(), String::new());
    for (number, tool) in wanted {
        let any = json!({"type": "object"});
        let schema = tool.parameters.as_ref().unwrap_or(&any);
        if format.is_bare() {
            let call = call_schema(&tool.name, format.arguments_key(), schema);
            rules += &json_rule(&format!("call_{number}"), &call, tool.strict);
        } else {
            let head = format!("{{\"name\": {}, \"{}\": ", Value::from(tool.name.as_str()), format.arguments_key());
            rules += &format!("call_{number}: {} arguments_{number} \"}}\"\n", quoted(&head));
            rules += &json_rule(&format!("arguments_{number}"), schema, tool.strict);
        }
        names.push(format!("call_{number}"));
    }
    let open = opening.map_or_else(|| quoted(format.opening()), |id| format!("<[{id}]>"));
    // A tool that is requested by name is called once.
    let several = tools.parallel && !matches!(tools.choice, ToolChoice::Named { .. });
    let more = |rest: &str| if several { rest.to_owned() } else { String::new() };
    let calls = match format {
        ToolFormat::Hermes => {
            let marked = format!("marked: \"\\n\" call \"\\n\" {}\n", quoted(format.closing()));
            let rest = format!("marked{}", more(&format!(" (\"\\n\" {open} marked)*")));
            format!("{}{marked}", behind(format, opening, &open, &rest))
        }
        ToolFormat::Llama | ToolFormat::Generic => "calls: call\nfree: call | /(?s:[^{].*)/\n".to_owned(),
        ToolFormat::Mistral => behind(format, opening, &open, &format!("\"[\" call{} \"]\"", more(" (\", \" call)*"))),
    };
    format!("{calls}call: {}\n{rules}", names.join(" | "))
}

/// Returns the schema of a whole call.
fn call_schema(name: &str, key: &str, arguments: &Value) -> Value {
    let mut arguments = arguments.clone();
    let root = format!("#/properties/{key}");
    move_references(&mut arguments, &root);
    json!({
        "type": "object",
        "properties": {"name": {"const": name}, key: arguments},
        "required": ["name", key],
        "additionalProperties": false,
    })
}

/// Rewrites a schema's references to its own parts for a larger schema, in which it is located at `root`.
fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" && (target == "#" || target.starts_with("#/")) => {
                        target.replace_range(..1, root);
                    }
                    _ if matches!(name.as_str(), "const" | "enum" | "default" | "examples") => {}
                    _ => move_references(value, root),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, root)),
        _ => {}
    }
}

/// Returns the rules of calls that follow `open`, alone or after text. Lexemes are greedy, so an opening that is plain
/// text ends the lexeme of the preceding text.
fn behind(format: ToolFormat, opening: Option<u32>, open: &str, rest: &str) -> String {
    let calls = format!("calls: {open} {rest}\n");
    if opening.is_some() {
        return format!("{calls}free: TEXT | {open} {rest} | TEXT {open} {rest}\nTEXT: /(?s:.+)/\n");
    }
    let mark = pattern(format.opening());
    format!(
        "{calls}free: TEXT | opened {rest}\nopened[lazy]: /(?s:.*){mark}/\n\
         TEXT: /(?s:.+)/ & ~/(?s:.*){mark}(?s:.*)/\n"
    )
}

/// Removes the anchors around a regular expression, which have no effect, since the whole answer has to match.
fn without_anchors(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    match pattern.strip_suffix('$') {
        Some(rest) if rest.chars().rev().take_while(|c| *c == '\\').count() % 2 == 0 => rest,
        _ => pattern,
    }
}

/// Quotes a text as a literal of the grammar. Its lexer takes JSON's strings, but no DEL.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Escapes a text as a regular expression that matches only it.
fn pattern(text: &str) -> String {
    let escape =
        |c: char| if c.is_alphanumeric() || matches!(c, '_' | '<' | '>') { c.to_string() } else { format!("\\{c}") };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_become_rules() {
        let of = |form: Form| grammar(&form, None).unwrap();
        let regex = |pattern: &str| of(Form::Regex { pattern: pattern.into() });
        assert_eq!(regex("^a/b$"), "start: body\nbody: /a\\/b/\n");
        assert_eq!(regex(r"a\$"), "start: body\nbody: /a\\$/\n");
        let texts = vec!["a\"b".into(), "\u{7f}".into()];
        let choice = "start: body\nbody: CHOICE\nCHOICE: \"a\\\"b\" | \"\\u007f\"\n";
        assert_eq!(of(Form::Choice { texts }), choice);
        let lark = Form::Lark { definition: "start: \"a\"".into() };
        assert_eq!(of(lark.clone()), "start: \"a\"");
        let calls = Calls { required: false, rules: "calls: \"x\"\n".into() };
        let nested = grammar(&lark, Some(&calls)).unwrap();
        assert_eq!(nested, "start: body | calls\nbody: %lark {\nstart: \"a\"\n}\ncalls: \"x\"\n");
    }
}
