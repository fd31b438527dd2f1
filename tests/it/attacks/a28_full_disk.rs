//! The disk is full for some seconds while a job runs: requests are refused with that reason, and when space is free
//! again the job resumes from its checkpoint.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use attune_tests::{
    platform::{Folder, Platform, text},
    tiny,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::{house::create, recovery::story};

/// The time for which the disk is full.
const FULL_FOR: Duration = Duration::from_secs(8);

/// A small file system, mounted at the platform's data folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Folder) -> Self {
        let place = folder.data();
        fs::create_dir_all(&place).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=300m,mode=0700", "tmpfs", text(&place).unwrap()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&mount.stderr);
        assert!(mount.status.success(), "cannot mount a tmpfs: {said}");
        Self(place)
    }

    /// Fills the disk.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.0.join("filler")).unwrap();
        for size in [1 << 20, 1 << 12] {
            let block = vec![0; size];
            while filler.write_all(&block).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since a program that is still exiting may have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Checks that no text names a file of the machine.
fn without_paths<'a>(texts: impl IntoIterator<Item = &'a str>) {
    for text in texts {
        let named =
            ["/tmp/", "/data", "/node", "/cache", "panicked", "last words"].iter().find(|part| text.contains(**part));
        assert!(named.is_none(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a28_a_disk_that_is_full_for_some_seconds_fails_no_job_and_names_no_file() {
    if !nix::unistd::geteuid().is_root() {
        println!("NOT RUN: only root may mount a small file system");
        return;
    }
    let folder = Folder::new().unwrap();
    let disk = SmallDisk::mount(&folder);
    let platform = Platform::start_on(folder).unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(200)).unwrap();
    let job = json!({"model": "tiny", "training_file": file, "hyperparameters": {"n_epochs": 50, "batch_size": 2},
        "trainer": {"checkpoint_every_steps": 20}});
    let id = create(&platform, job).await;
    let under_way = |job: &serde_json::Value| job["steps_done"].as_u64() > Some(45);
    platform.job_until(&id, Duration::from_secs(60), under_way).await.unwrap();

    let began = Instant::now();
    let mut statuses = Vec::new();
    while began.elapsed() < FULL_FOR {
        disk.fill();
        let name = format!("p-{}", statuses.len());
        let (status, told) =
            platform.call(Method::POST, "/v1/organization/projects", Some(json!({"name": name}))).await.unwrap();
        assert!([200, 503, 507].contains(&status), "{status} {told}");
        without_paths(told["error"]["message"].as_str());
        statuses.push(status);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    disk.empty();
    println!("statuses while the disk was full: {statuses:?}");

    let done = platform.ended(&id, Duration::from_secs(240)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    let told = story(&platform, &id).await;
    without_paths(told.iter().map(String::as_str));
    let folder = platform.stop(Signal::SIGTERM).unwrap();
    drop(disk); // before the folder that it is mounted in
    drop(folder);
}
