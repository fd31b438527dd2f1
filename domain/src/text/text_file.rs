//! Text files as editors and spreadsheets write them: byte order marks and line ends.
//!
//! One rule for every door where rows, lines or documents enter: a UTF-8 mark is passed over at the beginning of a file,
//! and of each line where lines are read, since joined files have one there; UTF-16 and UTF-32 are refused by name.

/// The byte order mark as UTF-8 has it.
pub const UTF8_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Returns `bytes` without the UTF-8 byte order mark at their beginning.
#[must_use]
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(UTF8_MARK).unwrap_or(bytes)
}

/// Names the encoding that a byte order mark at the beginning tells of, unless it is UTF-8: no such file is read.
#[must_use]
pub fn foreign_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => Some("UTF-32"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// Returns a document of a model's or an adapter's folder, which must have no byte order mark: transformers does not read
/// it with one, so neither would whoever takes the folder home.
///
/// # Errors
/// A sentence for the user, without the document's name.
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

/// Explains a line that is no JSON by an end of line that is none here: JSON has neither sign between its values but as
/// white space.
#[must_use]
pub fn line_end_hint(line: &[u8]) -> Option<&'static str> {
    if line.contains(&b'\r') {
        Some("its lines end with a carriage return alone; end them with a line feed")
    } else if line.windows(3).any(|sign| matches!(sign, b"\xE2\x80\xA8" | b"\xE2\x80\xA9")) {
        Some("U+2028 and U+2029 end no line; end lines with a line feed")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_08_marks_are_told_apart() {
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
    fn ends_of_lines_that_are_none_are_explained() {
        assert!(line_end_hint(b"{}\r{}").unwrap().contains("carriage return"));
        assert!(line_end_hint("{}\u{2028}{}".as_bytes()).unwrap().contains("U+2028"));
        assert_eq!(line_end_hint("{}é{}".as_bytes()), None);
    }
}
