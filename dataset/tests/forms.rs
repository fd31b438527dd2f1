//! Every form that is taken, read by the code of the child; and what is wrong with a file, by the user's own numbers.

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

/// The verdict on a file, and the rows that leave.
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

/// What is said of a file that is not sound.
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
        ("a.json", b"[{\"prompt\": \"a\"", "no whole list"),
        ("a.json", b"[] []", "no whole list"),
        ("a.json", b"[]", "the file is empty"),
        ("a.parquet", b"{}", "its name says Parquet"),
        ("a.jsonl.gz", b"{}", "its name says gzip"),
        ("a.jsonl.zst", &gzip(b"{}"), "its name says zstd"),
        ("a.jsonl", &gzip(&zstd(b"{}")), "packed twice"),
        ("a.jsonl", b"\x1f\x8b\x08\x00garbage", "cannot be unpacked as gzip"),
        ("a.jsonl", b"\x28\xb5\x2f\xfdgarbage", "cannot be unpacked as zstd"),
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

#[test]
fn a_bomb_and_a_huge_cell_end_at_their_limits() {
    let zeros = vec![b'a'; 65 << 20];
    assert!(said("a.jsonl.gz", &gzip(&zeros)).contains("unpacks to more than 67108864 bytes"));
    let cell = format!("prompt,completion\n{},b\n", "x".repeat(9 << 20));
    assert!(said("a.csv", cell.as_bytes()).contains("a row takes more than 8388608 bytes"));
    let quoted = format!("prompt,completion\n\"{}", "x\n".repeat(5 << 20));
    assert!(said("a.csv", quoted.as_bytes()).contains("a row takes more than"));
    let element = format!("[{{\"text\": \"{}\"}}]", "x".repeat(9 << 20));
    assert!(said("a.json", element.as_bytes()).contains("a row takes more than"));
    let deep = format!("[{}", "[".repeat(1 << 20));
    assert!(said("a.json", deep.as_bytes()).contains("no whole list"));
    let deep = format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000));
    assert!(said("a.json", deep.as_bytes()).contains("recursion limit"));
    let escapes = format!("prompt,completion\n{},b\n", "\u{1}".repeat(300_000));
    assert!(said("a.csv", escapes.as_bytes()).contains("row"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Bytes of no kind at all, and of each kind's beginning.
    #[test]
    fn no_bytes_make_it_panic(
        begin in prop::sample::select(vec![&b""[..], b"PAR1", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"[", b"{\"text\":", b"prompt,completion\n"]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
        name in prop::sample::select(vec!["a", "a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.jsonl.gz"]),
    ) {
        let _ = judge(Cursor::new([begin, &rest].concat()), std::io::sink(), &orders(name));
    }

    /// A sound file with some of its bytes changed, or cut short.
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
        // A damaged Parquet file may make its reader panic: that is why it runs in a child.
        let _ = std::panic::catch_unwind(|| judge(Cursor::new(file), std::io::sink(), &orders("a")));
    }

    /// What leaves is what came, whatever is in it.
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
