//! A local receiver that returns arbitrary responses.

use std::time::{Duration, Instant};

use attune_outbound::{
    client::{Client, MOST_BODY_BYTES, SendError},
    policy::Policy,
};
use bytes::Bytes;
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Sends these bytes to each connection, then keeps it open for a while.
async fn receiver(answer: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(&answer).await;
                tokio::time::sleep(Duration::from_secs(5)).await;
            });
        }
    });
    port
}

async fn post(port: u16, patience: Duration) -> Result<attune_outbound::client::Answer, SendError> {
    let policy = Policy { allow_loopback: true, ports: Vec::new() };
    let client = Client::new(policy.clone(), patience).unwrap();
    let url = policy.url(&format!("http://127.0.0.1:{port}/hook")).unwrap();
    client.post(&url, HeaderMap::new(), Bytes::from_static(b"{}")).await
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let inside = receiver(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret".to_vec()).await;
    let answer = format!("HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:{inside}/\r\ncontent-length: 0\r\n\r\n");
    let port = receiver(answer.into_bytes()).await;
    let answer = post(port, Duration::from_secs(5)).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.len()), (307, 0));
}

#[tokio::test]
async fn of_an_endless_body_only_the_beginning_is_read() {
    let mut endless = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..8 {
        endless.extend(b"1000\r\n");
        endless.extend([b'x'; 0x1000]);
        endless.extend(b"\r\n");
    }
    let answer = post(receiver(endless).await, Duration::from_secs(5)).await.unwrap();
    assert_eq!(answer.body.len(), MOST_BODY_BYTES);
}

#[tokio::test]
async fn no_answer_and_nonsense_end_in_time() {
    let begun = Instant::now();
    let silent = post(receiver(Vec::new()).await, Duration::from_millis(300)).await;
    assert!(matches!(silent, Err(SendError::Timeout(_))), "{silent:?}");
    let nonsense = post(receiver(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()).await, Duration::from_secs(3)).await;
    assert!(matches!(nonsense, Err(SendError::Failed(_))), "{nonsense:?}");
    // The status counts even if the body does not arrive.
    let half = receiver(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()).await;
    assert_eq!(post(half, Duration::from_secs(1)).await.unwrap().status.as_u16(), 204);
    let dripping = receiver(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc".to_vec()).await;
    let answer = post(dripping, Duration::from_millis(500)).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"abc"[..]));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_refused_connection_is_reported_as_that() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = post(port, Duration::from_secs(2)).await.unwrap_err();
    assert!(refused.to_string().starts_with("the connection failed"), "{refused}");
}
