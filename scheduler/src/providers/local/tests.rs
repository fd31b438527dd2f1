//! Tests of the local provider with shell scripts in the place of the trainer.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::providers::provider::Resources;

/// Returns a provider whose trainer is a shell script.
fn machine(folder: &Path, script: &str) -> (Local, Arc<Notify>) {
    let program = folder.join("attune-trainer");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = LocalConfig {
        name: "local".into(),
        work_dir: folder.join("node"),
        binaries_dir: Some(folder.to_path_buf()),
        memory_bytes: Some(1 << 30),
        threads: Some(2),
        max_concurrent_runs: 1,
        usd_per_hour: 0.0,
    };
    let notify = Arc::new(Notify::new());
    (Local::new(&config, "http://127.0.0.1:1", notify.clone()).unwrap(), notify)
}

fn launch() -> Launch {
    let resources = Resources { offer: "this machine".into(), memory: Bytes::mib(1), threads: 2 };
    Launch { program: Program::Trainer, name: "run_1".into(), token: "secret".to_owned().into(), resources }
}

#[tokio::test]
async fn attack_a28_a_dead_child_notifies_and_its_last_lines_are_sent_to_no_user() {
    let folder = tempfile::tempdir().unwrap();
    let (local, notify) = machine(folder.path(), "echo \"token $ATTUNE_RUN_TOKEN\"; echo /data/x/y >&2; exit 3");
    let handle = local.launch(launch()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
    let seen = local.list().await.unwrap();
    assert_eq!(seen[0].ended, Some(Ended::program("attune-trainer ended (exit status: 3)")));
    assert_eq!(tail(&folder.path().join("node/logs/run_1.log")).unwrap(), "token secret\n/data/x/y");
    local.stop(&handle).await.unwrap();
    assert_eq!(local.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_trainer_that_was_interrupted_is_not_at_fault() {
    let folder = tempfile::tempdir().unwrap();
    let (local, notify) = machine(folder.path(), "exit 75");
    local.launch(launch()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
    let ended = local.list().await.unwrap()[0].ended.clone().unwrap();
    let message = "attune-trainer was interrupted by SIGTERM".into();
    assert_eq!(ended, Ended { message, cause: EndCause::Interrupted });
}

/// A replica's log contains output about every project that it served; users waiting for the replica must not see
/// it.
#[tokio::test]
async fn the_last_words_of_a_serving_process_are_not_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (local, notify) = machine(folder.path(), "");
    let program = folder.path().join("attune-serving");
    std::fs::write(&program, "#!/bin/sh\necho adapter adapter_1 of another; exit 3\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    local.launch(Launch { program: Program::Serving, ..launch() }).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
    let ended = local.list().await.unwrap()[0].ended.clone().unwrap();
    assert_eq!(ended.message, "attune-serving ended (exit status: 3)");
}

#[tokio::test]
async fn attack_a28_a_child_starts_though_its_log_cannot_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let (local, notify) = machine(folder.path(), "echo nobody reads this; exit 0");
    std::fs::create_dir(folder.path().join("node/logs/run_1.log")).unwrap(); // in the log's place
    let handle = local.launch(launch()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
    let ended = local.list().await.unwrap()[0].ended.clone();
    assert_eq!(ended, Some(Ended::program("attune-trainer ended (exit status: 0)")));
    local.stop(&handle).await.unwrap();
}

/// A cgroup with a memory limit. Its folder is removed on drop.
struct Limited(PathBuf);

impl Limited {
    /// Creates the cgroup, or returns the reason why there is none on this machine.
    fn new(bytes: u64) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = std::fs::read_to_string(root.join("cgroup.subtree_control"));
        if !controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "memory")) {
            return Err("/sys/fs/cgroup is no cgroup v2 with the memory controller".into());
        }
        let folder = root.join(format!("attune-test-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|why| format!("{} cannot be created: {why}", folder.display()))?;
        let limited = Self(folder);
        std::fs::write(limited.0.join("memory.max"), bytes.to_string()).map_err(|why| why.to_string())?;
        // Kernels without swap accounting have no such file.
        let _ = std::fs::write(limited.0.join("memory.swap.max"), "0");
        Ok(limited)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a_trainer_that_the_kernel_kills_for_lack_of_memory_has_run_out_of_memory() {
    let limited = match Limited::new(64 << 20) {
        Ok(limited) => limited,
        Err(why) => return println!("NOT RUN: {why}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let script = format!("echo $$ > {}/cgroup.procs || exit 3\nexec tail /dev/zero", limited.0.display());
    let (local, notify) = machine(folder.path(), &script);
    local.launch(launch()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), notify.notified()).await.unwrap();
    let ended = local.list().await.unwrap()[0].ended.clone().unwrap();
    assert_eq!(ended.cause, EndCause::OutOfMemory, "{}", ended.message);
    assert!(ended.message.ends_with("the kernel killed it because memory ran out"), "{}", ended.message);
}

#[tokio::test]
async fn a_trainer_that_aborts_for_lack_of_memory_differs_from_one_that_is_killed() {
    for (script, cause) in [
        ("echo 'memory allocation of 4096 bytes failed' >&2; kill -ABRT $$", EndCause::OutOfMemory),
        ("kill -ABRT $$", EndCause::Program),
        ("echo 'memory allocation of 4096 bytes failed' >&2; kill -KILL $$", EndCause::Program),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (local, notify) = machine(folder.path(), script);
        local.launch(launch()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
        let ended = local.list().await.unwrap()[0].ended.clone().unwrap();
        assert_eq!(ended.cause, cause, "{script}: {}", ended.message);
    }
}

#[tokio::test]
async fn a_stop_ends_the_childs_input() {
    let folder = tempfile::tempdir().unwrap();
    let (local, _bell) = machine(folder.path(), "cat >/dev/null; exit 0");
    let handle = local.launch(launch()).await.unwrap();
    assert_eq!(local.list().await.unwrap(), [Process { handle: handle.clone(), pending: None, ended: None }]);
    tokio::time::timeout(GRACE, local.stop(&handle)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (local, _bell) = machine(folder.path(), "");
    std::fs::remove_file(folder.path().join("attune-trainer")).unwrap();
    assert_eq!(local.launch(launch()).await.unwrap_err().to_string(), "starting attune-trainer failed");
    assert_eq!(local.list().await.unwrap(), []);
}

#[test]
fn secrets_of_the_platform_are_not_handed_down() {
    assert!(is_secret("ATTUNE_DATABASE__URL") && is_secret("AWS_SECRET_ACCESS_KEY") && is_secret("DATABASE_URL"));
    assert!(!is_secret("ATTUNE_LOG") && !is_secret("PATH") && !is_secret("LD_LIBRARY_PATH"));
}

#[test]
fn last_words_come_without_colours() {
    assert_eq!(plain("\u{1b}[31mno\0 memory\u{1b}[0m\n"), "no memory\n");
}
