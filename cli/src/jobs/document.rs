//! A job as a file: YAML or JSON in the API's format, or a Ludwig LLM config, which is mapped with a report.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::dataset_path::local;
use crate::{
    error::{CliError, Result, read_named},
    ludwig::{map, rows::Recipe},
    output::note,
};

/// The content of a job file.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// The request's body.
    pub(super) body: Map<String, Value>,
    /// The conversion of a table's rows to rows of prompt and completion; only for a Ludwig config.
    pub(super) recipe: Option<Recipe>,
}

/// Reads a file (`-`: standard input). Prints the mapping of a Ludwig config's keys to stderr.
///
/// # Errors
/// [`CliError::Usage`]: neither YAML nor JSON, or a Ludwig config with keys that are not supported.
/// [`CliError::Failed`]: the file cannot be read.
pub(super) fn read(path: &Path) -> Result<Document> {
    let (name, text) = if path == Path::new("-") {
        let read = std::io::read_to_string(std::io::stdin());
        ("standard input".into(), read.map_err(|e| CliError::Failed(format!("cannot read standard input: {e}")))?)
    } else {
        let text = String::from_utf8(read_named(path)?);
        let name = path.display().to_string();
        (name.clone(), text.map_err(|_| CliError::Usage(format!("{name} is not UTF-8 text")))?)
    };
    let mut body = parse(&name, &text)?;
    // Editors read `$schema`; the API does not.
    body.shift_remove("$schema");
    if !map::is_ludwig(&body) {
        return Ok(Document { body, recipe: None });
    }
    let mapping = map::map(body);
    note(&format!("{name} is a Ludwig config:\n\n{}", mapping.report));
    let refused = mapping.report.refused();
    if refused.is_empty() {
        return Ok(Document { body: mapping.body, recipe: mapping.recipe });
    }
    let message = format!(
        "{name}: {} cannot be mapped (see above). Remove the keys to continue without them.",
        refused.join(", ")
    );
    Err(CliError::Usage(message))
}

/// Parses a JSON object or a YAML mapping.
fn parse(name: &str, text: &str) -> Result<Map<String, Value>> {
    if text.trim_start().starts_with('{')
        && let Ok(body) = serde_json::from_str(text)
    {
        return Ok(body);
    }
    serde_saphyr::from_str(text)
        .map_err(|e| CliError::Usage(format!("{name} is neither a YAML mapping nor a JSON object: {e}")))
}

/// Writes the dataset files of a Ludwig config's rows, and sets their paths in the body.
///
/// # Errors
/// [`CliError::Usage`]: no table is set, or it lacks a column that the config names.
pub(super) fn make_rows(body: &mut Map<String, Value>, recipe: &Recipe) -> Result<()> {
    let table = named_table(body, "training_file")?;
    let table = table.ok_or_else(|| {
        CliError::Usage(
            "training_file is missing: a Ludwig config names no data. Set the table with --training-file PATH.".into(),
        )
    })?;
    let made = recipe.make(&table)?;
    note(&format!("{}: {} training rows", made.training.0.display(), made.training.1));
    let mut validation = made.validation;
    if let Some(own) = named_table(body, "validation_file")? {
        if validation.is_some() {
            let twice = "preprocessing.split and --validation-file both define validation rows. Use one of them.";
            return Err(CliError::Usage(twice.into()));
        }
        validation = Some(recipe.unsplit().make(&own)?.training);
    }
    if made.left_out > 0 {
        note(&format!("{} rows are left out, as preprocessing requires", made.left_out));
    }
    body.insert("training_file".into(), path_value(&made.training.0));
    match validation {
        Some((path, rows)) => {
            note(&format!("{}: {rows} validation rows", path.display()));
            body.insert("validation_file".into(), path_value(&path));
        }
        None => {
            let trainer = body.get_mut("trainer").and_then(Value::as_object_mut);
            if trainer.is_some_and(|trainer| trainer.shift_remove("eval_every_steps").is_some()) {
                note("there are no validation rows: trainer.eval_every_steps is left out");
            }
        }
    }
    Ok(())
}

