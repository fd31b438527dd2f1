//! Killing a parent also closes the readers of its children's logs. The children must exit immediately nevertheless.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use attune_tests::{
    platform::{Folder, Platform, gone, program},
    repeats, tiny,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

/// The longest time until a child exits, on a machine with busy processors.
const LEAVES_WITHIN: Duration = Duration::from_secs(2);

/// Returns the commands of the programs that watch their parent, each connecting to a platform that never responds.
fn programs(folder: &Path, silent: &str) -> Vec<Command> {
    let config = |name: &str, more: &str| {
        let path = folder.join(name);
        let text = format!(
            "[database]\nurl = 'postgres://nobody@{silent}/attune'\n[object_store]\nendpoint = 'http://{silent}'\n\
             bucket = 'b'\naccess_key_id = 'a'\nsecret_access_key = 's'\n{more}"
        );
        fs::write(
            &path,
            format!(
                "{}\n{text}",
                if name == "api.toml" {
                    format!("listen = '127.0.0.1:0'\npublic_url = 'http://{silent}'")
                } else {
                    format!("api_url = 'http://{silent}'")
                }
            ),
        )
        .unwrap();
        path
    };
    let with = |name: &str, arguments: &[&str], environment: (&str, &str)| {
        let mut command = Command::new(program(name).unwrap());
        command.args(arguments).arg("--exit-with-parent").env(environment.0, environment.1);
        command
    };
    let (api, scheduler) = (config("api.toml", ""), config("scheduler.toml", "[local]\nwork_dir = 'node'"));
    let (url, cache) = (format!("http://{silent}"), folder.join("cache"));
    let node = ["--api-url", &url, "--cache-dir", cache.to_str().unwrap()];
    vec![
        with("attune-api", &["--config", api.to_str().unwrap()], ("NO_COLOR", "1")),
        with("attune-scheduler", &["--config", scheduler.to_str().unwrap()], ("NO_COLOR", "1")),
        with("attune-trainer", &node, ("ATTUNE_RUN_TOKEN", "t")),
        with("attune-serving", &node, ("ATTUNE_REPLICA_TOKEN", "t")),
    ]
}

/// Waits until the thread that watches the parent exists.
fn watching(child: &mut Child) {
    let tasks = format!("/proc/{}/task", child.id());
    for _ in 0..600 {
        let names = fs::read_dir(&tasks).into_iter().flatten().flatten();
        if names.flat_map(|task| fs::read_to_string(task.path().join("comm"))).any(|name| name.trim() == "parent") {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "{} has ended before its parent", child.id());
        thread::sleep(Duration::from_millis(20));
    }
    unreachable!("{} does not watch its parent", child.id());
}

#[test]
fn attack_a27_a_child_leaves_at_once_when_its_parent_and_its_logs_reader_are_gone() {
    let folder = Folder::new().unwrap();
    fs::create_dir_all(folder.path("d")).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for mut command in (0..repeats()).flat_map(|_| programs(&folder.path("d"), &address)) {
        command.current_dir(folder.path("d"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        watching(&mut child);
        drop((child.stdout.take(), child.stderr.take()));
        drop(child.stdin.take());
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if began.elapsed() > LEAVES_WITHIN {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{command:?} was still there after {LEAVES_WITHIN:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Kills the platform repeatedly on one data folder, with a trainer and a serving process running.
#[tokio::test(flavor = "multi_thread")]
async fn attack_a27_kill_9_of_a_platform_takes_every_program_along() {
    let mut platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let job = json!({"model": "tiny", "training_file": file, "hyperparameters": {"n_epochs": 50},
        "trainer": {"checkpoint_every_steps": 5}});
    let (status, job) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job)).await.unwrap();
    assert_eq!(status, 200, "{job}");
    let mut worst = Duration::ZERO;
    for _ in 0..repeats() {
        let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2});
        let (status, said) = platform.call(Method::POST, "/v1/chat/completions", Some(chat)).await.unwrap();
        assert_eq!(status, 200, "{said}");
        let children = platform.descendants().unwrap();
        assert!(children.iter().any(|(_, command)| command.contains("attune-serving")), "{children:?}");
        let ours: Vec<_> = children.into_iter().filter(|(_, command)| command.contains("attune-")).collect();
        let began = Instant::now();
        let folder = platform.stop(Signal::SIGKILL).unwrap();
        gone(&ours).unwrap();
        worst = worst.max(began.elapsed());
        platform = Platform::start_on(folder).unwrap();
    }
    println!("the last child left {} ms after kill -9, in {} runs", worst.as_millis(), repeats());
    assert!(worst < 5 * LEAVES_WITHIN, "{worst:?}");
    platform.stop(Signal::SIGTERM).unwrap();
}
