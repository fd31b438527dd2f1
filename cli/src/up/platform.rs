//! The start and the stop of the platform, in order.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rand::RngExt;
use tokio::{
    process::Command,
    signal::unix::{Signal as Stream, SignalKind, signal},
};

use super::{
    children::{Children, Program},
    lock,
    log::{self, ChildLog, say},
    object_store, postgres, run_files, secrets,
    settings::{Settings, UpArgs},
};
use crate::{
    connection::{config, credentials::Credentials},
    error::{CliError, Doing, Result},
    output,
};

/// The longest time until the API is healthy, which includes its migrations.
const HEALTHY_WITHIN: Duration = Duration::from_secs(180);

/// Runs the platform of `data` until a signal.
///
/// # Errors
/// [`CliError::AlreadyRunning`]; [`CliError::Usage`] for invalid settings; [`CliError::Failed`] if a component does not
/// start; [`CliError::Forced`] after a second signal.
pub(crate) async fn up(data: &Path, args: UpArgs) -> Result<()> {
    let _log = log::start();
    let settings = Settings::settle(args)?;
    // The embedded object store needs many descriptors, and the children inherit the limit.
    attune_inbound::raise_descriptor_limit();
    let data = data_folder(data)?;
    let _lock = lock::take(&data)?;
    let mut signals = Signals::new()?;
    let mut platform = Platform { data, settings, children: Children::default(), cluster: None, objects: None };
    let started = tokio::select! {
        started = platform.start() => started,
        () = signals.next() => Ok(()),
    };
    if started.is_ok() {
        tokio::select! {
            () = platform.children.watch(), if !signals.came => {}
            () = signals.next(), if !signals.came => {}
            else => {}
        }
        say("stopping; press Ctrl-C again to stop immediately");
    }
    let orderly = tokio::select! {
        () = platform.stop() => true,
        () = signals.again() => false,
    };
    if !orderly {
        platform.children.force().await;
        return Err(CliError::Forced);
    }
    if started.is_ok() {
        say("stopped");
    }
    started
}

/// Creates the data folder if it is missing; returns its canonical path.
fn data_folder(data: &Path) -> Result<PathBuf> {
    if !data.exists() {
        std::fs::create_dir_all(data)
            .and_then(|()| std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o700)))
            .doing(|| format!("create the data folder {}", data.display()))?;
    }
    let full = data.canonicalize().doing(|| format!("read the data folder {}", data.display()))?;
    if full.is_dir() { Ok(full) } else { Err(CliError::Usage(format!("{} is not a folder", full.display()))) }
}

struct Platform {
    data: PathBuf,
    settings: Settings,
    children: Children,
    cluster: Option<postgres::Cluster>,
    objects: Option<object_store::Server>,
}

impl Platform {
    async fn start(&mut self) -> Result<()> {
        let api = self.program_path("attune-api")?;
        let scheduler = self.program_path("attune-scheduler")?;
        let listen = free_address(self.settings.listen).await?;
        let secrets = secrets::load_or_make(&self.data)?;
        let (database_url, database_owner_url) = self.start_database().await?;
        let object_store = self.start_object_store(&secrets).await?;
        let api_url = format!("http://{}", reachable(listen));
        let public_url = self.settings.public_url.clone().unwrap_or_else(|| api_url.clone());
        let start = run_files::Start {
            data: &self.data,
            listen: listen.to_string(),
            public_url: public_url.clone(),
            api_url: api_url.clone(),
            database_url,
            database_owner_url,
            object_store: &object_store,
            bootstrap_key: &secrets.bootstrap_key,
            webhooks_secret_key: &secrets.webhooks_secret_key,
        };
        let (api_settings, scheduler_settings) = run_files::write(&start, &self.settings)?;
        self.start_ours("api", &api, &api_settings)?;
        self.wait_for_api(&api_url).await?;
        self.start_ours("scheduler", &scheduler, &scheduler_settings)?;
        let new = !self.data.join("credentials.json").exists();
        Credentials { url: api_url, api_key: secrets.bootstrap_key.clone() }.write(&self.data)?;
        self.greet(&public_url, new.then_some(secrets.bootstrap_key.as_str()));
        Ok(())
    }

    /// Starts the database, unless an external one is set; returns the URL of the login role, and that of the owner for
    /// migrations.
    async fn start_database(&mut self) -> Result<(String, Option<String>)> {
        if let Some(url) = &self.settings.database.url {
            return Ok((url.clone(), self.settings.database.owner_url.clone()));
        }
        let log = ChildLog::open(&self.data, "postgres", postgres::quiet)?;
        let cluster = postgres::Cluster::prepare(&self.data, self.settings.postgres_bin.as_deref()).await?;
        cluster.start(&mut self.children, log).await?;
        say("postgres is ready");
        let urls = (cluster.url(), Some(cluster.owner_url()));
        self.cluster = Some(cluster);
        Ok(urls)
    }

