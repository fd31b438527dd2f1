//! The batch script of a job. `sbatch` reads it from its standard input.
//!
//! The script holds the token, since everything else that reaches a node is more public: arguments and the comment are
//! shown to all users, and a file needs a shared file system and outlives a crash. Slurm shows a script to the job's
//! user and to operators only.

use std::{fmt::Write, net::IpAddr, path::Path};

use secrecy::ExposeSecret;

use crate::providers::provider::{Launch, Program};

/// The parts of the script that are the same for all jobs.
pub(super) struct Template<'a> {
    /// The API's address.
    pub(super) api_url: &'a str,
    /// The folder for caches and logs.
    pub(super) work_dir: &'a Path,
    /// The folder of the programs.
    pub(super) binaries: &'a Path,
    /// Words before the program's path.
    pub(super) prefix: &'a [String],
    /// The address that replicas listen on.
    pub(super) listen_ip: Option<IpAddr>,
    /// The port of a replica's metrics; `None`: it publishes none.
    pub(super) metrics_port: Option<u16>,
}

impl Template<'_> {
    /// Returns the script of a launch. The shell becomes the program, which so receives Slurm's signals, and whose exit
    /// status is the job's.
    pub(super) fn script(&self, launch: &Launch) -> String {
        let (token, listen) = match launch.program {
            Program::Trainer => ("ATTUNE_RUN_TOKEN", String::new()),
            Program::Serving | Program::Bridge(_) => ("ATTUNE_REPLICA_TOKEN", self.listeners()),
        };
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let (cache, logs) = (path(&self.work_dir.join("cache")), path(&self.work_dir.join("logs")));
        let mut script = format!("#!/bin/sh\numask 077\nmkdir -p {cache} {logs}\n");
        // A log that cannot be written, such as on a full disk, must not prevent the launch.
        let log = path(&self.work_dir.join("logs").join(format!("{}.log", launch.name)));
        let _ = writeln!(script, "if (: >>{log}) 2>/dev/null; then exec >>{log} 2>&1; fi");
        let _ = writeln!(script, "export {token}={}", quoted(launch.token.expose_secret()));
        let _ = writeln!(script, "export OMP_NUM_THREADS={}", launch.resources.threads);
        let prefix: String = self.prefix.iter().map(|word| quoted(word) + " ").collect();
        let program = path(&self.binaries.join(launch.program.name()));
        let url = quoted(self.api_url);
        let _ = writeln!(script, "exec {prefix}{program} --api-url {url} --cache-dir {cache}{listen} </dev/null");
        script
    }

    /// Returns the arguments of a replica with its addresses.
    fn listeners(&self) -> String {
        let metrics = self.metrics_port.map(|port| format!(" --metrics-listen {}", self.address(port)));
        format!(" --listen {}{}", self.address(0), metrics.unwrap_or_default())
    }

    fn address(&self, port: u16) -> String {
        match self.listen_ip {
            Some(IpAddr::V4(ip)) => format!("{ip}:{port}"),
            Some(IpAddr::V6(ip)) => format!("'[{ip}]:{port}'"),
            None => format!("\"$(hostname -I | cut -d' ' -f1):{port}\""),
        }
    }
}

/// Returns a text as one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use attune_domain::bytes::Bytes;

    use super::*;
    use crate::providers::provider::Resources;

    /// Runs the script of a launch with a program that prints its environment and arguments.
    fn printed(folder: &Path, program: Program, listen_ip: Option<IpAddr>, metrics_port: Option<u16>) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(program.name());
        std::fs::write(&path, "#!/bin/sh\nenv | grep -E '^(ATTUNE|OMP)'\necho \"$0\"\nprintf '%s\\n' \"$@\"\n")
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let work_dir = folder.join("it's $HOME");
        let template = Template {
            api_url: "http://127.0.0.1:1",
            work_dir: &work_dir,
            binaries: folder,
            prefix: &["env".into(), "ATTUNE_PREFIX=a b".into()],
            listen_ip,
            metrics_port,
        };
        let resources = Resources { offer: "a100".into(), memory: Bytes::mib(1), threads: 3 };
        let launch = Launch { program, name: "run_1".into(), token: "se'cret".to_owned().into(), resources };
        let status = Command::new("sh").arg("-c").arg(template.script(&launch)).status().unwrap();
        assert!(status.success());
        std::fs::read_to_string(work_dir.join("logs/run_1.log")).unwrap()
    }

    #[test]
    fn the_shell_runs_the_program_with_the_token_in_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let lines = printed(folder.path(), Program::Trainer, None, Some(9500));
        for line in ["ATTUNE_RUN_TOKEN=se'cret", "OMP_NUM_THREADS=3", "ATTUNE_PREFIX=a b", "http://127.0.0.1:1"] {
            assert!(lines.lines().any(|one| one == line), "{line} is missing: {lines}");
        }
        assert!(lines.ends_with("it's $HOME/cache\n"), "{lines}");
    }

    #[test]
    fn a_replica_listens_on_the_configured_address_or_on_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let local = printed(folder.path(), Program::Serving, Some([127, 0, 0, 1].into()), None);
        assert!(
            local.contains("ATTUNE_REPLICA_TOKEN=se'cret") && local.ends_with("--listen\n127.0.0.1:0\n"),
            "{local}"
        );
        let own = printed(folder.path(), Program::Serving, None, None);
        let address = own.lines().last().unwrap();
        assert!(address.parse::<std::net::SocketAddr>().is_ok() || address == ":0", "{own}");
        let measured = printed(folder.path(), Program::Serving, Some([127, 0, 0, 1].into()), Some(9500));
        assert!(measured.ends_with("--listen\n127.0.0.1:0\n--metrics-listen\n127.0.0.1:9500\n"), "{measured}");
    }
}
