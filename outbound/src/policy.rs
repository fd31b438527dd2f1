//! The policy of an installation: the destinations that its users may reach, as far as a URL itself determines them.

use std::net::IpAddr;

use http::Uri;
use url::{Host, Url};

use crate::address;

/// The maximum length of a URL, in bytes.
pub const MOST_URL_BYTES: usize = 2048;

/// The destinations that users may make the platform connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// `true`: loopback addresses are allowed, for development and tests.
    pub allow_loopback: bool,
    /// The allowed ports; empty: any.
    pub ports: Vec<u16>,
}

/// The reason why a URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The URL cannot be parsed.
    #[error("it is not a URL: {0}")]
    NotAUrl(String),
    /// The URL is too long.
    #[error("it is longer than {MOST_URL_BYTES} bytes")]
    TooLong,
    /// The scheme is not allowed.
    #[error("its scheme is '{0}'; http and https are allowed")]
    Scheme(String),
    /// The URL contains a user name or a password.
    #[error("a user name or password in it is not allowed")]
    UserInfo,
    /// The URL has no host.
    #[error("it has no host")]
    NoHost,
    /// The installation does not allow the port.
    #[error("port {port} is not allowed; allowed: {allowed}")]
    Port {
        /// The port of the URL, or the scheme's default.
        port: u16,
        /// The configured ports.
        allowed: String,
    },
    /// The URL leads to an address that is not public. The address is not shown: names are resolved inside the
    /// platform's network, and users must not learn their internal addresses.
    #[error("it leads to an address that is not public ({0})")]
    Address(&'static str),
}

impl Policy {
    /// Parses a URL and checks its own contents; a name in it is checked when the connection is opened.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn url(&self, text: &str) -> Result<Url, Refusal> {
        if text.len() > MOST_URL_BYTES {
            return Err(Refusal::TooLong);
        }
        // Parsers interpret these differently, so the destination of such a URL is ambiguous.
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err(Refusal::NotAUrl("spaces, control characters and backslashes are not allowed".into()));
        }
        let mut url = Url::parse(text).map_err(|e| Refusal::NotAUrl(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Scheme(url.scheme().chars().take(40).collect()));
        }
        if !url.username().is_empty() || url.password().is_some() || authority(text).contains('@') {
            return Err(Refusal::UserInfo);
        }
        self.port(url.port_or_known_default().unwrap_or_default())?;
        match url.host() {
            None => return Err(Refusal::NoHost),
            Some(Host::Ipv4(address)) => self.address(address.into())?,
            Some(Host::Ipv6(address)) => self.address(address.into())?,
            Some(Host::Domain(_)) => {}
        }
        url.set_fragment(None);
        uri(&url)?;
        Ok(url)
    }

    /// Checks an address, immediately before it is connected to.
    ///
    /// # Errors
    /// [`Refusal::Address`].
    pub fn address(&self, address: IpAddr) -> Result<(), Refusal> {
        match address::special(address) {
            None => Ok(()),
            Some(_) if self.allow_loopback && address.is_loopback() => Ok(()),
            Some(kind) => Err(Refusal::Address(kind)),
        }
    }

    /// Checks a port.
    ///
    /// # Errors
    /// [`Refusal::Port`].
    pub fn port(&self, port: u16) -> Result<(), Refusal> {
        if port != 0 && (self.ports.is_empty() || self.ports.contains(&port)) {
            return Ok(());
        }
        let allowed = self.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Refusal::Port { port, allowed: if allowed.is_empty() { "1 to 65535".into() } else { allowed } })
    }
}

/// Converts the URL to the type that the HTTP client requires.
///
/// # Errors
/// [`Refusal::NotAUrl`]: the URL has characters that cannot be sent.
pub(crate) fn uri(url: &Url) -> Result<Uri, Refusal> {
    url.as_str().parse().map_err(|e: http::uri::InvalidUri| Refusal::NotAUrl(e.to_string()))
}

/// Returns the text between `//` and the path: an `@` in it marks a user, even an empty one.
fn authority(text: &str) -> &str {
    let rest = text.split_once(':').map_or(text, |(_, rest)| rest).trim_start_matches('/');
    rest.split(['/', '?', '#']).next().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_by_what_it_says_itself() {
        let policy = Policy::default();
        for (text, refusal) in [
            ("hooks.example", Refusal::NotAUrl("relative URL without a base".into())),
            ("ftp://hooks.example/", Refusal::Scheme("ftp".into())),
            ("https://me@hooks.example/", Refusal::UserInfo),
            ("https://@hooks.example/", Refusal::UserInfo),
            ("https://10.1.2.3/", Refusal::Address("private")),
            ("https://0x7f.1/", Refusal::Address("loopback")),
            ("https://[::1]/", Refusal::Address("loopback")),
            ("https://hooks.example:0/", Refusal::Port { port: 0, allowed: "1 to 65535".into() }),
        ] {
            assert_eq!(policy.url(text).unwrap_err(), refusal, "{text}");
        }
        assert_eq!(policy.url(&format!("https://a/{}", "x".repeat(2048))), Err(Refusal::TooLong));
        let taken = policy.url("https://hooks.example/a?b=c@d#e").unwrap();
        assert_eq!(taken.as_str(), "https://hooks.example/a?b=c@d");
    }

    #[test]
    fn an_installation_can_name_ports_and_let_this_machine_in() {
        let policy = Policy { allow_loopback: true, ports: vec![443, 8443] };
        assert!(policy.url("https://127.0.0.1:8443/").is_ok());
        assert!(policy.url("https://[::1]/").is_ok());
        assert_eq!(policy.url("https://10.0.0.1/"), Err(Refusal::Address("private")));
        assert_eq!(policy.url("https://[::ffff:127.0.0.1]/"), Err(Refusal::Address("IPv4-mapped")));
        let refused = policy.url("http://hooks.example/").unwrap_err();
        assert_eq!(refused.to_string(), "port 80 is not allowed; allowed: 443, 8443");
    }
}
