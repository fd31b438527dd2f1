//! The conversion of a table (CSV, TSV, JSONL, a JSON list) to rows of prompt and completion, in files next to it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use attune_domain::text::{
    quotes::Quotes,
    text_file::{UTF8_MARK, without_mark},
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::template::Template;
use crate::error::{CliError, Doing, Result};

/// The split of the rows into training, validation and test rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Split {
    /// All rows are trained on.
    None,
    /// A random split by the seed; the rest are test rows, which are left out.
    Random {
        /// The fraction of training rows.
        train: f64,
        /// The fraction of validation rows.
        validation: f64,
    },
    /// A split by a column's value: 0 is training, 1 is validation, 2 is left out.
    Fixed {
        /// The column's name.
        column: String,
    },
}

/// The conversion of a table's rows to rows of prompt and completion.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    /// The prompt's template.
    pub(crate) template: Template,
    /// The column of the input feature.
    pub(crate) sample: Option<String>,
    /// The column of the answer.
    pub(crate) answer: String,
    /// The split of the rows.
    pub(crate) split: Split,
    /// The fraction of all rows that is used.
    pub(crate) sample_ratio: f64,
    /// The seed of the sampling.
    pub(crate) seed: u64,
}

/// The dataset files of a table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Made {
    /// The file of the training rows, and their number.
    pub(crate) training: (PathBuf, u64),
    /// The file of the validation rows, and their number.
    pub(crate) validation: Option<(PathBuf, u64)>,
    /// The number of rows that the config leaves out.
    pub(crate) left_out: u64,
}

/// The destination of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Training,
    Validation,
    Out,
}

impl Recipe {
    /// Writes `table.prompts.jsonl` and, if there are validation rows, `table.validation.jsonl` next to the table.
    ///
    /// # Errors
    /// [`CliError::Usage`]: the table cannot be read, or a row lacks a column. [`CliError::Failed`]: a file cannot be
    /// written.
    pub(crate) fn make(&self, table: &Path) -> Result<Made> {
        let (training, validation) = (table.with_extension("prompts.jsonl"), table.with_extension("validation.jsonl"));
        let mut writers = (Rows::new(&training)?, None);
        let mut left_out = 0;
        let mut number = 0;
        each_row(table, |row| {
            let place = self.place(&row, number)?;
            let line = self.line(&row).map_err(|why| format!("row {}: {why}", number + 1))?;
            number += 1;
            match place {
                Place::Training => writers.0.write(&line),
                Place::Validation => {
                    let rows = match writers.1.take() {
                        Some(rows) => rows,
                        None => Rows::new(&validation).map_err(|e| e.to_string())?,
                    };
                    writers.1.insert(rows).write(&line)
                }
                Place::Out => {
                    left_out += 1;
                    Ok(())
                }
            }
        })?;
        let training = (training, writers.0.finish()?);
        let validation = writers.1.map(|rows| Ok::<_, CliError>((validation, rows.finish()?))).transpose()?;
        if training.1 == 0 {
            return Err(CliError::Usage(format!("{} has no training rows", table.display())));
        }
        Ok(Made { training, validation, left_out })
    }

    /// Returns the same conversion without a split and without sampling.
    pub(crate) fn unsplit(&self) -> Self {
        Self { split: Split::None, sample_ratio: 1.0, ..self.clone() }
    }

    fn line(&self, row: &BTreeMap<String, String>) -> std::result::Result<String, String> {
        let missing = |column: &str| {
            let there: Vec<_> = row.keys().map(String::as_str).collect();
            format!("there is no column '{column}'; there are {}", there.join(", "))
        };
        let prompt = self.template.fill(row, self.sample.as_deref()).map_err(|column| missing(&column))?;
        let completion = row.get(&self.answer).ok_or_else(|| missing(&self.answer))?;
        Ok(json!({"prompt": prompt, "completion": completion}).to_string())
    }

    fn place(&self, row: &BTreeMap<String, String>, number: u64) -> std::result::Result<Place, String> {
        if self.draw("sample", number) >= self.sample_ratio {
            return Ok(Place::Out);
        }
        match &self.split {
            Split::None => Ok(Place::Training),
            Split::Random { train, validation } => Ok(match self.draw("split", number) {
                drawn if drawn < *train => Place::Training,
                drawn if drawn < train + validation => Place::Validation,
                _ => Place::Out,
            }),
            Split::Fixed { column } => match row.get(column).map(String::as_str) {
                Some("0" | "0.0") => Ok(Place::Training),
                Some("1" | "1.0") => Ok(Place::Validation),
                Some("2" | "2.0") => Ok(Place::Out),
                Some(other) => {
                    Err(format!("row {}: the split column '{column}' has '{other}', not 0, 1 or 2", number + 1))
                }
                None => Err(format!("row {}: there is no split column '{column}'", number + 1)),
            },
        }
    }

