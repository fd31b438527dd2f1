//! The accept loop: it accepts connections, reserves a slot for each, and serves HTTP/1.1.

use std::{convert::Infallible, io, io::Write, net::SocketAddr, pin::pin, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    response::Response,
};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tower::{Service, ServiceExt};

use crate::{body, min_rate::MinRate, places::Places, socket::Socket};

/// The maximum number of concurrent connections, if the limit of open files allows it.
pub const MOST_CONNECTIONS: usize = 4096;

/// The maximum number of concurrent connections from one address (IPv6: from one /64).
pub const MOST_CONNECTIONS_PER_ADDRESS: usize = 1024;

/// The timeout in seconds for the head of a request, from the end of the previous response: also that of an idle
/// connection.
pub const HEAD_SECONDS: u64 = 30;

/// The number of seconds that the server waits for a request body, in addition to the time of its bytes at the minimum
/// rate.
const BODY_GRACE_SECONDS: u64 = 30;

/// The number of seconds that the server waits for the reader of a response, in addition to the time of its bytes at
/// the minimum rate.
const READER_GRACE_SECONDS: u64 = 60;

/// The minimum rate at which a body is sent and a response is read: a line of 64 kbit/s.
const LEAST_BYTES_PER_SECOND: u64 = 8 << 10;

/// The number of descriptors reserved for uses other than connections.
const KEPT_DESCRIPTORS: u64 = 256;

/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// The response to a connection above the limits.
const REFUSAL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n",
    "content-length: 138\r\n\r\n",
    r#"{"error":{"message":"Too many connections are open, in all or from this address.","type":"server_error","#,
    r#""param":null,"code":"overloaded"}}"#
);

/// The limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The maximum number of concurrent connections.
    pub connections: usize,
    /// The maximum number of concurrent connections from one address.
    pub connections_per_address: usize,
    /// The timeout for the head of a request.
    pub head: Duration,
    /// The time that the server waits for a body, in addition to that of its bytes.
    pub body_grace: Duration,
    /// The time that the server waits for a reader, in addition to that of its bytes.
    pub reader_grace: Duration,
    /// The minimum rate, which extends both times by that of the bytes transferred.
    pub least_bytes_per_second: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: MOST_CONNECTIONS,
            connections_per_address: MOST_CONNECTIONS_PER_ADDRESS,
            head: Duration::from_secs(HEAD_SECONDS),
            body_grace: Duration::from_secs(BODY_GRACE_SECONDS),
            reader_grace: Duration::from_secs(READER_GRACE_SECONDS),
            least_bytes_per_second: LEAST_BYTES_PER_SECOND,
        }
    }
}

impl Bounds {
    /// Limits the connections to half of these descriptors, less the reserved ones: each connection may need another
    /// descriptor.
    #[must_use]
    pub fn within(self, descriptors: u64) -> Self {
        let most = usize::try_from(descriptors.saturating_sub(KEPT_DESCRIPTORS) / 2).unwrap_or(usize::MAX).max(1);
        Self { connections: self.connections.min(most), ..self }
    }
}

/// Serves until `stop` completes, and then until the requests in progress are answered.
pub async fn serve(listener: TcpListener, router: Router, bounds: Bounds, stop: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let places = Places::new(bounds.connections, bounds.connections_per_address);
    let mut http = Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(bounds.head);
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let Some(place) = places.take(peer.ip()) else {
            refuse(stream);
            continue;
        };
        // Tokens of a stream are small and should not wait for each other. An error is ignored: a closed socket fails
        // later.
        let _ = stream.set_nodelay(true);
        let socket =
            TokioIo::new(Socket::new(stream, MinRate::new(bounds.reader_grace, bounds.least_bytes_per_second)));
        let service = TowerToHyperService::new(service(router.clone(), peer, bounds));
        let connection = graceful.watch(http.serve_connection(socket, service).into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Returns the service for the requests of one connection.
fn service(
    router: Router,
    peer: SocketAddr,
    bounds: Bounds,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send {
    router.into_service::<Body>().map_request(move |request: Request<Incoming>| {
        let min_rate = MinRate::new(bounds.body_grace, bounds.least_bytes_per_second);
        let mut request = request.map(|incoming| body::paced(Body::new(incoming), min_rate));
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    })
}

/// Waits after a failed accept. A peer that disconnected before it was accepted needs no pause; any other error means
/// that descriptors or memory are exhausted at the moment.
async fn pause(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(%error, "no connection could be accepted");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends the response and closes the connection, without blocking: the send buffer of a new socket has room for it.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(REFUSAL.as_bytes());
    }
}
