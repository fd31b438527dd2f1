//! A tiny base with adapters in a folder, and an object store on loopback that serves them and counts downloads.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attune_domain::{
    bytes::Bytes,
    id::AdapterVersionId,
    placement::Placement,
    run::RemoteFile,
    serve::{AdapterKey, AdapterRef, DEFAULT_DISK_CACHE, FinishReason, KvCacheDtype, Priority, Sampling},
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    decoder::Decoder,
    io::weights::architecture,
};
use attune_node::{Cache, http_client, sha256_of_file};
use attune_serving::{
    adapters::Adapters,
    answering::grammar::Grammars,
    decoding::{
        engine::{self, Draft, EngineHandle, Limits, Models},
        sampling::Sampler,
        scores::TokenScore,
        sequence::{EngineEvent, GenerateJob},
    },
    residency::{ResidentBudget, loader::Source},
};
use attune_text::model::TextModel;
use axum::{Router, extract::State, routing::get};
use tch::{Kind, Tensor};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use uuid::Uuid;

/// Returns the folder of a case: files and requests of a bug report, with the expected result.
pub(crate) fn case_folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/cases").join(case)
}

/// Returns the memory of one adapter of [`World::adapter`].
pub(crate) fn adapter_bytes(world: &World) -> Bytes {
    Bytes(LoraAdapter::new(&architecture(&world.base()).unwrap(), spec(), 0, Placement::default()).unwrap().bytes())
}

fn spec() -> AdapterSpec {
    AdapterSpec::lora(4, 8.0, &["q_proj", "v_proj", "down_proj"])
}

fn limits_of(kv_memory: Bytes) -> Limits {
    Limits {
        max_batch: 16,
        kv_memory,
        max_wait: Duration::from_secs(120),
        speculation: true,
        kv_cache_dtype: KvCacheDtype::Auto,
    }
}

/// The test's folder and object store.
pub(crate) struct World {
    folder: TempDir,
    store: String,
    served: Arc<AtomicUsize>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        attune_tests::tiny::write(&folder.path().join("base"), 7).unwrap();
        Self::in_folder(folder).await
    }

    /// Creates a world with a case's model as its base.
    pub(crate) async fn of_case(case: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("base")).unwrap();
        for file in std::fs::read_dir(case_folder(case).join("model")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join("base").join(file.file_name())).unwrap();
        }
        Self::in_folder(folder).await
    }

    async fn in_folder(folder: TempDir) -> Self {
        let served = Arc::new(AtomicUsize::new(0));
        let files = (folder.path().to_owned(), served.clone());
        let app = Router::new().route("/{folder}/{file}", get(hand_out)).with_state(files);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let store = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { folder, store, served }
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the number of files that the store has served.
    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    pub(crate) fn engine(&self, max_batch: usize, kv_tokens: u64) -> EngineHandle {
        self.engine_with(kv_tokens, |limits| Limits { max_batch, ..limits })
    }

    /// Starts an engine with 16 slots and with drafts, whose limits `change` changes.
    pub(crate) fn engine_with(&self, kv_tokens: u64, change: impl FnOnce(Limits) -> Limits) -> EngineHandle {
        let decoder = Decoder::load(&self.base(), Quantization::None, Placement::default()).unwrap();
        let kv_memory = Bytes(decoder.architecture().kv_bytes_per_token().0 * kv_tokens);
        engine::start(decoder.into(), change(limits_of(kv_memory))).unwrap().0
    }

    /// Starts an engine over the base whose keys and values are of type `dtype`, with memory for as many tokens of
    /// these, and with a draft model.
    pub(crate) fn engine_of(&self, draft: Option<Decoder>, kv_tokens: u64, dtype: KvCacheDtype) -> EngineHandle {
        let base = Decoder::load(&self.base(), Quantization::None, Placement::default()).unwrap();
        let memory = |decoder: &Decoder| Bytes(dtype.bytes_per_token(decoder.architecture()).0 * kv_tokens);
        let limits = Limits { kv_cache_dtype: dtype, ..limits_of(memory(&base)) };
        let draft = draft.map(|draft| Draft { kv_memory: memory(&draft), base: draft });
        engine::start(Models { base, draft }, limits).unwrap().0
    }

    pub(crate) fn adapters(&self, budget: Bytes) -> Adapters {
        self.adapters_within(budget, DEFAULT_DISK_CACHE)
    }

    /// Returns an empty adapter table with limits of memory and of the disk cache, which may have adapters already.
    pub(crate) fn adapters_within(&self, memory: Bytes, disk: Bytes) -> Adapters {
        self.adapters_that_wait((memory, disk), Duration::from_secs(120))
    }

    /// Returns an adapter table as [`World::adapters_within`], with a limit of the wait for memory.
    pub(crate) fn adapters_that_wait(&self, (memory, disk): (Bytes, Bytes), max_wait: Duration) -> Adapters {
        let source = Source {
            client: http_client().unwrap(),
            cache: Cache::open(&self.path("cache")).unwrap().with_adapter_budget(disk),
            architecture: architecture(&self.base()).unwrap(),
            text: Arc::new(TextModel::open(&self.base()).unwrap()),
            grammars: Arc::new(Grammars::new(usize::try_from(architecture(&self.base()).unwrap().vocab_size).unwrap())),
        };
        Adapters::new(source, ResidentBudget::new(memory), max_wait)
    }

    /// Creates the adapter `number`, which changes the answers strongly, and returns its reference.
    pub(crate) async fn adapter(&self, number: u128, template: Option<&str>) -> AdapterRef {
        let id = AdapterKey::Version(AdapterVersionId::new(Uuid::from_u128(number)));
        let folder = self.path(&id.to_string());
        let seed = u64::try_from(number).unwrap();
        let adapter =
            LoraAdapter::new(&architecture(&self.base()).unwrap(), spec(), seed, Placement::default()).unwrap();
        tch::manual_seed(i64::try_from(seed).unwrap());
        for (name, tensor) in adapter.parameters() {
            if name.contains("lora_B") {
                tensor.shallow_clone().copy_(&Tensor::randn(tensor.size(), (Kind::Float, tch::Device::Cpu)));
            }
        }
        adapter.save(&folder, &Provenance { base_model: "tiny".into() }).unwrap();
        if let Some(template) = template {
            std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
        }
        AdapterRef { id, files: self.remote(&folder).await, merge: None }
    }

    pub(crate) async fn remote(&self, folder: &Path) -> Vec<RemoteFile> {
        let mut files = Vec::new();
        let place = folder.file_name().unwrap().to_str().unwrap();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let (sha256, bytes) = sha256_of_file(&path).await.unwrap();
            let url = format!("{}/{place}/{name}", self.store);
            files.push(RemoteFile { name, sha256, bytes: Bytes(bytes), url });
        }
        files
    }
}

