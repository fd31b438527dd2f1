//! The Modelfile with which Ollama loads an exported model.
//!
//! Ollama has a template language of its own, so a chat template is expressed only if it is known: its output for a
//! sample conversation is compared with that of each known form. Source: Ollama's `docs/modelfile.md` and
//! `docs/template.md`.

use attune_text::model::TextModel;
use attune_text::template::{RenderSettings, Turn};

/// A form of conversations that Ollama's language can express.
struct Form {
    /// The texts before the role, between the role and the content, and after the content.
    parts: [&'static str; 3],
    /// The form in Ollama's language.
    template: &'static str,
}

static FORMS: [Form; 2] = [
    // ChatML: Qwen2.5, SmolLM2.
    Form {
        parts: ["<|im_start|>", "\n", "<|im_end|>\n"],
        template: "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}\
                   <|im_start|>assistant\n",
    },
    // Llama 3.
    Form {
        parts: ["<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"],
        template: "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>\
                   {{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
    },
];

impl Form {
    fn message(&self, role: &str, content: &str) -> String {
        let [before, between, after] = self.parts;
        format!("{before}{role}{between}{content}{after}")
    }

    /// Returns the output for these messages and the beginning of an answer.
    fn rendered(&self, turns: &[(&str, &str)]) -> String {
        let messages: String = turns.iter().map(|(role, content)| self.message(role, content)).collect();
        let [before, between, _] = self.parts;
        format!("{messages}{before}assistant{between}")
    }
}

/// Returns the Modelfile of a model in `file`, which is in the same folder.
#[must_use]
pub fn modelfile(text: &TextModel, file: &str) -> String {
    let mut lines = vec![format!("FROM ./{file}")];
    match known(text) {
        Some((form, system)) => {
            lines.push(format!("TEMPLATE \"\"\"{}\"\"\"", form.template));
            if let Some(system) = system {
                lines.push(format!("SYSTEM \"\"\"{system}\"\"\""));
            }
        }
        None => lines.push(
            "# Ollama's template language cannot express this chat template, or it is not known: write TEMPLATE here."
                .to_owned(),
        ),
    }
    for id in text.stop_ids() {
        if let Some(token) = text.tokenizer().token_of(*id) {
            lines.push(format!("PARAMETER stop {}", serde_json::Value::String(token)));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Returns the form that the chat template has, and the system message that it adds to conversations without one.
fn known(text: &TextModel) -> Option<(&'static Form, Option<String>)> {
    const SAMPLE: [(&str, &str); 4] =
        [("system", "first 1"), ("user", "second 2"), ("assistant", "third 3"), ("user", "fourth 4")];
    let template = text.template()?;
    let render = |turns: &[(&str, &str)]| {
        let turns: Vec<Turn<'_>> = turns.iter().map(|(role, content)| Turn::new(role, content)).collect();
        let rendered = template.render(&turns, true, RenderSettings::at(0)).ok()?;
        // llama.cpp adds the BOS token itself, if the tokenizer does. SmolLM2's does not, and its BOS token is
        // `<|im_start|>`.
        let first = text.prefix().first().and_then(|id| text.tokenizer().token_of(*id));
        let rest = first.and_then(|token| rendered.strip_prefix(&token).map(str::to_owned));
        Some(rest.unwrap_or(rendered))
    };
    let (with, without) = (render(&SAMPLE)?, render(&SAMPLE[1..])?);
    let form = FORMS.iter().find(|form| form.rendered(&SAMPLE) == with)?;
    let wanted = form.rendered(&SAMPLE[1..]);
    if without == wanted {
        return Some((form, None));
    }
    let [before, between, after] = form.parts;
    let added = without.strip_suffix(&wanted)?.strip_prefix(&format!("{before}system{between}"))?;
    let system = added.strip_suffix(after)?;
    (!system.contains("\"\"\"")).then(|| (form, Some(system.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn model(template: &str) -> TextModel {
        with_bos(template, "<|im_start|>", false)
    }

    fn with_bos(template: &str, bos: &str, is_added: bool) -> TextModel {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let added = json!([special(2, "<|im_end|>"), special(3, bos)]);
        let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": {"a": 0, "b": 1}, "merges": []}});
        let config = json!({"eos_token": "<|im_end|>", "bos_token": bos, "add_bos_token": is_added});
        let files = BTreeMap::from([
            ("tokenizer.json".to_owned(), tokenizer.to_string().into_bytes()),
            ("tokenizer_config.json".to_owned(), config.to_string().into_bytes()),
            ("chat_template.jinja".to_owned(), template.as_bytes().to_vec()),
        ]);
        TextModel::from_files(&files).unwrap()
    }

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' \
        }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn a_known_template_is_expressed_with_its_stops() {
        let file = modelfile(&model(CHATML), "model.gguf");
        assert!(file.starts_with("FROM ./model.gguf\nTEMPLATE \"\"\"{{- range .Messages }}<|im_start|>"), "{file}");
        assert!(file.contains("PARAMETER stop \"<|im_end|>\"\n") && !file.contains("SYSTEM"), "{file}");
    }

    #[test]
    fn a_bos_token_that_the_tokenizer_adds_is_left_to_llama_cpp() {
        let with = format!("{{{{ '<s>' }}}}{CHATML}");
        assert!(modelfile(&with_bos(&with, "<s>", true), "model.gguf").contains("TEMPLATE \"\"\"{{- range"));
        assert!(!modelfile(&with_bos(&with, "<s>", false), "model.gguf").contains("TEMPLATE \"\"\""));
    }

    #[test]
    fn a_system_message_that_the_template_adds_becomes_ollamas() {
        let added =
            "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}";
        let file = modelfile(&model(&format!("{added}{CHATML}")), "model.gguf");
        assert!(file.contains("SYSTEM \"\"\"Be brief.\"\"\""), "{file}");
    }

    #[test]
    fn an_unknown_template_is_left_to_the_user() {
        let file = modelfile(&model("{% for m in messages %}{{ m.content }}{% endfor %}"), "model.gguf");
        assert!(!file.contains("TEMPLATE \"\"\"") && file.contains("# Ollama's template language"), "{file}");
    }
}
