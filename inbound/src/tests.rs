//! Slow and idle clients against a real socket, with timeouts of a fraction of a second.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Bounds, serve};

const SHORT: Duration = Duration::from_millis(400);

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
    /// The number of endless response bodies that are being written.
    endless: Arc<AtomicUsize>,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn bounds() -> Bounds {
    Bounds { head: SHORT, body_grace: SHORT, reader_grace: SHORT, ..Bounds::default() }
}

async fn start(bounds: Bounds) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let endless = Arc::new(AtomicUsize::new(0));
    let counter = endless.clone();
    let router = Router::new()
        .route("/", get(|| async { "hello" }).post(|body: Bytes| async move { body.len().to_string() }))
        .route(
            "/slow",
            get(|| async {
                sleep(3 * SHORT).await;
                "late"
            }),
        )
        .route(
            "/endless",
            get(move || async move {
                counter.fetch_add(1, Ordering::SeqCst);
                let counted = Counted(counter);
                Body::from_stream(stream::repeat(Bytes::from(vec![b'x'; 1 << 16])).map(move |piece| {
                    let _ = &counted;
                    Ok::<_, Infallible>(piece)
                }))
            }),
        );
    let done = tokio::spawn(serve(listener, router, bounds, async move {
        let _ = stopped.await;
    }));
    Server { address, stop, done, endless }
}

/// Sends `text` and reads until the server closes the connection.
async fn said(address: SocketAddr, text: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    rest(&mut socket).await
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(10 * SHORT, socket.read_to_end(&mut answer)).await.expect("the connection stays open");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn attack_a16_limit_of_a_head_s_time_ends_heads_that_do_not() {
    let server = start(bounds()).await;
    let begun = Instant::now();
    let mut sockets = Vec::new();
    for _ in 0..100 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
        sockets.push(socket);
    }
    // Other clients are served meanwhile, and their idle connections end after the same timeout.
    let answer = said(server.address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    for socket in &mut sockets {
        socket.write_all(b"x").await.ok();
        rest(socket).await;
    }
    assert!(begun.elapsed() < 5 * SHORT, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn limit_of_a_body_s_rate_ends_one_that_stalls_and_no_other() {
    let server = start(bounds()).await;
    let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\nabc";
    let answer = said(server.address, head).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    // A few bytes now and then are just as slow.
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = socket.into_split();
    let dripping = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            sleep(SHORT / 8).await;
        }
    });
    let mut answer = Vec::new();
    let _ = timeout(10 * SHORT, reader.read_to_end(&mut answer)).await.expect("the body drips on");
    dripping.abort();
    // A body that takes longer than the grace period, but is faster than the minimum rate, is complete.
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 80000\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..8 {
        socket.write_all(&[b'x'; 10_000]).await.unwrap();
        sleep(SHORT / 4).await;
    }
    assert!(rest(&mut socket).await.ends_with("80000"));
}

#[tokio::test]
async fn limit_of_a_reader_s_rate_ends_an_answer_that_is_not_read() {
    // The kernel's buffers accept some megabytes at once, which at the usual minimum rate extend the time by minutes.
    let server = start(Bounds { least_bytes_per_second: 1 << 30, ..bounds() }).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    while server.endless.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    while server.endless.load(Ordering::SeqCst) > 0 {
        assert!(begun.elapsed() < 10 * SHORT, "nobody reads, and it is written on");
        sleep(Duration::from_millis(5)).await;
    }
    drop(socket);
    // A response that keeps its reader waiting does not make the reader slow.
    let answer = said(server.address, "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.ends_with("late"), "{answer}");
}

#[tokio::test]
async fn limit_of_connections_refuses_one_more_at_once() {
    let server = start(Bounds { connections_per_address: 2, head: 20 * SHORT, ..bounds() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    sleep(SHORT / 4).await; // until the server has accepted them
    let begun = Instant::now();
    let mut third = TcpStream::connect(server.address).await.unwrap();
    let answer = rest(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("}}"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    assert!(begun.elapsed() < SHORT);
    drop(held);
    sleep(SHORT / 4).await;
    let answer = said(server.address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_stop_waits_for_the_answers_at_hand() {
    let server = start(bounds()).await;
    let address = server.address;
    let asked = tokio::spawn(async move { said(address, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await });
    sleep(SHORT / 2).await;
    server.stop.send(()).unwrap();
    assert!(asked.await.unwrap().ends_with("late"));
    timeout(4 * SHORT, server.done).await.expect("the server does not stop").unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[test]
fn limit_of_connections_leaves_descriptors_for_the_rest() {
    assert_eq!(Bounds::default().within(1024).connections, 384);
    assert_eq!(Bounds::default().within(1 << 20).connections, super::MOST_CONNECTIONS);
    assert_eq!(Bounds::default().within(10).connections, 1);
    assert!(super::raise_descriptor_limit() >= 1024);
}
