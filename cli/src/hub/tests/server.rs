//! A scripted HTTP server: one response for each connection, which can break off or stall.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use attune_domain::digest::hex;
use sha2::{Digest, Sha256};

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    /// The path and the query.
    pub(super) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Returns the header of this lower-case name.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone())
    }
}

/// The handling of a response's body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// All is sent.
    Whole,
    /// The connection is closed after so many bytes.
    CloseAfter(usize),
    /// Nothing is sent after so many bytes.
    StallAfter(usize),
}

/// A response.
#[derive(Debug, Clone)]
pub(super) struct Response {
    /// The status.
    pub(super) status: u16,
    /// The handling of the body.
    pub(super) act: Act,
    /// The headers, in addition to those of every response.
    pub(super) headers: Vec<(String, String)>,
    /// The body.
    pub(super) body: Vec<u8>,
}

impl Response {
    /// Creates a response without a body.
    pub(super) fn new(status: u16) -> Self {
        Self { status, act: Act::Whole, headers: Vec::new(), body: Vec::new() }
    }

    /// Creates a response with this body.
    pub(super) fn ok(body: &str) -> Self {
        Self { body: body.into(), ..Self::new(200) }
    }

    /// Adds a header.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Returns the SHA-256 of a text, in hex.
pub(super) fn hex_of(text: &str) -> String {
    hex(Sha256::digest(text.as_bytes()).as_slice())
}

/// Starts a server and returns its address. Its threads end with the test's process.
pub(super) fn serve(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || respond(stream, &*answer));
        }
    });
    url
}

fn respond(mut stream: TcpStream, answer: &dyn Fn(&Request) -> Response) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    let Response { status, act, headers, body } = answer(&Request { path, headers: headers.collect() });
    let mut head = format!("HTTP/1.1 {status} Scripted\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let count = match act {
        Act::Whole => body.len(),
        Act::CloseAfter(count) | Act::StallAfter(count) => count,
    };
    // The client may have closed the connection.
    drop(stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(&body[..count])));
    if matches!(act, Act::StallAfter(_)) {
        std::thread::sleep(Duration::from_secs(5));
    }
}
