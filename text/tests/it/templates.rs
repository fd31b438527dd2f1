//! Chat templates against transformers: `testdata/make_templates.py` wrote what it renders.

use std::collections::BTreeMap;

use attune_text::error::EncodeError;
use attune_text::template::{ChatTemplate, Turn};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    formats: Vec<Format>,
}

#[derive(Deserialize)]
struct Format {
    name: String,
    template: String,
    special: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    tools: Option<serde_json::Value>,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
    name: Option<String>,
}

#[test]
fn every_format_renders_as_transformers_renders_it() {
    let fixture: Fixture = serde_json::from_str(include_str!("../../testdata/templates.json")).unwrap();
    let mut different = Vec::new();
    let mut compared = 0;
    for format in &fixture.formats {
        let template = ChatTemplate::new(&format.template, format.special.clone()).unwrap();
        for (i, case) in format.cases.iter().enumerate() {
            let turns: Vec<Turn<'_>> = case
                .messages
                .iter()
                .map(|m| Turn { name: m.name.as_deref(), ..Turn::new(&m.role, &m.content) })
                .collect();
            let rendered = template.render(&turns, case.add_generation_prompt, case.tools.as_ref());
            let wanted = match (&case.text, &case.error) {
                (Some(text), _) => Ok(text.clone()),
                (None, error) => Err(EncodeError::Template(error.clone().unwrap_or_default())),
            };
            compared += 1;
            if rendered != wanted {
                different.push(format!("{} case {i}:\n  got    {rendered:?}\n  wanted {wanted:?}", format.name));
            }
        }
    }
    assert!(different.is_empty(), "{} of {compared} differ:\n{}", different.len(), different.join("\n"));
    assert!(compared > 150);
}
