//! The digest of a request's body, by which a repeated request is recognized.
//!
//! A multipart form is hashed while it streams, without its boundary: clients choose a new one for every attempt. The
//! boundary cannot occur in the content, so omitting it does not give different forms the same digest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use http_body_util::BodyExt;
use memchr::memmem;
use sha2::{Digest, Sha256};

/// The placeholder for a boundary in the hashed bytes; the form's own bytes around it make it unambiguous.
const MARK: &[u8] = b"\0boundary\0";

/// The digest of a body, complete or in progress.
#[derive(Debug, Clone)]
pub struct Print(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    Whole(Vec<u8>),
    Form(Form),
}

impl Print {
    /// Creates the digest of a body that has already been read.
    pub fn whole(digest: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State::Whole(digest))))
    }

    /// Creates the digest of a form that is still to be read; `None` if the content type is not that of a form.
    pub fn of_form(content_type: &str) -> Option<Self> {
        let (kind, parameters) = content_type.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
        })?;
        if boundary.is_empty() {
            return None;
        }
        Some(Self(Arc::new(Mutex::new(State::Form(Form::new(boundary))))))
    }

    /// Returns the body; everything that is read from it is hashed.
    pub fn watch(&self, body: Body) -> Body {
        let print = self.clone();
        Body::new(body.map_frame(move |frame| {
            if let (Some(piece), State::Form(form)) = (frame.data_ref(), &mut *print.state()) {
                form.take(piece);
            }
            frame
        }))
    }

    /// Returns the digest of the bytes so far.
    pub fn digest(&self) -> Vec<u8> {
        match &*self.state() {
            State::Whole(digest) => digest.clone(),
            State::Form(form) => form.digest(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of hashing a form.
#[derive(Debug)]
struct Form {
    boundary: Vec<u8>,
    hasher: Sha256,
    /// The bytes that may be the beginning of a boundary.
    tail: Vec<u8>,
    /// True after the closing boundary; clients differ in what they send after it.
    closed: bool,
}

impl Form {
    fn new(boundary: &str) -> Self {
        Self { boundary: boundary.as_bytes().to_vec(), hasher: Sha256::new(), tail: Vec::new(), closed: false }
    }

    fn take(&mut self, piece: &[u8]) {
        if self.closed {
            return;
        }
        self.tail.extend_from_slice(piece);
        // Two bytes more than the boundary: the bytes after a boundary show if it is the closing one.
        let keep = self.boundary.len() + 2;
        let mut from = 0;
        while let Some(at) = memmem::find(&self.tail[from..], &self.boundary).map(|at| from + at) {
            let end = at + self.boundary.len();
            if self.tail.len() < end + 2 {
                break;
            }
            self.hasher.update(&self.tail[from..at]);
            self.hasher.update(MARK);
            from = end;
            if &self.tail[end..end + 2] == b"--" {
                self.closed = true;
                self.tail.clear();
                return;
            }
        }
        let until = self.tail.len().saturating_sub(keep).max(from);
        self.hasher.update(&self.tail[from..until]);
        self.tail.drain(..until);
    }

    fn digest(&self) -> Vec<u8> {
        let mut hasher = self.hasher.clone();
        hasher.update(&self.tail);
        hasher.finalize().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(boundary: &str, content: &str, piece: usize) -> Vec<u8> {
        let print = Print::of_form(&format!("multipart/form-data; boundary=\"{boundary}\"")).unwrap();
        let text = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{content}\r\n--{boundary}--\r\n"
        );
        for piece in text.as_bytes().chunks(piece) {
            let State::Form(form) = &mut *print.state() else { panic!("no form") };
            form.take(piece);
        }
        print.digest()
    }

    #[test]
    fn a_form_is_known_whatever_its_boundary_and_its_pieces() {
        let one = form("abc", "rows\n--ab\nrows", 1000);
        for piece in [1, 2, 3, 7, 50] {
            assert_eq!(form("abc", "rows\n--ab\nrows", piece), one, "in pieces of {piece}");
            assert_eq!(form("----another-one-1234567890", "rows\n--ab\nrows", piece), one, "in pieces of {piece}");
        }
        assert_ne!(form("abc", "rows\n--ab\nrow", 3), one);
        assert_ne!(form("abc", "rows\n--ab\nrows ", 3), one);
    }

    #[test]
    fn what_follows_the_closing_boundary_does_not_count() {
        let print = Print::of_form("multipart/form-data; boundary=b").unwrap();
        let State::Form(form) = &mut *print.state() else { panic!("no form") };
        form.take(b"--b--");
        let before = form.digest();
        form.take(b"\r\nepilogue");
        assert_eq!(form.digest(), before);
    }

    #[test]
    fn only_a_form_is_taken_for_one() {
        for other in
            ["application/json", "multipart/form-data", "multipart/form-data; boundary=", "text/plain; boundary=b"]
        {
            assert!(Print::of_form(other).is_none(), "{other}");
        }
        assert!(Print::of_form("Multipart/Form-Data; charset=x; Boundary=b").is_some());
    }

    #[tokio::test]
    async fn a_watched_body_is_the_same_body() {
        let print = Print::of_form("multipart/form-data; boundary=b").unwrap();
        let body = print.watch(Body::from("--b\r\n\r\nx\r\n--b--\r\n"));
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!(bytes, "--b\r\n\r\nx\r\n--b--\r\n");
        assert_ne!(print.digest(), Sha256::digest(b"").to_vec());
    }
}
