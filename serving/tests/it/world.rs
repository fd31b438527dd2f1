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
    serve::{AdapterKey, AdapterRef, FinishReason, Sampling},
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    decoder::Decoder,
    io::weights::architecture,
};
use attune_node::{Cache, http_client, sha256_of_file};
use attune_serving::{
    adapters::{Adapters, Source},
    answering::grammar::Grammars,
    decoding::{
        engine::{self, EngineHandle, Limits},
        sampling::Sampler,
        scores::TokenScore,
        sequence::{EngineEvent, GenerateJob},
    },
    residency::ResidentBudget,
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
        self.engine_that_waits(max_batch, kv_tokens, Duration::from_secs(120))
    }

    pub(crate) fn engine_that_waits(&self, max_batch: usize, kv_tokens: u64, max_wait: Duration) -> EngineHandle {
        let decoder = Decoder::load(&self.base(), Quantization::None, Placement::default()).unwrap();
        let kv_memory = Bytes(decoder.architecture().kv_bytes_per_token().0 * kv_tokens);
        engine::start(decoder, Limits { max_batch, kv_memory, max_wait }).unwrap().0
    }

    pub(crate) fn adapters(&self, budget: Bytes) -> Adapters {
        let source = Source {
            client: http_client().unwrap(),
            cache: Cache::open(&self.path("cache")).unwrap(),
            architecture: architecture(&self.base()).unwrap(),
            text: Arc::new(TextModel::open(&self.base()).unwrap()),
            grammars: Arc::new(Grammars::new(usize::try_from(architecture(&self.base()).unwrap().vocab_size).unwrap())),
        };
        Adapters::new(source, ResidentBudget::new(budget))
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
        AdapterRef { id, files: self.remote(&folder).await }
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
            Some(adapter) => Some(adapters.lease(adapter).await.unwrap()),
            None => None,
        };
        let wishes = Sampling { temperature: self.temperature, top_p: 0.9, seed: self.seed, ..Sampling::default() };
        let (out, drawn) = unbounded_channel();
        let work = GenerateJob {
            project: self.project.as_str().into(),
            prompt: self.prompt.clone().into(),
            lease,
            sampler: Sampler::new(&wishes, 0),
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

/// Returns all tokens of an answer, and the scores of the prompt's and the answer's tokens.
pub(crate) async fn scored(mut drawn: UnboundedReceiver<EngineEvent>) -> (Vec<u32>, Vec<TokenScore>) {
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
            EngineEvent::End { reason, end_token } => {
                assert!(started);
                assert_eq!((reason, end_token), (FinishReason::Length, false));
                return (tokens, all);
            }
            EngineEvent::Failed(why) => panic!("{why}"),
        }
    }
}
