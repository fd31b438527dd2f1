//! URLs that must be refused, and URLs that must reach the address that they name. No socket is opened.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_outbound::{
    address::special,
    client::{Client, SendError},
    connector::{Dial, Names},
    policy::Policy,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use tokio::net::TcpStream;

/// The names of testdata/names.txt, and the number of times each was resolved.
#[derive(Default)]
struct Table {
    names: BTreeMap<String, Vec<IpAddr>>,
    asked: Mutex<HashMap<String, usize>>,
}

impl Table {
    fn read() -> Self {
        let lines = include_str!("../../testdata/names.txt").lines().filter(|line| !line.starts_with('#'));
        let names = lines.map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap().to_owned();
            (name, words.map(|word| word.parse().unwrap()).collect())
        });
        Self { names: names.collect(), asked: Mutex::default() }
    }
}

impl Names for Table {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let mut asked = self.asked.lock().unwrap();
        let times = asked.entry(host.to_owned()).or_default();
        *times += 1;
        // Public when it is first resolved, internal the next time; and the other way round.
        let found = match (host, *times) {
            ("rebinds.example", 1) => Ok(vec!["93.184.215.14".parse().unwrap()]),
            ("rebinds.example", _) | ("rebinds-at-once.example", 1) => Ok(vec!["127.0.0.1".parse().unwrap()]),
            ("rebinds-at-once.example", _) => Ok(vec!["93.184.215.14".parse().unwrap()]),
            _ => self.names.get(host).cloned().ok_or_else(|| io::Error::other("no such name")),
        };
        Box::pin(async { found })
    }
}

/// A dialer that records addresses instead of connecting.
#[derive(Default)]
struct Recorder(Mutex<Vec<SocketAddr>>);

impl Dial for Recorder {
    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.0.lock().unwrap().push(address);
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

/// A client with its own resolver and sockets. One for many URLs: creating one reads the system's certificates.
struct Judge {
    policy: Policy,
    client: Client,
    table: Arc<Table>,
    recorder: Arc<Recorder>,
}

impl Judge {
    fn new(policy: Policy) -> Self {
        let (table, recorder) = (Arc::new(Table::read()), Arc::new(Recorder::default()));
        let client = Client::with(policy.clone(), Duration::from_secs(5), table.clone(), recorder.clone()).unwrap();
        Self { policy, client, table, recorder }
    }

    /// Returns the addresses that a URL connects to, and the reason if it is refused.
    async fn try_url(&self, text: &str) -> (Vec<SocketAddr>, Result<(), String>) {
        let refused = match self.policy.url(text) {
            Err(refusal) => Err(refusal.to_string()),
            Ok(url) => match self.client.post(&url, HeaderMap::new(), Bytes::new()).await {
                Err(SendError::Refused(refusal)) => Err(refusal.to_string()),
                Err(error) => Err(error.to_string()),
                Ok(_) => Ok(()),
            },
        };
        let asked = std::mem::take(&mut *self.table.asked.lock().unwrap());
        assert!(asked.values().all(|times| *times == 1), "{text}: a name was asked for twice");
        (std::mem::take(&mut *self.recorder.0.lock().unwrap()), refused)
    }
}

fn lines(text: &str) -> Vec<String> {
    let kept = text.lines().filter(|line| !line.starts_with('#'));
    let mut lines: Vec<String> = kept.map(|line| line.replace("%TAB%", "\t").replace("%LF%", "\n")).collect();
    // Empty lines separate groups; an empty URL is added as another case.
    lines.retain(|line| !line.is_empty());
    lines.push(String::new());
    lines
}

#[tokio::test]
async fn no_ssrf_url_is_let_through() {
    let judge = Judge::new(Policy::default());
    let tried = lines(include_str!("../../testdata/refused.txt"));
    let mut through = Vec::new();
    for text in &tried {
        let (called, refused) = judge.try_url(text).await;
        if !called.is_empty() || refused.is_ok() {
            through.push(format!("{text}: {called:?} {refused:?}"));
        }
    }
    println!("tried {} URLs that must lead nowhere", tried.len());
    for figure in [
        format!(r#"{{"figure": "ssrf_urls_tried", "value": {}, "bar": 200}}"#, tried.len()),
        format!(r#"{{"figure": "ssrf_urls_let_through", "value": {}, "bar": 0, "at_most": true}}"#, through.len()),
    ] {
        println!("{figure}");
        attune_tests::figure(&figure);
    }
    assert!(tried.len() >= 200, "{}", tried.len());
    assert!(through.is_empty(), "{through:#?}");
}

#[tokio::test]
async fn public_urls_lead_where_they_say() {
    let judge = Judge::new(Policy::default());
    for line in include_str!("../../testdata/passed.txt").lines().filter(|line| !line.starts_with('#')) {
        let (text, address) = line.rsplit_once(' ').unwrap();
        let (called, _) = judge.try_url(text).await;
        assert_eq!(called.first().map(ToString::to_string).as_deref(), Some(address), "{text}");
    }
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_that_is_called() {
    let (called, _) = Judge::new(Policy::default()).try_url("https://rebinds.example/").await;
    assert_eq!(called, ["93.184.215.14:443".parse().unwrap()]);
}

#[tokio::test]
async fn loopback_is_admitted_alone_where_it_is_allowed() {
    let judge = Judge::new(Policy { allow_loopback: true, ports: Vec::new() });
    let (called, _) = judge.try_url("http://localhost:9000/").await;
    assert_eq!(called, ["127.0.0.1:9000".parse().unwrap(), "[::1]:9000".parse().unwrap()]);
    for text in lines(include_str!("../../testdata/refused.txt")) {
        let (called, _) = judge.try_url(&text).await;
        // A name that resolves to this machine and to a public address may lead to either.
        let allowed = |ip: IpAddr| ip.is_loopback() || special(ip).is_none();
        assert!(called.iter().all(|address| allowed(address.ip())), "{text}: {called:?}");
    }
}

#[tokio::test]
async fn ports_are_checked_where_they_are_named() {
    let judge = Judge::new(Policy { allow_loopback: false, ports: vec![443] });
    let (called, refused) = judge.try_url("http://hooks.example/").await;
    assert_eq!((called, refused), (vec![], Err("port 80 is not allowed; allowed: 443".into())));
    assert_eq!(judge.try_url("https://hooks.example/").await.0.len(), 1);
}
