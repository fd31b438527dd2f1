//! The prompts of the publish gate, and their number of tokens: their logits are the peak of the publication.

/// The prompts that the gate compares both adapters on: prose, code, and other scripts.
pub const GATE_PROMPTS: [&str; 3] = [
    "The quick brown fox jumps over the lazy dog, as it has done since typewriters were tried with it.",
    "{\"key\": [0, 1, -2.5e3, null], \"0123456789\": {\"nested\": true}}\n\tif (a != b) { return c; }",
    "Grüße aus Köln; 東京は今日も晴れ; Привет, мир; مرحبا بالعالم",
];

/// The tokens of [`GATE_PROMPTS`], with a usual tokenizer.
pub(crate) const GATE_TOKENS: u64 = 96;
