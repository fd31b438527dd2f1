//! A multipart form with bounds on the number of parts and on the bytes before a part's content begins. The parser
//! below it buffers everything that it cannot parse yet, and reads for as long as there are bytes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    extract::{
        FromRequest, Multipart, Request,
        multipart::{Field, MultipartError},
    },
    http::StatusCode,
};
use futures::Stream;

use crate::{app::App, error::ApiError};

/// The maximum number of parts in a form. An adapter's has up to four fields and nine files.
const MOST_PARTS: usize = 100;

/// The maximum number of bytes before a part's content begins: its headers, and the content that arrives in the same
/// chunk.
const HEADER_BYTES: usize = 256 << 10;

/// The maximum length of a field that is not a file, in bytes.
const FIELD_BYTES: usize = 1 << 10;

/// The maximum length of a chunk that the parser receives, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// The unlimited budget: a part's content is limited by its reader.
const CONTENT: usize = usize::MAX;

/// A multipart form, part by part.
pub struct Form {
    inner: Multipart,
    /// The limit of a body that the router sets, in bytes; the routes of large forms disable it.
    body_limit: u64,
    room: Arc<AtomicUsize>,
    parts: usize,
}

impl FromRequest<App> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        Self::new(request, app.limits.json_bytes).await
    }
}

impl Form {
    async fn new(request: Request, body_limit: u64) -> Result<Self, ApiError> {
        let room = Arc::new(AtomicUsize::new(HEADER_BYTES));
        let (head, body) = request.into_parts();
        let metered =
            Metered { inner: body.into_data_stream(), rest: Bytes::new(), room: Arc::clone(&room), given: false };
        let request = Request::from_parts(head, Body::from_stream(metered));
        match Multipart::from_request(request, &()).await {
            Ok(inner) => Ok(Self { inner, body_limit, room, parts: 0 }),
            Err(_) => Err(ApiError::UnsupportedMediaType { wanted: "multipart/form-data with a boundary" }),
        }
    }

    /// Returns the next part; the one before it must have been read to its end.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the form is incomplete, has too many parts, or a part's headers are too long.
    /// [`ApiError::TooLarge`]: the body exceeds its limit.
    pub async fn next_field(&mut self) -> Result<Option<Part<'_>>, ApiError> {
        self.parts += 1;
        if self.parts > MOST_PARTS {
            let message = format!("The form has more than {MOST_PARTS} parts.");
            return Err(ApiError::Invalid { param: None, code: "invalid_multipart", message });
        }
        self.next_of_any_number().await
    }

    /// Returns the next part as [`next_field`](Self::next_field) does, without a limit on their number, to drain a
    /// refused form.
    ///
    /// # Errors
    /// As [`next_field`](Self::next_field), except for the number of parts.
    pub async fn next_of_any_number(&mut self) -> Result<Option<Part<'_>>, ApiError> {
        self.room.store(HEADER_BYTES, Ordering::Relaxed);
        let (room, body_limit) = (Arc::clone(&self.room), self.body_limit);
        match self.inner.next_field().await {
            Ok(field) => {
                room.store(CONTENT, Ordering::Relaxed);
                Ok(field.map(|inner| Part { inner, body_limit }))
            }
            Err(_) if room.load(Ordering::Relaxed) == 0 => {
                let message = format!("The headers of a part of the form are longer than {HEADER_BYTES} bytes.");
                Err(ApiError::Invalid { param: None, code: "invalid_multipart", message })
            }
            Err(error) => Err(unread(&error, body_limit)),
        }
    }
}

/// A part of a form.
pub struct Part<'a> {
    inner: Field<'a>,
    body_limit: u64,
}

impl Part<'_> {
    /// Returns the part's name; an empty one if it is missing.
    pub fn name(&self) -> &str {
        self.inner.name().unwrap_or("")
    }

    /// Returns the name of the part's file.
    pub fn file_name(&self) -> Option<&str> {
        self.inner.file_name()
    }

    /// Returns the next chunk of the content; `None` at its end.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the form is incomplete. [`ApiError::TooLarge`]: the body exceeds its limit.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        self.inner.chunk().await.map_err(|error| unread(&error, self.body_limit))
    }

    /// Reads the value of a part that is not a file.
    ///
    /// # Errors
    /// As [`chunk`](Self::chunk). [`ApiError::Invalid`]: the value is too long, or is not UTF-8.
    pub async fn text(mut self) -> Result<String, ApiError> {
        let mut value = Vec::new();
        while let Some(piece) = self.chunk().await? {
            value.extend_from_slice(&piece);
            if value.len() > FIELD_BYTES {
                let name = self.name();
                return Err(ApiError::invalid(name, format!("'{name}' is longer than {FIELD_BYTES} bytes.")));
            }
        }
        String::from_utf8(value).map_err(|_| {
            let name = self.name();
            ApiError::invalid(name, format!("'{name}' is not UTF-8."))
        })
    }
}

/// Converts an error of the multipart parser.
fn unread(error: &MultipartError, body_limit: u64) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::TooLarge { what: "request body", limit: body_limit };
    }
    let message = format!("The request body was incomplete: {}.", error.body_text());
    ApiError::Invalid { param: None, code: "invalid_multipart", message }
}

