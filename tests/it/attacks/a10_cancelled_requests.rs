//! Callers that disconnect right after their request: the next user of a pooled database connection must not see any of
//! its transaction.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attune_tests::{platform::Platform, tenant::Tenant};
use rand::RngExt;
use reqwest::Method;

use super::callers::ask;

/// The number of requests of each of three callers that disconnect.
const REQUESTS: usize = 500;

/// The number of new API keys; the first use of each writes to the database.
const KEYS: usize = 30;

fn leave(address: SocketAddr, request: &str, going: &AtomicBool) {
    for _ in 0..REQUESTS {
        if !going.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut socket) = TcpStream::connect(address) else { continue };
        let _ = socket.set_nodelay(true);
        let _ = socket.write_all(request.as_bytes());
        let until = Instant::now() + Duration::from_micros(rand::rng().random_range(50..2500));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a10_callers_that_leave_do_not_show_in_others_requests() {
    let platform = Platform::start().unwrap();
    let attacker = Tenant::new(&platform, "attacker").await.unwrap().api_key;
    let bystander = Tenant::new(&platform, "bystander").await.unwrap().project_id;
    let mut fresh = Vec::new();
    for number in 0..KEYS {
        fresh.push(Tenant::with_new_key(&platform, &bystander, &format!("key {number}")).await.unwrap().api_key);
    }
    let host = platform.url.strip_prefix("http://").unwrap();
    let address: SocketAddr = host.parse().unwrap();
    let path = format!("/v1/files/file-{}", "0".repeat(32));
    let request = format!("DELETE {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {attacker}\r\n\r\n");
    let going = Arc::new(AtomicBool::new(true));
    let leavers: Vec<_> = (0..3)
        .map(|_| {
            let (request, going) = (request.clone(), going.clone());
            std::thread::spawn(move || leave(address, &request, &going))
        })
        .collect();
    let mut failed = Vec::new();
    for key in fresh {
        let (status, answer) = ask(Method::GET, format!("{}/v1/models", platform.url), key, None).await;
        if status != 200 {
            failed.push(answer);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    going.store(false, Ordering::Relaxed);
    for leaver in leavers {
        leaver.join().unwrap();
    }
    assert!(failed.is_empty(), "{} of {KEYS} first uses of keys failed: {failed:?}", failed.len());
    let log = fs::read_to_string(platform.folder().data().join("logs/api.log")).unwrap();
    let nested = log.matches("already a transaction in progress").count();
    assert_eq!(nested, 0, "transactions that began inside another's");
}