    /// Returns a pseudo-random number in [0, 1) that depends only on the row's number, the seed and the purpose.
    fn draw(&self, purpose: &str, number: u64) -> f64 {
        let digest = Sha256::digest(format!("{purpose} {} {number}", self.seed));
        let bits = digest.iter().take(6).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        bits as f64 / (1u64 << 48) as f64
    }
}

/// The writer of a JSONL file.
struct Rows {
    path: PathBuf,
    out: BufWriter<File>,
    count: u64,
}

impl Rows {
    fn new(path: &Path) -> Result<Self> {
        let file = File::create(path).doing(|| format!("write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), out: BufWriter::new(file), count: 0 })
    }

    fn write(&mut self, line: &str) -> std::result::Result<(), String> {
        self.count += 1;
        writeln!(self.out, "{line}").map_err(|e| format!("cannot write {}: {e}", self.path.display()))
    }

    fn finish(mut self) -> Result<u64> {
        self.out.flush().doing(|| format!("write {}", self.path.display()))?;
        Ok(self.count)
    }
}

/// Calls `take` with each row of a table; only a JSON list is read as a whole.
fn each_row(
    table: &Path,
    mut take: impl FnMut(BTreeMap<String, String>) -> std::result::Result<(), String>,
) -> Result<()> {
    let opened = File::open(table).map_err(|e| CliError::Usage(format!("cannot read {}: {e}", table.display())))?;
    let wrong = |why: String| CliError::Usage(format!("{}: {why}", table.display()));
    let extension = table.extension().and_then(|extension| extension.to_str()).unwrap_or("").to_ascii_lowercase();
    match extension.as_str() {
        "csv" | "tsv" => {
            let delimiter = if extension == "tsv" { b'\t' } else { b',' };
            check_quotes(table, delimiter)?;
            let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(opened);
            for row in reader.deserialize() {
                take(row.map_err(|e| wrong(e.to_string()))?).map_err(&wrong)?;
            }
        }
        "jsonl" | "ndjson" => {
            for (number, line) in BufReader::new(opened).lines().enumerate() {
                let line = line.map_err(|e| wrong(e.to_string()))?;
                let line = without_mark(line.as_bytes());
                if !line.trim_ascii().is_empty() {
                    let row = serde_json::from_slice(line).map_err(|e| wrong(format!("line {}: {e}", number + 1)))?;
                    take(columns(row)).map_err(&wrong)?;
                }
            }
        }
        "json" => {
            let text = std::fs::read(table).doing(|| format!("read {}", table.display()))?;
            let rows: Vec<Map<String, Value>> =
                serde_json::from_slice(without_mark(&text)).map_err(|e| wrong(e.to_string()))?;
            for row in rows {
                take(columns(row)).map_err(&wrong)?;
            }
        }
        _ => return Err(wrong("a table ends in .csv, .tsv, .jsonl or .json".into())),
    }
    Ok(())
}

/// Refuses a table with invalid quotation marks, as the API refuses such uploads.
fn check_quotes(table: &Path, delimiter: u8) -> Result<()> {
    let doing = || format!("read {}", table.display());
    let mut bytes = BufReader::new(File::open(table).doing(doing)?);
    let mut quotes = Quotes::new(delimiter);
    if without_mark(bytes.fill_buf().doing(doing)?).len() < bytes.buffer().len() {
        bytes.consume(UTF8_MARK.len());
    }
    let stray = loop {
        let part = bytes.fill_buf().doing(doing)?;
        if part.is_empty() {
            break quotes.finish();
        }
        if let Err((_, stray)) = quotes.take(part) {
            break Err(stray);
        }
        let taken = part.len();
        bytes.consume(taken);
    };
    stray.map_err(|stray| CliError::Usage(format!("{}: row {}: {stray}", table.display(), stray.row)))
}

/// Converts values to strings; null becomes empty.
fn columns(row: Map<String, Value>) -> BTreeMap<String, String> {
    let text = |value: Value| match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    };
    row.into_iter().map(|(name, value)| (name, text(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(split: Split, sample_ratio: f64) -> Recipe {
        let template = Template::parse("Q: {q}\nA:", None).unwrap();
        Recipe { template, sample: None, answer: "a".into(), split, sample_ratio, seed: 42 }
    }

    fn table(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn tables_of_every_kind_give_the_same_rows() {
        for (name, text) in [
            ("t.csv", "q,a\n\"one, two\",x\nthree,\"y\n\"\n"),
            ("t.tsv", "q\ta\none, two\tx\nthree\t\"y\n\"\n"),
            ("t.csv", "\u{feff}q,a\n\"one, two\",x\nthree,\"y\n\"\n"),
            ("t.json", "\u{feff}[{\"q\": \"one, two\", \"a\": \"x\"}, {\"q\": \"three\", \"a\": \"y\\n\"}]"),
            ("t.jsonl", "\u{feff}{\"q\": \"one, two\", \"a\": \"x\"}\n\u{feff}{\"a\": \"y\\n\", \"q\": \"three\"}\n"),
            ("t.jsonl", "{\"q\": \"one, two\", \"a\": \"x\"}\n\n{\"a\": \"y\\n\", \"q\": \"three\"}\n"),
            ("t.json", "[{\"q\": \"one, two\", \"a\": \"x\"}, {\"q\": \"three\", \"a\": \"y\\n\"}]"),
        ] {
            let (_folder, path) = table(name, text);
            let made = recipe(Split::None, 1.0).make(&path).unwrap();
            assert_eq!((made.training.1, made.validation, made.left_out), (2, None, 0), "{name}");
            let rows = std::fs::read_to_string(made.training.0).unwrap();
            let want = "{\"prompt\":\"Q: one, two\\nA:\",\"completion\":\"x\"}\n\
                        {\"prompt\":\"Q: three\\nA:\",\"completion\":\"y\\n\"}\n";
            assert_eq!(rows, want, "{name}");
        }
    }

    #[test]
    fn case_07_a_stray_quotation_mark_of_a_ludwig_table_is_named() {
        let (_folder, path) = table("t.csv", "\u{feff}\"q\",a\n1,x\n2,\"y\n3,z\n");
        let refused = recipe(Split::None, 1.0).make(&path).unwrap_err().to_string();
        assert!(refused.contains("row 2: a quotation mark opens a cell here"), "{refused}");
    }

    #[test]
    fn rows_are_sampled_the_same_way_every_time() {
        let text: String = (0..1000).map(|i| format!("{{\"q\": {i}, \"a\": \"x\"}}\n")).collect();
        let (_folder, path) = table("t.jsonl", &text);
        let recipe = recipe(Split::Random { train: 0.8, validation: 0.1 }, 0.5);
        let made = recipe.make(&path).unwrap();
        let (train, valid) = (made.training.1, made.validation.as_ref().unwrap().1);
        assert!((340..460).contains(&train) && (25..80).contains(&valid), "{made:?}");
        assert_eq!(train + valid + made.left_out, 1000);
        let first = std::fs::read(&made.training.0).unwrap();
        recipe.make(&path).unwrap();
        assert_eq!(std::fs::read(&made.training.0).unwrap(), first);
    }

    #[test]
    fn a_column_may_say_what_is_what() {
        let (_folder, path) = table("t.csv", "q,a,split\n1,x,0\n2,x,1\n3,x,2\n4,x,0\n");
        let recipe = recipe(Split::Fixed { column: "split".into() }, 1.0);
        let made = recipe.make(&path).unwrap();
        assert_eq!((made.training.1, made.validation.unwrap().1, made.left_out), (2, 1, 1));
        std::fs::write(&path, "q,a,split\n1,x,7\n").unwrap();
        assert!(recipe.make(&path).unwrap_err().to_string().contains("row 1: the split column 'split' has '7'"));
    }

    #[test]
    fn a_row_without_a_column_is_named() {
        let (_folder, path) = table("t.csv", "q,b\n1,x\n");
        let refused = recipe(Split::None, 1.0).make(&path).unwrap_err().to_string();
        assert!(refused.ends_with("row 1: there is no column 'a'; there are b, q"), "{refused}");
        let (_folder, path) = table("t.txt", "");
        assert!(recipe(Split::None, 1.0).make(&path).is_err());
    }
}
