//! The loop: accepts connections, gives each a place, and serves HTTP/1.1 on it.

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

use crate::{body, pace::Pace, places::Places, socket::Socket};

/// Connections at once, if the limit of open files allows them.
pub const MOST_CONNECTIONS: usize = 4096;

/// Connections at once from one address (IPv6: from one /64).
pub const MOST_CONNECTIONS_PER_ADDRESS: usize = 1024;

/// The time for the head of a request, from the end of the answer before it: also that of an idle connection.
pub const HEAD_SECONDS: u64 = 30;

/// The time that a body may keep us waiting, beside the time of its bytes at the least rate.
const BODY_GRACE_SECONDS: u64 = 30;

/// The time that the reader of an answer may keep us waiting, beside the time of its bytes at the least rate.
const READER_GRACE_SECONDS: u64 = 60;

/// The least rate of a body, and of the reading of an answer: a line of 64 kbit/s.
const LEAST_BYTES_PER_SECOND: u64 = 8 << 10;

/// Descriptors that are kept for all but connections.
const KEPT_DESCRIPTORS: u64 = 256;

/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// The answer to a connection for which there is no place.
const REFUSAL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n",
    "content-length: 138\r\n\r\n",
    r#"{"error":{"message":"Too many connections are open, in all or from this address.","type":"server_error","#,
    r#""param":null,"code":"overloaded"}}"#
);

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_address: usize,
    /// The time for the head of a request.
    pub head: Duration,
    /// The time that a body may keep us waiting.
    pub body_grace: Duration,
    /// The time that a reader may keep us waiting.
    pub reader_grace: Duration,
    /// The rate at which their bytes give either more time.
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
    /// No more connections than half of what is left of these descriptors: each may need another one.
    #[must_use]
    pub fn within(self, descriptors: u64) -> Self {
        let most = usize::try_from(descriptors.saturating_sub(KEPT_DESCRIPTORS) / 2).unwrap_or(usize::MAX).max(1);
        Self { connections: self.connections.min(most), ..self }
    }
}

/// Serves until `stop`, and then until the requests at hand have their answers.
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
        // Tokens of a stream are small and should not wait for each other; a socket that is gone says so later.
        let _ = stream.set_nodelay(true);
        let socket = TokioIo::new(Socket::new(stream, Pace::new(bounds.reader_grace, bounds.least_bytes_per_second)));
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

/// The routes, for requests of one connection.
fn service(
    router: Router,
    peer: SocketAddr,
    bounds: Bounds,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send {
    router.into_service::<Body>().map_request(move |request: Request<Incoming>| {
        let pace = Pace::new(bounds.body_grace, bounds.least_bytes_per_second);
        let mut request = request.map(|incoming| body::paced(Body::new(incoming), pace));
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    })
}

/// A peer that left before it was accepted is nothing; else descriptors or memory are short for the moment.
async fn pause(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(%error, "no connection could be accepted");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Says so and closes, without waiting for anything: a new socket has room for a few bytes.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(REFUSAL.as_bytes());
    }
}
