//! Request heads that never end, without an API key: the connections are closed, and connections above the limit are
//! refused immediately.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use attune_tests::platform::Platform;
use reqwest::Method;

/// The number of the attacker's connections; above the limit per address.
const CONNECTIONS: usize = 300;

/// The limit of connections per address.
const PLACES: usize = 200;

fn connect(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A refused connection may be closed already.
    let _ = socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a16_heads_that_never_end_hold_nothing_for_long() {
    let settings = format!("[limits]\nconnections_per_address = {PLACES}\nhead_seconds = 2\n");
    let platform = Platform::start_with(&settings).unwrap();
    let address: SocketAddr = platform.url.strip_prefix("http://").unwrap().parse().unwrap();
    let begun = Instant::now();
    let held = tokio::task::spawn_blocking(move || {
        let mut sockets: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(address)).collect();
        // The server closes each connection, with or without a response; reading from an open one times out.
        let is_held = |socket: &mut TcpStream| {
            let end = socket.read_to_end(&mut Vec::new());
            end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        sockets.iter_mut().filter_map(|socket| is_held(socket).then_some(())).count()
    })
    .await
    .unwrap();
    assert_eq!(held, 0, "still open after 20 s");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let (status, _) = platform.call(Method::GET, "/healthz", None).await.unwrap();
    assert_eq!(status, 200);
    let (status, files) = platform.call(Method::GET, "/v1/files", None).await.unwrap();
    assert_eq!(status, 200, "{files}");
}