/// The body in chunks, each of which the parser processes before it receives the next.
struct Metered {
    inner: BodyDataStream,
    rest: Bytes,
    /// The number of bytes that may still come before a part's content begins; 0 once it is exceeded.
    room: Arc<AtomicUsize>,
    given: bool,
}

impl Stream for Metered {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // The parser polls until the stream is pending: it gets `Pending` after each chunk, and is woken immediately.
        if std::mem::take(&mut self.given) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(bytes)) => self.rest = bytes,
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        let room = self.room.load(Ordering::Relaxed);
        if room != CONTENT {
            self.room.store(room.saturating_sub(length), Ordering::Relaxed);
            if room <= length {
                return Poll::Ready(Some(Err(axum::Error::new("a part's headers are too long"))));
            }
        }
        self.given = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use axum::{extract::DefaultBodyLimit, http::header};
    use futures::{StreamExt, stream};

    use super::*;

    /// Returns a form whose body has these chunks, and the counter of the chunks that were read.
    async fn form(pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> (Form, Arc<AtomicUsize>) {
        limited(pieces, 2 << 20).await
    }

    /// Returns such a form behind a router with this limit of a body, in bytes.
    async fn limited(pieces: impl Iterator<Item = Vec<u8>> + Send + 'static, limit: u32) -> (Form, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let body = stream::iter(pieces).map(move |piece| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(piece)
        });
        let request = Request::post("/").header(header::CONTENT_TYPE, "multipart/form-data; boundary=b");
        let mut request = request.body(Body::from_stream(body)).unwrap();
        DefaultBodyLimit::max(limit as usize).apply(&mut request);
        (Form::new(request, limit.into()).await.unwrap(), asked)
    }

    fn part(name: &str, content: &[u8]) -> Vec<u8> {
        let head = format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    }

    #[tokio::test]
    async fn a_form_is_read_in_whatever_pieces_it_comes() {
        let whole = [part("a", b"1"), part("b", &vec![7; 1 << 20]), b"--b--\r\n".to_vec()].concat();
        for size in [1000, 100_000, whole.len()] {
            let pieces: Vec<Vec<u8>> = whole.chunks(size).map(<[u8]>::to_vec).collect();
            let (mut form, _) = form(pieces.into_iter()).await;
            let mut lengths = Vec::new();
            while let Some(mut field) = form.next_field().await.unwrap() {
                let mut length = 0;
                while let Some(piece) = field.chunk().await.unwrap() {
                    length += piece.len();
                }
                lengths.push((field.name().to_owned(), length));
            }
            assert_eq!(lengths, [("a".to_owned(), 1), ("b".to_owned(), 1 << 20)], "{size}");
        }
    }

    #[tokio::test]
    async fn attack_a18_a_form_ends_after_so_many_parts() {
        let (mut form, asked) = form((0..1_000_000).map(|_| part("files", b""))).await;
        let mut parts = 0;
        let refused = loop {
            match form.next_field().await {
                Ok(field) => parts += usize::from(field.is_some()),
                Err(refused) => break refused,
            }
        };
        assert_eq!(parts, MOST_PARTS);
        assert!(refused.to_string().contains("more than 100 parts"), "{refused}");
        assert!(asked.load(Ordering::Relaxed) < 2 * MOST_PARTS);
    }

    #[tokio::test]
    async fn limit_a_field_that_is_no_file_is_short() {
        let (mut form, _) = form(std::iter::once([part("name", &[b'x'; 1025]), b"--b--\r\n".to_vec()].concat())).await;
        let field = form.next_field().await.unwrap().unwrap();
        let refused = field.text().await.unwrap_err().to_string();
        assert!(refused.contains("longer than 1024 bytes"), "{refused}");
    }

    #[tokio::test]
    async fn a_body_beyond_its_limit_is_refused_with_that_limit() {
        let (head, rest) = (part("file", b"content"), vec![7; 2000]);
        // The limit is exceeded before the first part is found.
        let (mut form, _) = limited(std::iter::once([head.clone(), rest.clone()].concat()), 1000).await;
        let refused = form.next_field().await.err().unwrap().to_string();
        assert_eq!(refused, "The request body is larger than 1000 bytes, the maximum.");
        // The limit is exceeded in the content of a part.
        let begun = head[..head.len() - 2].to_vec();
        let (mut form, _) = limited([begun, rest].into_iter(), 1000).await;
        let mut field = form.next_field().await.unwrap().unwrap();
        let refused = loop {
            match field.chunk().await {
                Ok(piece) => assert!(piece.is_some(), "the part ended"),
                Err(refused) => break refused.to_string(),
            }
        };
        assert_eq!(refused, "The request body is larger than 1000 bytes, the maximum.");
    }

    #[tokio::test]
    async fn limit_headers_of_a_part_that_never_end_are_refused() {
        let endless =
            std::iter::once(b"--b\r\nContent-Disposition: ".to_vec()).chain((0..1000).map(|_| vec![b'x'; 100_000]));
        let (mut form, asked) = form(endless).await;
        let refused = form.next_field().await.err().unwrap();
        assert!(refused.to_string().contains("longer than 262144 bytes"), "{refused}");
        assert!(asked.load(Ordering::Relaxed) <= 4);
        // The same limit holds for the bytes before the first part.
        let (mut form, asked) = self::form((0..1000).map(|_| vec![b'x'; 100_000])).await;
        assert!(form.next_field().await.is_err());
        assert!(asked.load(Ordering::Relaxed) <= 4);
    }
}
