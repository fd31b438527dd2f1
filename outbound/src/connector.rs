//! The connector: it resolves a name once, checks every address of the result, and connects to one of those only.
//!
//! The name is not resolved again between the check and the connection, so a name that resolves differently the next
//! time (DNS rebinding) has no effect. One forbidden address among public ones refuses the whole name: that does not
//! happen by mistake.

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

/// A resolver of host names.
pub trait Names: Send + Sync {
    /// Resolves a host name to its addresses.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// A function that opens connections. It receives only addresses that were checked.
pub trait Dial: Send + Sync {
    /// Opens a connection to `address`.
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

/// The reason why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The policy does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The name does not resolve, or the resolver is unavailable.
    #[error("the name '{host}' cannot be resolved")]
    Name {
        /// The host name.
        host: String,
        /// The resolver's error, which users do not see.
        #[source]
        cause: io::Error,
    },
    /// No address accepts a connection.
    #[error("the connection failed: {0}")]
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

    /// Returns the host's addresses, all of which are allowed.
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
