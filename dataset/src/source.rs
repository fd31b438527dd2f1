//! Detection of a file's container and compression: from its first bytes, and where these are ambiguous from its name,
//! which must not contradict them.

use std::io::{self, BufReader, Cursor, Read};

use attune_domain::{dataset::Shape, text::text_file};
use flate2::read::MultiGzDecoder;

use crate::{
    bounded::{Counted, Unpacked, refusal},
    contract::{Compression, Container, Orders},
};

/// The number of bytes at the file's beginning that are inspected.
const LOOKED_AT: usize = 64 << 10;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const PARQUET: &[u8] = b"PAR1";

/// The maximum Zstandard window, as a power of two: the default limit of the `zstd` tool.
const ZSTD_WINDOW: u32 = 27;

/// An opened file.
pub(crate) struct Source {
    pub(crate) container: Container,
    pub(crate) compression: Option<Compression>,
    /// The decompressed content, with a size limit.
    pub(crate) content: Box<dyn Read>,
}

/// Detects the format of `from`.
///
/// # Errors
/// [`crate::bounded::Refusal`]: the file is compressed twice, or its content does not match its name.
pub(crate) fn open(from: impl Read + 'static, orders: &Orders) -> io::Result<Source> {
    let name = orders.filename.to_ascii_lowercase();
    let (packed, count) = Counted::new(from);
    let mut packed = BufReader::with_capacity(LOOKED_AT, packed);
    // A single read from a pipe may return fewer bytes.
    let mut begin = Vec::with_capacity(ZSTD.len());
    packed.by_ref().take(ZSTD.len() as u64).read_to_end(&mut begin)?;
    let compression = match &begin {
        begin if begin.starts_with(GZIP) => Some(Compression::Gzip),
        begin if begin.starts_with(ZSTD) => Some(Compression::Zstd),
        _ => None,
    };
    let packed = Cursor::new(begin).chain(packed);
    let inner: Box<dyn Read> = match compression {
        None => Box::new(packed),
        Some(Compression::Gzip) => Box::new(Explained(MultiGzDecoder::new(packed), "gzip")),
        Some(Compression::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(Explained(decoder, "zstd"))
        }
    };
    let (bare, named) = stripped(&name);
    if let Some(named) = named.filter(|named| Some(*named) != compression) {
        return Err(refusal(format!("its name says {}, but its content is another format", named.name())));
    }
    let most = if compression.is_some() { orders.rows_bytes } else { orders.file_bytes };
    let mut unpacked = Unpacked { inner, packed: count, bytes: 0, most };
    let begin = first(&mut unpacked)?;
    if compression.is_some() && (begin.starts_with(GZIP) || begin.starts_with(ZSTD)) {
        return Err(refusal("it is compressed twice; compress it once".into()));
    }
    let container = container(&begin, bare)?;
    if container != Container::Parquet
        && let Some(encoding) = text_file::foreign_encoding(&begin)
    {
        return Err(refusal(format!("it is {encoding}; save it as UTF-8")));
    }
    let mut content = Cursor::new(begin);
    if container != Container::Parquet && text_file::without_mark(content.get_ref()).len() < content.get_ref().len() {
        content.set_position(text_file::UTF8_MARK.len() as u64);
    }
    Ok(Source { container, compression, content: Box::new(content.chain(unpacked)) })
}

/// Returns the name without a compression's extension, and that compression.
fn stripped(name: &str) -> (&str, Option<Compression>) {
    let endings = [
        (".gz", Compression::Gzip),
        (".gzip", Compression::Gzip),
        (".zst", Compression::Zstd),
        (".zstd", Compression::Zstd),
    ];
    let found = endings.into_iter().find_map(|(ending, packed)| Some((name.strip_suffix(ending)?, Some(packed))));
    found.unwrap_or((name, None))
}

/// Returns the first bytes, as many as are inspected.
fn first(content: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut begin = Vec::with_capacity(LOOKED_AT);
    content.take(LOOKED_AT as u64).read_to_end(&mut begin)?;
    Ok(begin)
}

fn container(begin: &[u8], name: &str) -> io::Result<Container> {
    if begin.starts_with(PARQUET) {
        return Ok(Container::Parquet);
    }
    if name.ends_with(".parquet") {
        return Err(refusal("its name says Parquet, but its content is another format".into()));
    }
    if name.ends_with(".csv") {
        return Ok(Container::Csv);
    }
    if name.ends_with(".tsv") {
        return Ok(Container::Tsv);
    }
    let text = text_file::without_mark(begin);
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') if name.ends_with(".jsonl") => Ok(Container::Jsonl),
        Some(b'[') => Ok(Container::Json),
        Some(b'{') | None => Ok(Container::Jsonl),
        // Neither the first byte nor the name determines the format: a header may.
        Some(_) => Ok(header(text).unwrap_or(Container::Jsonl)),
    }
}

/// Returns the format whose header the first line is.
fn header(text: &[u8]) -> Option<Container> {
    let line = text.split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok())?;
    [(',', Container::Csv), ('\t', Container::Tsv)].into_iter().find_map(|(delimiter, container)| {
        let names = line.split(delimiter).map(|name| name.trim().trim_matches('"'));
        Shape::of(names).map(|_| container)
    })
}

/// A reader that names the decompressor in its errors.
struct Explained<R>(R, &'static str);

impl<R: Read> Read for Explained<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => refusal(format!("it cannot be decompressed as {}: {error}", self.1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides_before_the_name_does() {
        let tell = |begin: &[u8], name: &str| container(begin, name).map_err(|e| e.to_string());
        assert_eq!(tell(b"PAR1....", "x.jsonl"), Ok(Container::Parquet));
        assert_eq!(tell(b" [{}]", "x"), Ok(Container::Json));
        assert_eq!(tell(b"{}", "x.json"), Ok(Container::Jsonl));
        assert_eq!(tell(b"prompt,completion\na,b\n", "x"), Ok(Container::Csv));
        assert_eq!(tell(b"\"prompt\"\tcompletion\r\na\tb\n", "x"), Ok(Container::Tsv));
        assert_eq!(tell(b"hello, world\n", "x"), Ok(Container::Jsonl));
        assert_eq!(tell(b"{\"a\": 1}", "x.csv"), Ok(Container::Csv));
        assert!(tell(b"{}", "x.parquet").unwrap_err().contains("Parquet"));
    }

    #[test]
    fn an_ending_names_a_compression() {
        assert_eq!(stripped("a.csv.gz"), ("a.csv", Some(Compression::Gzip)));
        assert_eq!(stripped("a.jsonl.zst"), ("a.jsonl", Some(Compression::Zstd)));
        assert_eq!(stripped("a.jsonl"), ("a.jsonl", None));
    }
}
