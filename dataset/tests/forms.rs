//! Reads every supported format with the child's code, and checks the defects and row numbers that users see.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers may panic as its tests do")]

use std::{
    io::{Cursor, Write},
    sync::Arc,
};

use attune_dataset::{
    child::judge,
    contract::{Compression, Container, Found, Orders, Verdict},
};
use attune_domain::dataset::{RowFormat, Shape};
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::writer::SerializedFileWriter,
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

fn orders(filename: &str) -> Orders {
    Orders { filename: filename.into(), memory_bytes: 0, cpu_seconds: 0, file_bytes: 64 << 20, rows_bytes: 64 << 20 }
}

/// Returns the verdict on a file, and the rows written.
fn read(filename: &str, file: &[u8]) -> (Verdict, String) {
    let mut rows = Vec::new();
    let verdict = judge(Cursor::new(file.to_vec()), &mut rows, &orders(filename)).unwrap();
    (verdict, String::from_utf8(rows).unwrap())
}

fn sound(filename: &str, file: &[u8]) -> (Found, String) {
    match read(filename, file) {
        (Verdict::Sound(found), rows) => (found, rows),
        (other, _) => panic!("{filename}: {other:?}"),
    }
}

/// Returns the error message for an invalid file.
fn said(filename: &str, file: &[u8]) -> String {
    match read(filename, file).0 {
        Verdict::Refused { reason } => reason,
        Verdict::Defects { defects, .. } => defects.to_string(),
        Verdict::Sound(found) => panic!("{filename}: {found:?}"),
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(content).unwrap();
    packer.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

fn parquet(columns: [&str; 2], rows: &[[&str; 2]]) -> Vec<u8> {
    let fields: String = columns.map(|name| format!("REQUIRED BYTE_ARRAY {name} (UTF8);")).concat();
    let schema = parse_message_type(&format!("message rows {{ {fields} }}")).unwrap();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema.into(), Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for i in 0..2 {
        let mut column = group.next_column().unwrap().unwrap();
        let cells: Vec<ByteArray> = rows.iter().map(|row| row[i].into()).collect();
        column.typed::<ByteArrayType>().write_batch(&cells, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

const PAIR: &str = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
const CHAT: &str =
    concat!(r#"{"messages":[{"role":"user","content":"do\n\nthis"},{"role":"assistant","content":"done"}]}"#, "\n");

#[test]
fn lines_that_trainers_read_are_not_written_again() {
    let (found, rows) = sound("a.jsonl", PAIR.repeat(3).as_bytes());
    assert_eq!((found.container, found.compression, found.shape), (Container::Jsonl, None, Shape::Completion));
    assert_eq!((found.rows, found.rewritten, rows.as_str()), (3, false, ""));
}

#[test]
fn the_same_rows_come_out_of_every_form() {
    let plain = PAIR.repeat(2);
    let table = "prompt,completion\na,b\na,b\n";
    let cells = parquet(["prompt", "completion"], &[["a", "b"], ["a", "b"]]);
    let cases: [(&str, Vec<u8>, Container, Option<Compression>); 8] = [
        ("a.jsonl.gz", gzip(plain.as_bytes()), Container::Jsonl, Some(Compression::Gzip)),
        ("a.jsonl", zstd(plain.as_bytes()), Container::Jsonl, Some(Compression::Zstd)),
        ("a.json", format!("[{PAIR},\n{PAIR}]").into_bytes(), Container::Json, None),
        ("a.csv", table.into(), Container::Csv, None),
        ("a", table.replace('\n', "\r\n").into_bytes(), Container::Csv, None),
        ("a.tsv.zst", zstd(table.replace(',', "\t").as_bytes()), Container::Tsv, Some(Compression::Zstd)),
        ("a.parquet", cells.clone(), Container::Parquet, None),
        ("a.bin", gzip(&cells), Container::Parquet, Some(Compression::Gzip)),
    ];
    for (name, file, container, compression) in cases {
        let (found, rows) = sound(name, &file);
        assert_eq!((found.container, found.compression, found.rows), (container, compression, 2), "{name}");
        assert_eq!((rows.as_str(), found.rewritten), (plain.as_str(), true), "{name}");
    }
}

#[test]
fn every_shape_becomes_what_is_trained_on() {
    let alpaca = r#"{"instruction": "do", "input": "this", "output": "done"}"#;
    let sharegpt =
        r#"{"id": "7", "conversations": [{"from": "human", "value": "do\n\nthis"}, {"from": "gpt", "value": "done"}]}"#;
    for (file, shape) in [(alpaca, Shape::Alpaca), (sharegpt, Shape::ShareGpt)] {
        let (found, rows) = sound("a.jsonl", file.as_bytes());
        assert_eq!((found.shape, found.format, rows.as_str()), (shape, RowFormat::Chat, CHAT));
    }
    let (found, rows) = sound("a.csv", b"instruction,input,output\ndo,this,done\ndo,,done\n");
    assert_eq!((found.shape, found.rows), (Shape::Alpaca, 2));
    assert!(rows.starts_with(CHAT) && rows.contains(r#""content":"do"}"#), "{rows}");
    let cell = CHAT.trim().strip_prefix("{\"messages\":").unwrap().strip_suffix('}').unwrap().replace('"', "\"\"");
    assert_eq!(sound("a.csv", format!("messages\n\"{cell}\"\n").as_bytes()).1, CHAT);
    let preference = concat!(
        r#"{"input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": true}, "#,
        r#""preferred_output": [{"role": "assistant", "content": "good"}], "#,
        r#""non_preferred_output": [{"role": "assistant", "content": "bad"}]}"#
    );
    let (found, rows) = sound("a.jsonl", preference.as_bytes());
    assert_eq!((found.shape, found.format, rows.as_str()), (Shape::Preference, RowFormat::Preference, ""));
    let written = sound("a.jsonl.gz", &gzip(preference.as_bytes())).1;
    assert_eq!(sound("a.jsonl", written.as_bytes()).0.shape, Shape::Preference, "it reads back");
}

#[test]
fn what_is_wrong_is_named_by_the_users_own_numbers() {
    for (name, file, wanted) in [
        ("a.jsonl", &b"{\"prompt\": \"a\", \"completion\": \"b\"}\nx\n"[..], "line 2: not JSON"),
        ("a.csv", b"prompt,completion\na,b\n\"c\nd\",\n", "line 2: completion: must not be empty"),
        ("a.csv", b"prompt,completion\na\n", "the row has 1 cells, and the header has 2"),
        ("a.csv", b"prompt,completion\n\xff,b\n", "prompt: not UTF-8"),
        ("a.csv", b"prompt,prompt\na,b\n", "names the column 'prompt' twice"),
        ("a.csv", b"question,answer\na,b\n", "it names 'question', 'answer'"),
        ("a.csv", b"prompt,completion,id\na,b,7\n", "id: unknown field"),
        ("a.csv", b"", "none"),
        ("a.json", b"[{\"prompt\": \"a\", \"completion\": \"b\"}, 7]", "line 2: must be a JSON object; found a number"),
        ("a.json", b"[{\"prompt\": \"a\"", "not a complete list"),
        ("a.json", b"[] []", "not a complete list"),
        ("a.json", b"[]", "the file is empty"),
        ("a.parquet", b"{}", "its name says Parquet"),
        ("a.jsonl.gz", b"{}", "its name says gzip"),
        ("a.jsonl.zst", &gzip(b"{}"), "its name says zstd"),
        ("a.jsonl", &gzip(&zstd(b"{}")), "compressed twice"),
        ("a.jsonl", b"\x1f\x8b\x08\x00garbage", "cannot be decompressed as gzip"),
        ("a.jsonl", b"\x28\xb5\x2f\xfdgarbage", "cannot be decompressed as zstd"),
        ("a.parquet", b"PAR1PAR1PAR1PAR1", "cannot be read as Parquet"),
        (
            "a.jsonl",
            b"{\"instruction\": \"a\", \"output\": \"b\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}",
            "line 2: a prompt/completion row, but line 1 is an alpaca row",
        ),
        ("a.jsonl", b"{\"conversations\": [{\"from\": \"bot\", \"value\": \"a\"}]}", "conversations[0].from: 'bot'"),
        ("a.jsonl", b"{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}", "must be the assistant's"),
    ] {
        let said = said(name, file);
        assert!(said.contains(wanted), "{name}: {said}");
    }
}

/// The files of the case, and the result of Python's `csv.reader(…, strict=True)` for each.
#[test]
fn case_07_a_stray_quotation_mark_is_named_by_the_row_where_it_opens() {
    for (name, file, wanted) in [
        (
            "stray.csv",
            &include_bytes!("../testdata/case_07/stray.csv")[..],
            "line 3: a quotation mark opens a cell here",
        ),
        ("pair.csv", include_bytes!("../testdata/case_07/pair.csv"), "line 1: text follows the quotation mark"),
        ("words.tsv", include_bytes!("../testdata/case_07/words.tsv"), "line 1: text follows the quotation mark"),
        ("a.csv", b"\"prompt\" x,completion\na,b\n", "its header cannot be read: text follows"),
        ("a.csv", b"prompt,completion\na,\n\"b\"c,d\n", "line 1: completion: must not be empty\nline 2: text follows"),
    ] {
        let said = said(name, file);
        assert!(said.starts_with(wanted), "{name}: {said}");
    }
    let (found, rows) = sound("sound.csv", include_bytes!("../testdata/case_07/sound.csv"));
    assert_eq!(found.rows, 2);
    assert!(rows.starts_with(r#"{"prompt":"Say \"hi\"","completion":"He said \"hi\",\nand left"}"#), "{rows}");
}

#[test]
fn case_08_a_byte_order_mark_is_skipped_in_every_form() {
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let line = PAIR.trim();
    for (name, file, rows) in [
        ("a.jsonl", marked(PAIR), 1),
        ("a.json", marked(&format!("[{PAIR},{PAIR}]")), 2),
        ("a.csv", marked("prompt,completion\na,b\n"), 1),
        ("a.csv", marked("\"prompt\",\"completion\"\na,b\n"), 1),
        ("a.tsv", marked("prompt\tcompletion\na\tb\n"), 1),
        ("a", marked("prompt,completion\na,b\n"), 1),
        ("a.jsonl.gz", gzip(&marked(PAIR)), 1),
        // Two concatenated files.
        ("a.jsonl", [marked(PAIR), marked(PAIR)].concat(), 2),
        ("a.jsonl", marked(&format!("{line}\r\n\u{feff}{line}\r\n\u{feff}\r\n")), 2),
        // A byte order mark inside a text is text.
        ("a.csv", b"prompt,completion\n\xEF\xBB\xBFa,b\n".to_vec(), 1),
        ("a.csv", b"prompt,completion\n\"\xEF\xBB\xBF\"\"a\",b\n".to_vec(), 1),
    ] {
        assert_eq!(sound(name, &file).0.rows, rows, "{name}");
    }
    let table = marked("prompt,completion\na,b\n");
    let joined = said("a.csv", &[table.clone(), table].concat());
    assert!(joined.starts_with("line 2: it begins with a byte order mark"), "{joined}");
    let joined = said("a.csv", b"prompt,completion\na,b\n\xEF\xBB\xBF\"c\",d\ne,f\n");
    assert!(joined.starts_with("line 2: it begins with a byte order mark"), "{joined}");
}

#[test]
fn case_08_what_spreadsheets_add_is_named() {
    let utf16 = |text: &str| -> Vec<u8> {
        [0xFEFF].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    };
    for (name, file, wanted) in [
        ("a.jsonl", utf16(PAIR), "it is UTF-16; save it as UTF-8"),
        ("a.json", utf16("[]"), "it is UTF-16"),
        ("a.csv", utf16("prompt,completion\na,b\n"), "it is UTF-16"),
        ("a.tsv.gz", gzip(&utf16("prompt\tcompletion\n")), "it is UTF-16"),
        (
            "a.csv",
            b"sep=;\r\nprompt;completion\r\na;b\r\n".to_vec(),
            "its first line is 'sep=;', which is not a header",
        ),
        ("a.csv", b"sep=,\nprompt,completion\na,b\n".to_vec(), "its first line is 'sep='"),
        ("a.csv", b"prompt;completion\na;b\n".to_vec(), "its header separates the columns with ';'"),
        ("a.jsonl", PAIR.repeat(2).replace('\n', "\r").into_bytes(), "line 1: not JSON: trailing characters"),
        ("a.jsonl", PAIR.repeat(2).replace('\n', "\u{2028}").into_bytes(), "line 1: not JSON: trailing characters"),
    ] {
        let said = said(name, &file);
        assert!(said.starts_with(wanted), "{name}: {said}");
    }
    let ends = said("a.jsonl", PAIR.repeat(2).replace('\n', "\r").as_bytes());
    assert!(ends.ends_with("its lines end with a carriage return alone; end them with a line feed"), "{ends}");
}

/// A text keeps all characters that other parsers treat as line endings.
#[test]
fn case_08_ends_of_lines_are_distinguished_from_texts_in_every_form() {
    let text = "a\u{2028}b\u{2029}c\u{85}d\u{b}e";
    let quoted = "a\r\nb\rc\nd";
    let row = |text: &str| serde_json::json!({"prompt": text, "completion": "x"}).to_string();
    let raw = format!("{{\"prompt\": \"{}\", \"completion\": \"x\"}}", text.replace('\u{b}', "\\u000b"));
    for end in ["\n", "\r\n", ""] {
        assert_eq!(sound("a.jsonl", format!("{raw}{end}").as_bytes()).0.rows, 1);
    }
    for (name, file, text) in [
        ("a.json", format!("[\r{raw}\r]"), text),
        ("a.csv", format!("prompt,completion\r{text},x\r"), text),
        ("a.csv", format!("prompt,completion\r\n\"{quoted}\",x\r\n"), quoted),
        ("a.tsv", format!("prompt\tcompletion\n\"{quoted}\"\tx"), quoted),
    ] {
        let (found, rows) = sound(name, file.as_bytes());
        let wanted: serde_json::Value = serde_json::from_str(&row(text)).unwrap();
        assert_eq!(found.rows, 1, "{name}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&rows).unwrap(), wanted, "{name}");
    }
}

/// The files of the case: for each notation of a missing value, the rows are those of the plain file.
#[test]
fn case_09_a_null_is_the_same_as_nothing_in_every_form() {
    macro_rules! file {
        ($name:literal) => {
            ($name, &include_bytes!(concat!("../testdata/case_09/", $name))[..])
        };
    }
    let plain = |i| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"Order {i}?\"}},\
             {{\"role\":\"assistant\",\"content\":\"On its way.\"}}]}}\n"
        )
    };
    let plain: String = (0..3).map(plain).collect();
    for (name, file) in [
        file!("plain.jsonl"),
        file!("nulls.jsonl"),
        file!("calls.jsonl"),
        file!("empty.jsonl"),
        file!("name.jsonl"),
        file!("float.jsonl"),
        file!("nulls.parquet"),
        file!("name.parquet"),
        file!("float.parquet"),
    ] {
        // A list is serialized again, so that the meaning can be compared.
        let lines = if name.ends_with("parquet") {
            sound(name, file).1
        } else {
            let list = String::from_utf8(file.to_vec()).unwrap().trim().replace("}\n{", "},{");
            sound("a.json", format!("[{list}]").as_bytes()).1
        };
        assert_eq!(sound(name, file).0.rows, 3, "{name}");
        assert_eq!(lines.replace(",\"weight\":1", ""), plain, "{name}");
    }
    for (name, file) in [file!("alpaca.jsonl"), file!("alpaca.parquet")] {
        assert!(sound(name, file).1.contains(r#"[{"role":"user","content":"Say hi"},{"role":"assistant""#), "{name}");
    }
    let table = "messages,tools,parallel_tool_calls\n";
    let cell = concat!(
        r#"[{""role"":""user"",""content"":""a"",""name"":null},"#,
        r#"{""role"":""assistant"",""content"":""b"",""weight"":1.0,""tool_calls"":[]}]"#
    );
    for rest in [",,", ",[],True", ",null,null"] {
        assert_eq!(sound("a.csv", format!("{table}\"{cell}\"{rest}\n").as_bytes()).0.rows, 1, "{rest}");
    }
}

#[test]
fn tools_come_out_of_every_form() {
    let row = concat!(
        r#"{"messages":[{"role":"user","content":"Oslo?"},{"role":"assistant","tool_calls":[{"id":"c1","#,
        r#""type":"function","function":{"name":"weather","arguments":{"city":"Oslo"}}}]},{"role":"tool","#,
        r#""content":"4","tool_call_id":"c1"},{"role":"assistant","content":"Four."}],"tools":[{"type":"function","#,
        r#""function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}],"#,
        r#""parallel_tool_calls":false}"#,
    );
    let as_text = row.replace(r#"{"city":"Oslo"}"#, r#""{\"city\":\"Oslo\"}""#);
    assert_eq!(sound("a.json", format!("[{as_text}]").as_bytes()).1, format!("{row}\n"));
    let value: serde_json::Value = serde_json::from_str(&as_text).unwrap();
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["messages", "tools", "parallel_tool_calls"]).unwrap();
    table.write_record([value["messages"].to_string(), value["tools"].to_string(), "False".into()]).unwrap();
    assert_eq!(sound("a.csv", &table.into_inner().unwrap()).1, format!("{row}\n"));
}

#[test]
fn limit_a_bomb_and_a_huge_cell_end_at_their_limits() {
    let zeros = vec![b'a'; 65 << 20];
    assert!(said("a.jsonl.gz", &gzip(&zeros)).contains("decompresses to more than 67108864 bytes"));
    let cell = format!("prompt,completion\n{},b\n", "x".repeat(9 << 20));
    assert!(said("a.csv", cell.as_bytes()).contains("a row takes more than 8388608 bytes"));
    let quoted = format!("prompt,completion\n\"{}", "x\n".repeat(5 << 20));
    let endless = said("a.csv", quoted.as_bytes());
    assert!(endless.starts_with("line 1: ") && endless.contains("not closed within 8388608 bytes"), "{endless}");
    let element = format!("[{{\"text\": \"{}\"}}]", "x".repeat(9 << 20));
    assert!(said("a.json", element.as_bytes()).contains("a row takes more than"));
    let deep = format!("[{}", "[".repeat(1 << 20));
    assert!(said("a.json", deep.as_bytes()).contains("not a complete list"));
    let deep = format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000));
    assert!(said("a.json", deep.as_bytes()).contains("recursion limit"));
    let escapes = format!("prompt,completion\n{},b\n", "\u{1}".repeat(300_000));
    assert!(said("a.csv", escapes.as_bytes()).contains("row"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Random bytes, and random bytes after each format's magic number.
    #[test]
    fn no_bytes_make_it_panic(
        begin in prop::sample::select(vec![
            &b""[..],
            b"PAR1",
            b"\x1f\x8b\x08\x00",
            b"\x28\xb5\x2f\xfd",
            b"[",
            b"{\"text\":",
            b"prompt,completion\n",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
        name in prop::sample::select(vec!["a", "a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.jsonl.gz"]),
    ) {
        let _ = judge(Cursor::new([begin, &rest].concat()), std::io::sink(), &orders(name));
    }

    /// A valid file with some of its bytes changed, or truncated.
    #[test]
    fn damage_is_an_answer(
        which in 0..4_usize,
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = match which {
            0 => parquet(["prompt", "completion"], &[["a", "b"], ["c", "d"]]),
            1 => gzip(PAIR.repeat(9).as_bytes()),
            2 => zstd(PAIR.repeat(9).as_bytes()),
            _ => b"prompt,completion\n\"a \"\"quoted\"\"\",b\n".to_vec(),
        };
        for (place, byte) in hits {
            let place = place.index(file.len());
            file[place] = byte;
        }
        file.truncate(cut.index(file.len() + 1));
        // A damaged Parquet file may make its parser panic: that is why it runs in a child process.
        let _ = std::panic::catch_unwind(|| judge(Cursor::new(file), std::io::sink(), &orders("a")));
    }

    /// The output equals the input, for any text.
    #[test]
    fn texts_survive_a_table(prompt in ".{0,40}", completion in ".{1,40}") {
        let mut table = csv::Writer::from_writer(Vec::new());
        table.write_record(["prompt", "completion"]).unwrap();
        table.write_record([&prompt, &completion]).unwrap();
        let (_, rows) = sound("a.csv", &table.into_inner().unwrap());
        let row: serde_json::Value = serde_json::from_str(&rows).unwrap();
        prop_assert_eq!((&row["prompt"], &row["completion"]), (&prompt.into(), &completion.into()));
    }
}
