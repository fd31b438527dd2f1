//! A TCP proxy in front of the object store, which answers in its place or damages its answers.

use std::{io, time::Duration};

use anyhow::Result;
use tokio::{
    io::{
        AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy, copy_bidirectional, sink,
    },
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The bytes after which [`Mode::Cut`] ends a connection, in each direction.
const CUT_AFTER: u64 = 20 << 10;
/// The bytes that [`Mode::Slow`] passes on at once.
const SLOW_BYTES: usize = 8 << 10;
/// The pause before each of them.
const SLOW_PAUSE: Duration = Duration::from_millis(20);

/// The treatment of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Pass,
    /// Answers each request with this status and error code.
    Answer(u16, &'static str),
    /// Passes everything on slowly.
    Slow,
    /// Ends each connection in the middle of a body.
    Cut,
}

/// A running proxy; it ends with the test's runtime.
pub(crate) struct Proxy {
    mode: watch::Sender<Mode>,
    /// The address, `http://…`.
    pub(crate) url: String,
}

impl Proxy {
    /// Starts a proxy in front of `target`, `http://…`.
    pub(crate) async fn start(target: &str) -> Result<Self> {
        let target = target.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (mode, modes) = watch::channel(Mode::Pass);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, target.clone(), modes.clone()));
            }
        });
        Ok(Self { mode, url })
    }

    /// Changes the mode, and ends all connections.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn serve(socket: TcpStream, target: String, mut modes: watch::Receiver<Mode>) {
    let mode = *modes.borrow_and_update();
    tokio::select! {
        served = forward(socket, &target, mode) => drop(served),
        changed = modes.changed() => drop(changed),
    }
}

async fn forward(mut client: TcpStream, target: &str, mode: Mode) -> io::Result<()> {
    if let Mode::Answer(status, code) = mode {
        return answer(&mut client, status, code).await;
    }
    let mut server = TcpStream::connect(target).await?;
    if mode == Mode::Pass {
        return copy_bidirectional(&mut client, &mut server).await.map(drop);
    }
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    if mode == Mode::Slow {
        let requests = copy_slowly(&mut from_client, &mut to_server);
        return tokio::try_join!(requests, copy_slowly(&mut from_server, &mut to_client)).map(drop);
    }
    let (mut requests, mut answers) = (from_client.take(CUT_AFTER), from_server.take(CUT_AFTER));
    tokio::select! {
        copied = copy(&mut requests, &mut to_server) => copied.map(drop),
        copied = copy(&mut answers, &mut to_client) => copied.map(drop),
    }
}

async fn copy_slowly(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; SLOW_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        tokio::time::sleep(SLOW_PAUSE).await;
        to.write_all(&buffer[..count]).await?;
    }
}

/// Reads a request, and answers it with an error of S3.
async fn answer(client: &mut TcpStream, status: u16, code: &str) -> io::Result<()> {
    let mut reader = BufReader::new(&mut *client);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    copy(&mut reader.take(length), &mut sink()).await?;
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>injected</Message></Error>");
    let head = format!(
        "HTTP/1.1 {status} {code}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(format!("{head}{body}").as_bytes()).await?;
    client.shutdown().await
}

#[cfg(test)]
mod tests {
    use attune_tests::platform::client;
    use axum::Router;

    use super::*;

    const BODY: usize = 100 << 10;

    /// Returns the status and the number of bytes of an answer.
    async fn get(url: &str) -> reqwest::Result<(u16, usize)> {
        let answer = client().get(url).send().await?;
        Ok((answer.status().as_u16(), answer.bytes().await?.len()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_proxy_passes_answers_on_cuts_them_and_gives_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(|| async { vec![7_u8; BODY] });
        tokio::spawn(async move { axum::serve(listener, app).await });
        let proxy = Proxy::start(&target).await.unwrap();
        for mode in [Mode::Pass, Mode::Slow] {
            proxy.set(mode);
            assert_eq!(get(&proxy.url).await.unwrap(), (200, BODY), "{mode:?}");
        }
        for (status, code) in [(503, "SlowDown"), (412, "PreconditionFailed"), (409, "OperationAborted")] {
            proxy.set(Mode::Answer(status, code));
            assert_eq!(get(&proxy.url).await.unwrap().0, status);
        }
        proxy.set(Mode::Cut);
        assert!(get(&proxy.url).await.is_err());
    }
}
