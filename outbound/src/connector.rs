//! Resolves a name once, judges every address that it gives, and connects to one of just those.
//!
//! There is no second look at the name between the judgement and the connection, so a name that answers otherwise the
//! next time gains nothing. One bad address among good ones refuses the whole name: it is not a mistake that happens.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::policy::{Policy, Refusal};

/// What a name stands for.
pub trait Names: Send + Sync {
    /// Its addresses.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// What opens a connection. Gets an address that was judged, and nothing else.
pub trait Dial: Send + Sync {
    /// A connection to `address`.
    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemNames;

impl Names for SystemNames {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|found| found.ip()).collect()) })
    }
}

/// Real sockets.
#[derive(Debug, Clone, Copy)]
pub struct Sockets;

impl Dial for Sockets {
    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(address))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It is not allowed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The name stands for nothing, or the resolver is away.
    #[error("the name '{host}' cannot be resolved")]
    Name {
        /// The name.
        host: String,
        /// What the resolver said; of no interest to users.
        #[source]
        cause: io::Error,
    },
    /// Nobody answers there.
    #[error("nobody answers there: {0}")]
    Unreachable(#[source] io::Error),
}

/// The connector of [`client`](crate::client).
#[derive(Clone)]
pub(crate) struct Connector {
    policy: Arc<Policy>,
    names: Arc<dyn Names>,
    dial: Arc<dyn Dial>,
}

impl Connector {
    pub(crate) fn new(policy: Policy, names: Arc<dyn Names>, dial: Arc<dyn Dial>) -> Self {
        Self { policy: Arc::new(policy), names, dial }
    }

    async fn connect(&self, uri: &Uri) -> Result<TcpStream, ConnectError> {
        let host = uri.host().ok_or(Refusal::NoHost)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        self.policy.port(port)?;
        let addresses = self.addresses(host).await?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match self.dial.dial(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(ConnectError::Unreachable(last))
    }

    /// What the host stands for; all of it is allowed.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, ConnectError> {
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => self
                .names
                .resolve(host)
                .await
                .map_err(|cause| ConnectError::Name { host: host.chars().take(255).collect(), cause })?,
        };
        for address in &addresses {
            self.policy.address(*address)?;
        }
        Ok(addresses)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}
