//! Error messages that are safe to show to a tenant: without the paths of a machine, presigned URLs, or characters that
//! a terminal or the database mishandles, and of limited length. Every text about a job, a run, or a replica that
//! reaches a tenant passes through `for_tenant`, whichever component wrote it.

/// The maximum length of such a text, in characters.
pub const MOST_TENANT_TEXT_CHARS: usize = 8000;

/// Returns `text` with every absolute path cut to its last name and every `http` URL replaced, without control
/// characters except line feeds and tabs, and of at most [`MOST_TENANT_TEXT_CHARS`] characters.
#[must_use]
pub fn for_tenant(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(4 * MOST_TENANT_TEXT_CHARS));
    let mut rest = text;
    let mut before = ' ';
    while let Some(next) = rest.chars().next() {
        let (taken, put) = match special(before, rest) {
            Some(found) => found,
            None => (next.len_utf8(), if is_wanted(next) { &rest[..next.len_utf8()] } else { "" }),
        };
        shown.push_str(put);
        before = rest[..taken].chars().next_back().unwrap_or(' ');
        rest = &rest[taken..];
    }
    match shown.char_indices().nth(MOST_TENANT_TEXT_CHARS) {
        Some((cut, _)) => format!("{}…", &shown[..cut]),
        None => shown,
    }
}

fn is_wanted(c: char) -> bool {
    !c.is_control() || c == '\n' || c == '\t'
}

/// Returns the length in bytes of the path or URL that begins here, and its replacement.
fn special(before: char, rest: &str) -> Option<(usize, &str)> {
    if before.is_alphanumeric() || "._-~/".contains(before) {
        return None;
    }
    if rest.starts_with("http://") || rest.starts_with("https://") {
        let end = rest.find(|c: char| c.is_whitespace() || "\"'<>()".contains(c)).unwrap_or(rest.len());
        return Some((end, "an address"));
    }
    let path = rest.strip_prefix('/').filter(|_| !rest.starts_with("/v1/") && !rest.starts_with("/internal/"))?;
    let end = path.find(|c: char| !(c.is_alphanumeric() || "/._-+@~%=".contains(c))).map_or(rest.len(), |at| at + 1);
    let whole = rest[..end].trim_end_matches(['.', '/']);
    let name = whole.rsplit('/').next().unwrap_or_default();
    // A single name after a slash is not a file path: "and/or", "2 tokens/s", "/reset".
    (whole.matches('/').count() > 1 && !name.is_empty()).then_some((whole.len(), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_a28_no_path_and_no_address_is_shown() {
        let told = [
            (
                "the disk is full: /data/node/cache/tmp/work-x1/checkpoint-40/optimizer.safetensors could not be \
                 written",
                "the disk is full: optimizer.safetensors could not be written",
            ),
            (
                "'/srv/a b/c.json': No such file (os error 2)", // a space ends the part that is recognized as a path
                "'a b/c.json': No such file (os error 2)",
            ),
            (
                "sending for url (http://127.0.0.1:9/b/k?X-Amz-Signature=s) failed",
                "sending for url (an address) failed",
            ),
            ("read /etc/hostname.", "read hostname."),
            ("open \"/home/u/x/\": denied", "open \"x/\": denied"),
        ];
        for (text, shown) in told {
            assert_eq!(for_tenant(text), shown);
        }
    }

    #[test]
    fn what_is_no_path_stays() {
        for text in [
            "Step 3/20: training loss=1.25",
            "2.5 tokens/s and/or /reset",
            "ask GET /v1/fine_tuning/jobs/{id} again; POST /internal/run/reports: 409",
            "the model org/name/with/parts",
            "line 7: 'Grüße'\n\tline 8: …",
        ] {
            assert_eq!(for_tenant(text), text);
        }
    }

    #[test]
    fn control_characters_go() {
        assert_eq!(for_tenant("a\0b\u{1b}[31mc\r\n"), "ab[31mc\n");
    }

    #[test]
    fn limit_a_text_for_a_tenant_has_an_end() {
        assert_eq!(for_tenant(&"é".repeat(MOST_TENANT_TEXT_CHARS)).chars().count(), MOST_TENANT_TEXT_CHARS);
        let long = for_tenant(&"é".repeat(100 * MOST_TENANT_TEXT_CHARS));
        assert_eq!(long.chars().count(), MOST_TENANT_TEXT_CHARS + 1);
        assert!(long.ends_with('…'));
    }
}