async fn hand_out(
    State((folder, served)): State<(PathBuf, Arc<AtomicUsize>)>,
    axum::extract::Path((place, file)): axum::extract::Path<(String, String)>,
) -> Result<Vec<u8>, axum::http::StatusCode> {
    served.fetch_add(1, Ordering::SeqCst);
    tokio::fs::read(folder.join(place).join(file)).await.map_err(|_| axum::http::StatusCode::NOT_FOUND)
}

/// A request to the engine.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) project: String,
    pub(crate) priority: Priority,
    pub(crate) prompt: Vec<u32>,
    pub(crate) adapter: Option<AdapterRef>,
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
    pub(crate) max_tokens: Option<u64>,
    /// The number of top log-probabilities per token of the prompt and the answer, if requested.
    pub(crate) scores: Option<usize>,
}

impl Ask {
    /// Returns a greedy request with its own prompt.
    pub(crate) fn greedy(seed: u64, prompt: u32, max_tokens: u64) -> Self {
        let tokens = (0..prompt).map(|at| (at * 31 + u32::try_from(seed).unwrap() * 57 + at * at) % 256).collect();
        Self {
            project: "p".into(),
            priority: Priority::Live,
            prompt: tokens,
            adapter: None,
            temperature: 0.0,
            seed,
            max_tokens: Some(max_tokens),
            scores: None,
        }
    }

    pub(crate) async fn submit(&self, engine: &EngineHandle, adapters: &Adapters) -> UnboundedReceiver<EngineEvent> {
        let lease = match &self.adapter {
            Some(adapter) => Some(adapters.lease(adapter, &self.project, self.priority).await.unwrap()),
            None => None,
        };
        let wishes = Sampling { temperature: self.temperature, top_p: 0.9, seed: self.seed, ..Sampling::default() };
        let (out, drawn) = unbounded_channel();
        let work = GenerateJob {
            project: self.project.as_str().into(),
            priority: self.priority,
            prompt: self.prompt.clone().into(),
            lease,
            sampler: Sampler::new(&wishes, 0, &self.prompt),
            max_tokens: self.max_tokens,
            stop_ids: Vec::new(),
            constraint: None,
            scores: self.scores,
            prompt_scores: self.scores.is_some(),
            out,
        };
        engine.submit(work).unwrap();
        drawn
    }
}

/// Returns all tokens of an answer.
pub(crate) async fn tokens(drawn: UnboundedReceiver<EngineEvent>) -> Vec<u32> {
    scored(drawn).await.0
}

/// Returns the further tokens of an answer whose start was received.
pub(crate) async fn tokens_after_start(mut drawn: UnboundedReceiver<EngineEvent>) -> Vec<u32> {
    let mut tokens = Vec::new();
    loop {
        match drawn.recv().await.expect("the engine has gone") {
            EngineEvent::Token { id, .. } => tokens.push(id),
            EngineEvent::End { .. } => return tokens,
            other => panic!("{other:?}"),
        }
    }
}

/// Returns all tokens of an answer, and the scores of the prompt's and the answer's tokens.
pub(crate) async fn scored(drawn: UnboundedReceiver<EngineEvent>) -> (Vec<u32>, Vec<TokenScore>) {
    let Answered { tokens, scores, .. } = answered(drawn).await;
    (tokens, scores)
}

/// An answer that ended at its limit of tokens.
pub(crate) struct Answered {
    pub(crate) tokens: Vec<u32>,
    /// The scores of the prompt's and the answer's tokens.
    pub(crate) scores: Vec<TokenScore>,
    /// The number of tokens that drafts gave.
    pub(crate) from_drafts: u64,
}

/// Waits for the whole answer.
pub(crate) async fn answered(mut drawn: UnboundedReceiver<EngineEvent>) -> Answered {
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    let mut started = false;
    loop {
        match drawn.recv().await.expect("the engine has gone") {
            EngineEvent::Started { scores, .. } => {
                started = true;
                all = scores;
            }
            EngineEvent::Token { id, score } => {
                tokens.push(id);
                all.extend(score);
            }
            EngineEvent::End { reason, end_token, from_drafts, .. } => {
                assert!(started);
                assert_eq!((reason, end_token), (FinishReason::Length, false));
                return Answered { tokens, scores: all, from_drafts };
            }
            EngineEvent::Failed(why) => panic!("{why}"),
        }
    }
}
