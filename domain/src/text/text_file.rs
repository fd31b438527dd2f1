//! Text files as editors and spreadsheets write them: byte order marks and line endings.
//!
//! All parsers of rows, lines or documents follow one rule: a UTF-8 byte order mark is ignored at the beginning of a
//! file, and of each line where lines are read, since concatenated files have one there; UTF-16 and UTF-32 are refused
//! by name.

/// The byte order mark in UTF-8.
pub const UTF8_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Returns `bytes` without the UTF-8 byte order mark at their beginning.
#[must_use]
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(UTF8_MARK).unwrap_or(bytes)
}

/// Returns the name of the encoding that a byte order mark indicates, unless it is UTF-8: files in it are refused.
#[must_use]
pub fn foreign_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => Some("UTF-32"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// Returns a document of a model's or an adapter's folder, which must not have a byte order mark: transformers does not
/// read it with one, so an exported folder would not load.
///
/// # Errors
/// The message for the user, without the document's name.
pub fn model_document(bytes: &[u8]) -> Result<&[u8], String> {
    let encoding = foreign_encoding(bytes).or_else(|| bytes.starts_with(UTF8_MARK).then_some("UTF-8"));
    match encoding {
        Some(encoding) => Err(format!(
            "it begins with a byte order mark ({encoding}), with which transformers does not read it; save it as UTF-8 \
             without one"
        )),
        None => Ok(bytes),
    }
}

/// Returns a hint for a line that is not JSON, if it contains a character that other software treats as a line ending:
/// between JSON values, `\r` is only white space, and U+2028 and U+2029 are invalid.
#[must_use]
pub fn line_end_hint(line: &[u8]) -> Option<&'static str> {
    if line.contains(&b'\r') {
        Some("its lines end with a carriage return alone; end them with a line feed")
    } else if line.windows(3).any(|sign| matches!(sign, b"\xE2\x80\xA8" | b"\xE2\x80\xA9")) {
        Some("U+2028 and U+2029 are not line endings; end lines with a line feed")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_08_marks_are_distinguished() {
        assert_eq!(without_mark(b"\xEF\xBB\xBFa"), b"a");
        assert_eq!(without_mark(b"a\xEF\xBB\xBF"), b"a\xEF\xBB\xBF");
        for (bytes, named) in [
            (&b"\xFF\xFEa\0"[..], Some("UTF-16")),
            (b"\xFE\xFF\0a", Some("UTF-16")),
            (b"\xFF\xFE\0\0a\0\0\0", Some("UTF-32")),
            (b"\0\0\xFE\xFF", Some("UTF-32")),
            (b"\xEF\xBB\xBFa", None),
            (b"", None),
        ] {
            assert_eq!(foreign_encoding(bytes), named, "{bytes:?}");
        }
    }

    #[test]
    fn case_08_documents_of_models_have_no_mark() {
        assert_eq!(model_document(b"{}"), Ok(&b"{}"[..]));
        for (bytes, encoding) in [(&b"\xEF\xBB\xBF{}"[..], "(UTF-8)"), (b"\xFF\xFE{\0}\0", "(UTF-16)")] {
            let refused = model_document(bytes).unwrap_err();
            assert!(refused.contains("byte order mark") && refused.contains(encoding), "{refused}");
        }
    }

    #[test]
    fn invalid_ends_of_lines_are_explained() {
        assert!(line_end_hint(b"{}\r{}").unwrap().contains("carriage return"));
        assert!(line_end_hint("{}\u{2028}{}".as_bytes()).unwrap().contains("U+2028"));
        assert_eq!(line_end_hint("{}é{}".as_bytes()), None);
    }
}
