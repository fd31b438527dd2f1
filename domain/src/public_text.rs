//! Texts that were made for an operator, made fit for a tenant's eyes.

/// The text without the places that it names: of a file only its own name is left, of a URL only its scheme.
///
/// An error's causes are worth telling, but paths of a node and presigned URLs are not the tenant's.
#[must_use]
pub fn without_places(text: &str) -> String {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '(' | ')' | '<' | '>' | ',' | ';' | '…');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        if word.is_empty() {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        out.push_str(&of_word(word));
        rest = &rest[word.len()..];
    }
    out
}

fn of_word(word: &str) -> String {
    if let Some((scheme, _)) = word.split_once("://") {
        return format!("{scheme}://…");
    }
    // A path begins the word, or stands behind a sign, as in `path=/var/lib`; `prompt/completion` is none.
    let starts_path = |at: usize| {
        let before = word[..at].chars().next_back();
        let after = word[at + 1..].chars().next();
        before.is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '/')))
            && after.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_'))
    };
    let Some(at) = word.match_indices('/').map(|(at, _)| at).find(|at| starts_path(*at)) else {
        return word.to_owned();
    };
    let path = word[at..].trim_end_matches([':', '.']);
    let name = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let behind = &word[at + path.len()..];
    format!("{}…/{name}{behind}", &word[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_left_out_and_names_stay() {
        for (text, want) in [
            ("the base's weights cannot be used", "the base's weights cannot be used"),
            ("open /var/lib/attune/cache/base/ab12/model.safetensors: denied", "open …/model.safetensors: denied"),
            ("'/root/.attune/x' (/tmp/y.log), path=/z/w", "'…/x' (…/y.log), path=…/w"),
            ("GET http://127.0.0.1:9000/b/k?X-Amz-Signature=1 gave 404", "GET http://… gave 404"),
            ("prompt/completion rows, 1/2, a / b, and/or", "prompt/completion rows, 1/2, a / b, and/or"),
            ("näher: /ä/ö", "näher: …/ö"),
        ] {
            assert_eq!(without_places(text), want);
        }
    }
}