fn named_table(body: &Map<String, Value>, field: &str) -> Result<Option<PathBuf>> {
    let Some(named) = body.get(field).and_then(Value::as_str) else { return Ok(None) };
    let path = local(named).ok_or_else(|| {
        CliError::Usage(format!("'{named}' is an uploaded file. A Ludwig config needs a table on this machine."))
    })?;
    Ok(Some(path))
}

fn path_value(path: &Path) -> Value {
    path.display().to_string().into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn yaml_and_json_are_the_same_job() {
        let yaml = "# yaml-language-server: $schema=job.schema.json\nmodel: tiny\ntraining_file: rows.jsonl\n\
                    adapter: {rank: 8}\ntrainer:\n  learning_rate: 1e-4\n  train_on_prompt: yes\n";
        let json = r#"{"$schema": "job.schema.json", "model": "tiny", "training_file": "rows.jsonl",
            "adapter": {"rank": 8}, "trainer": {"learning_rate": 1e-4, "train_on_prompt": "yes"}}"#;
        let (_a, yaml) = file("job.yaml", yaml);
        let (_b, json) = file("job.json", json);
        let (yaml, json) = (read(&yaml).unwrap().body, read(&json).unwrap().body);
        assert_eq!(yaml["trainer"]["learning_rate"], json!(1e-4));
        for field in ["model", "training_file", "adapter"] {
            assert_eq!(yaml[field], json[field], "{field}");
        }
        assert!(!json.contains_key("$schema"));
    }

    #[test]
    fn what_is_no_mapping_says_where() {
        for text in ["- a\n", "model: [\n", "a: 1\na: 2\n"] {
            let (_folder, path) = file("job.yaml", text);
            let refused = read(&path).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{text}");
            assert!(refused.to_string().contains("job.yaml"), "{refused}");
        }
    }

    #[test]
    fn a_ludwig_config_and_its_table_become_a_job_and_its_rows() {
        let config = include_str!("../../testdata/ludwig_alpaca.yaml");
        let (folder, path) = file("config.yaml", config);
        let table = folder.path().join("alpaca.csv");
        let rows: String = (0..200).map(|i| format!("\"say {i}\",in,out {i}\n")).collect();
        fs::write(&table, format!("instruction,input,output\n{rows}")).unwrap();
        let mut document = read(&path).unwrap();
        document.body.insert("training_file".into(), table.display().to_string().into());
        make_rows(&mut document.body, &document.recipe.unwrap()).unwrap();
        let made = fs::read_to_string(document.body["training_file"].as_str().unwrap()).unwrap();
        let first: Value = serde_json::from_str(made.lines().next().unwrap()).unwrap();
        let prompt = first["prompt"].as_str().unwrap();
        assert!(prompt.starts_with("Below is an instruction") && prompt.ends_with("### Response:\n"), "{prompt}");
        assert!(first["completion"].as_str().unwrap().starts_with("out "));
        assert!(document.body.contains_key("validation_file"));
    }

    #[test]
    fn a_key_that_cannot_be_had_stops_the_job() {
        let (_folder, path) = file("config.yaml", "model_type: llm\nbase_model: m\nhyperopt: {}\n");
        let refused = read(&path).unwrap_err();
        assert!(refused.to_string().contains("hyperopt") && refused.to_string().contains("adapter"), "{refused}");
    }

    #[test]
    fn without_rows_to_validate_on_nothing_requests_it() {
        let (folder, path) = file("config.yaml", include_str!("../../testdata/ludwig_llama2_4bit.yaml"));
        let table = folder.path().join("t.csv");
        fs::write(&table, "instruction,output\na,b\n").unwrap();
        let mut document = read(&path).unwrap();
        let recipe = document.recipe.unwrap();
        assert!(make_rows(&mut document.body, &recipe).is_err(), "no table");
        document.body.insert("training_file".into(), table.display().to_string().into());
        document.body.insert("trainer".into(), json!({"eval_every_steps": 5}));
        make_rows(&mut document.body, &recipe).unwrap();
        assert_eq!(document.body["trainer"], json!({}));
    }
}
