//! Chat templates compared with transformers: `testdata/make_templates.py` wrote the expected output.

use std::collections::BTreeMap;

use attune_domain::template_kwargs::TemplateKwargs;
use attune_text::error::EncodeError;
use attune_text::template::{ChatTemplate, RenderSettings, Turn};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::tiny::AT;

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
    tools: Option<Value>,
    #[serde(default)]
    kwargs: Map<String, Value>,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<String>,
    name: Option<String>,
    tool_calls: Option<Value>,
    tool_call_id: Option<String>,
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
                .map(|m| Turn {
                    role: &m.role,
                    content: m.content.as_deref(),
                    name: m.name.as_deref(),
                    tool_calls: m.tool_calls.as_ref(),
                    tool_call_id: m.tool_call_id.as_deref(),
                })
                .collect();
            let kwargs = TemplateKwargs::check(&case.kwargs).unwrap();
            let settings = RenderSettings { tools: case.tools.as_ref(), variables: Some(kwargs.as_map()), ..AT };
            let rendered = template.render(&turns, case.add_generation_prompt, settings);
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
    assert!(compared > 250);
}

#[derive(Deserialize)]
struct Printed {
    value: serde_json::Value,
    str: String,
    repr_in_list: String,
    json: String,
    json_ascii: String,
}

#[derive(Deserialize)]
struct PrintedTable {
    rows: Vec<Printed>,
}

#[test]
fn values_are_printed_as_python_prints_them() {
    const SOURCE: &str = "{{ tools[0] }}\u{1}{{ tools }}\u{1}{{ tools[0] | tojson }}\u{1}\
                          {{ tools[0] | tojson(ensure_ascii=true) }}\u{1}{{ '' ~ tools[0] }}\u{1}\
                           {{ tools[0] | string }}\u{1}\
                          {{ tools | join }}\u{1}{% set x %}{{ tools[0] }}{% endset %}{{ x }}";
    let template = ChatTemplate::new(SOURCE, BTreeMap::new()).unwrap();
    let table: PrintedTable = serde_json::from_str(include_str!("../../testdata/numbers.json")).unwrap();
    for row in &table.rows {
        let tools = serde_json::json!([row.value]);
        let rendered = template.render(&[], false, RenderSettings { tools: Some(&tools), ..AT }).unwrap();
        let wanted = [&row.str, &row.repr_in_list, &row.json, &row.json_ascii, &row.str, &row.str, &row.str, &row.str];
        let wanted: Vec<&str> = wanted.iter().map(|text| text.as_str()).collect();
        assert_eq!(rendered.split('\u{1}').collect::<Vec<_>>(), wanted, "{}", row.value);
    }
    assert!(table.rows.len() > 40);
}

#[test]
fn what_a_template_computes_is_printed_as_python_prints_it() {
    for (source, wanted) in [
        (
            "{{ 1.0 }} {{ 1e16 }} {{ -0.0 }} {{ 2 ** 70 }} {{ 3 / 2 }} {{ 4 / 2 }}",
            "1.0 1e+16 -0.0 1180591620717411303424 1.5 2.0",
        ),
        ("{% set i = 1e308 * 10 %}{{ i }} {{ -i }} {{ i - i }} {{ [i, i - i] }}", "inf -inf nan [inf, nan]"),
        (
            "{% set i = 1e308 * 10 %}{{ i | tojson }} {{ (-i) | tojson }} {{ (i - i) | tojson }}",
            "Infinity -Infinity NaN",
        ),
        (
            "{{ 'a' ~ true ~ none ~ 1.0 }} {{ true + 1 }} {{ 'ab' * 2 }}{{ [1] * 2 }}{{ [1] + [2.0] }}",
            "aTrueNone1.0 2 abab[1, 1][1, 2.0]",
        ),
        ("{{ {1.5: 1, 2: 2} | tojson }}", r#"{"1.5": 1, "2": 2}"#),
    ] {
        let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
        assert_eq!(template.render(&[], false, AT).unwrap(), wanted, "{source}");
    }
}