    async fn start_object_store(&mut self, secrets: &secrets::Secrets) -> Result<super::settings::ObjectStore> {
        if let Some(given) = &self.settings.object_store {
            return Ok(given.clone());
        }
        let server = object_store::Server::start(&self.data, secrets).await?;
        let reach = server.reach.clone();
        say("the object store is ready");
        self.objects = Some(server);
        Ok(reach)
    }

    fn program_path(&self, name: &str) -> Result<PathBuf> {
        let path = self.settings.binaries.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let folder = self.settings.binaries.display();
        Err(CliError::Failed(format!("{name} is not in {folder}. Build it, or set its folder with --binaries.")))
    }

    fn start_ours(&mut self, name: &'static str, program: &Path, settings: &Path) -> Result<()> {
        let mut command = Command::new(program);
        command.arg("--config").arg(settings).arg("--exit-with-parent");
        command.stdin(Stdio::piped()).process_group(0).kill_on_drop(true);
        command.env("NO_COLOR", "1"); // the lines are written to a file too
        for variable in config::foreign_to_children(self.settings.database.url.is_none()) {
            command.env_remove(variable);
        }
        self.children.start(Program {
            name,
            command,
            log: ChildLog::open(&self.data, name, |_| false)?,
            stop_signal: Signal::SIGTERM,
            grace: Duration::from_secs(30),
            force_signal: Signal::SIGKILL,
        })
    }

    async fn wait_for_api(&mut self, url: &str) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
        let client = client.doing(|| "create an HTTP client".into())?;
        let started = Instant::now();
        loop {
            self.children.refuse_if_ended("api")?;
            let answer = client.get(format!("{url}/healthz")).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if started.elapsed() > HEALTHY_WITHIN {
                return Err(CliError::Failed(format!("the API did not answer within {} s", HEALTHY_WITHIN.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn greet(&self, url: &str, key: Option<&str>) {
        for missing in ["attune-trainer", "attune-serving"] {
            if !self.settings.binaries.join(missing).is_file() {
                say(&format!(
                    "{missing} is not in {}; jobs or requests that need it will fail",
                    self.settings.binaries.display()
                ));
            }
        }
        let kept = self.data.join("credentials.json");
        let key = match key {
            Some(key) => format!("API key (shown only once, stored in {}): {key}", kept.display()),
            None => format!("The API key is in {}", kept.display()),
        };
        // The reader of stdout may have exited; the platform runs nevertheless.
        drop(output::line(&format!("Attune is up at {url}\n{key}")));
    }

    /// Stops the platform: first the programs that write, last the stores that they write to.
    async fn stop(&mut self) {
        self.children.stop("scheduler").await;
        self.children.stop("api").await;
        if let Some(objects) = self.objects.take() {
            objects.stop().await;
        }
        self.children.stop("postgres").await;
        self.cluster = None;
    }
}

/// A range of ports below the ephemeral ports (from 32768 on Linux, from 49152 by IANA): a port that is free now is
/// still free when the API binds it.
const QUIET_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Checks that the address is free, and replaces port 0 by a free port. Waits up to 5 s, since the API of an earlier
/// start may need a moment to release the address.
async fn free_address(wanted: SocketAddr) -> Result<SocketAddr> {
    let started = Instant::now();
    loop {
        let mut address = wanted;
        if wanted.port() == 0 {
            address.set_port(rand::rng().random_range(QUIET_PORTS));
        }
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && started.elapsed() < Duration::from_secs(5) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(e) => {
                return Err(CliError::Failed(format!(
                    "cannot listen on {wanted}: {e}. Choose another address with --listen."
                )));
            }
        }
    }
}

/// Returns an address that can be connected to: the unspecified address is replaced by loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The signals that stop the platform: SIGINT, SIGTERM and SIGHUP.
struct Signals {
    streams: [Stream; 3],
    came: bool,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).doing(|| "listen for signals".into());
        let streams =
            [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?];
        Ok(Self { streams, came: false })
    }

    /// Waits for the first signal.
    async fn next(&mut self) {
        self.again().await;
        self.came = true;
    }

    /// Waits for any signal.
    async fn again(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.streams;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_0_becomes_a_real_one() {
        let address = free_address("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert_ne!(address.port(), 0);
    }

    #[test]
    fn every_address_is_called_by_the_loopback_one() {
        assert_eq!(reachable("0.0.0.0:80".parse().unwrap()).to_string(), "127.0.0.1:80");
        assert_eq!(reachable("[::]:80".parse().unwrap()).to_string(), "[::1]:80");
        assert_eq!(reachable("10.0.0.1:80".parse().unwrap()).to_string(), "10.0.0.1:80");
    }
}
