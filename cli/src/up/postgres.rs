//! The private PostgreSQL cluster: the machine's server programs, a folder in the data folder, a Unix socket and no
//! network port.
//!
//! Clients are identified by the kernel (peer authentication), so no password is stored.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::process::Command;

use super::{
    children::{Children, Program},
    leftovers,
    log::{ChildLog, say},
    place::Place,
};
use crate::error::{CliError, Doing, Result};

/// The name of the database, and of the role that owns it.
const NAME: &str = "attune";
/// The role that the API and the scheduler log in as. It owns nothing, has no privileges of its own, and assumes the
/// role of each transaction. The schema defines those two roles; they are created here first, so that this role can be
/// a member of them.
const LOGIN: &str = "attune_login";
/// The statement that creates the roles; idempotent, and run at each start.
const MAKE_LOGIN: &str = "do $$ declare name text; begin
    foreach name in array array['attune_app', 'attune_platform'] loop
        if not exists (select from pg_roles where rolname = name) then
            execute format('create role %I nologin', name);
        end if;
    end loop;
    if not exists (select from pg_roles where rolname = 'attune_login') then
        create role attune_login login noinherit in role attune_app, attune_platform;
    end if;
end $$";
/// The longest time until the server accepts connections, which includes recovery after a crash.
const READY_WITHIN: Duration = Duration::from_secs(300);

/// A private cluster.
pub(crate) struct Cluster {
    place: Place,
    bin: PathBuf,
}

impl Cluster {
    /// Finds the server programs and the home, and creates the cluster if it does not exist.
    ///
    /// # Errors
    /// [`CliError::Failed`]: PostgreSQL is not installed, the folder is of another version, the disk is full, or a
    /// permission is missing.
    pub(crate) async fn prepare(data: &Path, bin: Option<&Path>) -> Result<Self> {
        let bin = find_bin(bin)?;
        let place = Place::find(data)?;
        let cluster = Self { place, bin };
        leftovers::end(&cluster.place.data()).await?;
        if cluster.place.data().join("PG_VERSION").exists() {
            cluster.check_version().await?;
        } else {
            cluster.make().await?;
        }
        cluster.write_access()?;
        Ok(cluster)
    }

    /// Returns the URL of the database for the login role.
    pub(crate) fn url(&self) -> String {
        self.url_as(LOGIN)
    }

    /// Returns the URL of the database for its owner.
    pub(crate) fn owner_url(&self) -> String {
        self.url_as(NAME)
    }

    fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}@localhost:5432/{NAME}?host={}", percent_encoded(&self.place.socket))
    }

    /// Starts the server, waits until it is ready, and creates the database if it does not exist.
    ///
    /// # Errors
    /// [`CliError::Failed`] with the server's last log lines.
    pub(crate) async fn start(&self, children: &mut Children, log: ChildLog) -> Result<()> {
        let started = Instant::now();
        children.start(self.program(log))?;
        while !self.is_ready().await? {
            children.refuse_if_ended("postgres")?;
            if started.elapsed() > READY_WITHIN {
                return Err(CliError::Failed(format!(
                    "PostgreSQL accepted no connections within {} s",
                    READY_WITHIN.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.make_database().await
    }

    fn program(&self, log: ChildLog) -> Program {
        let mut command = self.place.command(&self.bin.join("postgres"));
        command.arg("-D").arg(self.place.inside(&self.place.data()));
        for setting in [
            "listen_addresses=".into(),
            "port=5432".into(),
            format!("unix_socket_directories={}", self.place.inside(&self.place.socket).display()),
            "unix_socket_permissions=0700".into(),
            "max_connections=100".into(),
            "shared_buffers=64MB".into(),
            "log_checkpoints=off".into(),
            "logging_collector=off".into(),
            "log_line_prefix=%m ".into(),
            "cluster_name=attune".into(),
        ] {
            command.arg("-c").arg::<String>(setting);
        }
        // SIGINT is a fast shutdown: it ends sessions and rolls back transactions. SIGTERM would wait for clients.
        Program {
            name: "postgres",
            command,
            log,
            stop_signal: Signal::SIGINT,
            grace: Duration::from_secs(30),
            force_signal: Signal::SIGQUIT, // SIGKILL would leave its child processes running
        }
    }

    /// Creates the cluster: `initdb` writes a temporary folder, which is then renamed, so that the cluster is either
    /// complete or missing.
    async fn make(&self) -> Result<()> {
        say("creating a PostgreSQL cluster");
        let half = self.place.home.join("data.new");
        match fs::remove_dir_all(&half) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).doing(|| format!("remove the incomplete {}", half.display()));
            }
            _ => {}
        }
        let mut initdb = self.place.command(&self.bin.join("initdb"));
        initdb.arg("-D").arg(self.place.inside(&half)).args(["-U", NAME, "-E", "UTF8", "--no-locale"]);
        run(initdb.args(["--auth-local=peer", "--auth-host=reject"]), "create a PostgreSQL cluster").await?;
        fs::rename(&half, self.place.data()).doing(|| format!("rename {}", half.display()))
    }

    /// Checks that the cluster's major version is that of the server programs.
    async fn check_version(&self) -> Result<()> {
        let path = self.place.data().join("PG_VERSION");
        let have = fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?.trim().to_owned();
        let output =
            run(self.place.command(&self.bin.join("postgres")).arg("--version"), "read PostgreSQL's version").await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let major = said.split_whitespace().nth(2).and_then(|v| v.split('.').next()).unwrap_or_default();
        if major == have {
            return Ok(());
        }
        Err(CliError::Failed(format!(
            "the database in {} is of PostgreSQL {have}, and {} is version {major}. Install PostgreSQL {have} \
             in addition, or set its folder with --postgres-bin.",
            self.place.data().display(),
            self.bin.display(),
        )))
    }

    /// Writes `pg_hba.conf` and `pg_ident.conf`, which allow only the current user and the server's user, by the
    /// socket. They are rewritten at each start, since the current user may have changed.
    fn write_access(&self) -> Result<()> {
        let users = self.place.user_names()?;
        let entry = |user| format!("attune \"{user}\" {NAME}\nattune \"{user}\" {LOGIN}\n");
        let map: String = users.iter().map(entry).collect();
        for (name, text) in [("pg_hba.conf", "local all all peer map=attune\n"), ("pg_ident.conf", &map)] {
            let path = self.place.data().join(name);
            super::private::write(&path, text)?;
            self.place.hand_over(&path)?;
        }
        Ok(())
    }

    async fn is_ready(&self) -> Result<bool> {
        let output = self.client("pg_isready").args(["-d", "postgres"]).output().await;
        Ok(output.doing(|| "run pg_isready".into())?.status.success())
    }

    async fn make_database(&self) -> Result<()> {
        let missing = "select string_agg(name, ' and ') from unnest(array['hstore','pgcrypto']) name \
                       where name not in (select name from pg_available_extensions)";
        let missing = self.query(missing).await?;
        if !missing.is_empty() {
            return Err(CliError::Failed(format!(
                "this PostgreSQL has no {missing}. Install its contrib package (on Debian, `postgresql` includes it)."
            )));
        }
        if self.query("select 1 from pg_database where datname = 'attune'").await?.is_empty() {
            self.query("create database attune").await?;
        }
        self.query(MAKE_LOGIN).await?;
        Ok(())
    }

    async fn query(&self, sql: &str) -> Result<String> {
        let mut psql = self.client("psql");
        let output =
            run(psql.args(["-d", "postgres", "-XqtA", "-v", "ON_ERROR_STOP=1", "-c", sql]), "query the database")
                .await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Creates the command of a client program, run as the current user; it is searched in the server programs'
    /// folder, then on the `PATH`.
    fn client(&self, name: &str) -> Command {
        let beside = self.bin.join(name);
        let mut command = Command::new(if beside.exists() { &beside } else { Path::new(name) });
        command.arg("-h").arg(&self.place.socket).args(["-p", "5432", "-U", NAME]);
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        for variable in crate::connection::config::foreign_to_children(true) {
            command.env_remove(variable);
        }
        command
    }
}

async fn run(command: &mut Command, doing: &str) -> Result<Output> {
    let output = command.output().await.doing(|| doing.into())?;
    if output.status.success() {
        return Ok(output);
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "\n  ");
    Err(CliError::Failed(format!("cannot {doing}: {}\n  {why}", output.status)))
}

/// Returns whether a line is routine: PostgreSQL logs its start and stop as `LOG:`, which is only written to the file.
pub(crate) fn quiet(line: &str) -> bool {
    line.contains(" LOG:  ")
}

/// Finds the folder of the server programs: the one that is set, else the newest of Debian's, else one on the `PATH`.
fn find_bin(said: Option<&Path>) -> Result<PathBuf> {
    let complete = |folder: &Path| folder.join("initdb").exists() && folder.join("postgres").exists();
    if let Some(folder) = said {
        if complete(folder) {
            return folder.canonicalize().doing(|| format!("read {}", folder.display()));
        }
        return Err(CliError::Usage(format!(
            "--postgres-bin: there are no initdb and postgres in {}",
            folder.display()
        )));
    }
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| complete(folder))
        .collect();
    debian.sort();
    let newest = debian.pop().map(|(_, folder)| folder);
    newest.or_else(|| crate::connection::config::search_path().into_iter().find(|folder| complete(folder))).ok_or_else(
        || {
            CliError::Failed(
            "PostgreSQL's server programs are not installed. Install them (`apt-get install postgresql`), set their \
             folder with --postgres-bin, or set --database-url."
                .into(),
        )
        },
    )
}

fn percent_encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(*byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_rides_in_a_url() {
        assert_eq!(percent_encoded(Path::new("/var/a b/ü")), "%2Fvar%2Fa%20b%2F%C3%BC");
    }

    #[test]
    fn a_folder_without_a_server_is_refused() {
        let refused = find_bin(Some(Path::new("/usr/share"))).unwrap_err();
        assert_eq!(refused.to_string(), "--postgres-bin: there are no initdb and postgres in /usr/share");
    }
}
