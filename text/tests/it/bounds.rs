//! Limits of an untrusted chat template: its output and memory, its time, and its source.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use attune_domain::dataset::{Message, Row};
use attune_text::encode::Learnt;
use attune_text::error::EncodeError;
use attune_text::template::{ChatTemplate, RenderSettings, Turn};

use attune_text::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::tiny::{A, AT, CHATML, DAY, U, byte_level, chatml};

/// Renders one short message.
fn render(source: &str) -> Result<String, String> {
    let template = ChatTemplate::new(source, BTreeMap::new()).map_err(|e| e.to_string())?;
    template.render(&[Turn::new("user", "Hi")], false, AT).map_err(|e| e.to_string())
}

/// Returns the peak memory of this process, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Checks that each template is refused, quickly and with little memory.
fn all_refused(bombs: &[&str]) {
    for bomb in bombs {
        let (before, begun) = (peak_memory(), Instant::now());
        let rendered = render(bomb);
        let (grown, took) = (peak_memory() - before, begun.elapsed());
        assert!(rendered.is_err(), "{bomb}: {} bytes", rendered.unwrap().len());
        assert!(rendered.unwrap_err().len() < 1200, "{bomb}");
        assert!(grown < 100 << 20, "{bomb}: grown by {} MiB", grown >> 20);
        assert!(took < Duration::from_secs(15), "{bomb}: {took:?}");
    }
}

#[test]
fn attack_a03_a_template_that_prints_without_end_is_stopped() {
    all_refused(&[
        "{%- set s = 'a' * 1000000 -%}{%- for i in range(100) -%}{{ s }}{%- endfor -%}",
        "{% for a in range(1000) %}{% for b in range(1000) %}0123456789{% endfor %}{% endfor %}",
        "{% macro m() %}{{ 'a' * 100000 }}{% endmacro %}{% for i in range(1000) %}{{ m() }}{% endfor %}",
        "{% autoescape true %}{% for i in range(1000) %}{{ '&' * 10000 }}{% endfor %}{% endautoescape %}",
        "{{ raise_exception('a' * 10000000) }}",
    ]);
}

#[test]
fn attack_a03_a_template_that_makes_much_and_prints_nothing_is_stopped() {
    all_refused(&[
        "{{ ('a' * 100000000) | length }}",
        "{% if ('a' * 100000000) in ['b'] %}{% endif %}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}\
         {{ n.x | length }}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}\
         {{ n.x | length }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
        "{{ ([1] * 1000000000) | length }}",
        "{{ '%999999999d' | format(1) | length }}",
        "{{ ('%9999d' * 10000) | format(1) | length }}",
        "{{ '{:>999999999}'.format(1) | length }}",
        "{{ ('a' * 10000) | replace('a', 'b' * 10000) | length }}",
        "{{ ('a' * 10000).replace('', 'b' * 10000) | length }}",
        "{{ (['a' * 1000] * 100000) | join | length }}",
        "{{ ('x' * 10000).join(range(100000)) | length }}",
        "{{ ('\\n' * 100000) | indent(9999) | length }}",
        "{{ 'a' | indent(1000000000, true) | length }}",
        "{{ [1] | batch(1000000000, 0) | list | length }}",
        "{{ [1] | slice(1000000000) | list | length }}",
        "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set t %}{{ 'a' * 1000 }}{% endset %}\
         {% set n.l = n.l + [t] %}{% endfor %}",
        "{% set n = namespace(l=[]) %}{% for i in range(100000) %}\
         {% set n.l = n.l + [messages[0].content * 10000] %}{% endfor %}",
        "{{ strftime_now('%A' * 1000000) | length }}",
    ]);
}

#[test]
fn attack_a03_a_value_that_is_larger_written_out_than_in_memory_is_stopped() {
    let doubled = "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
    let bombs = ["{{ n.x }}", "{{ n.x | string | length }}", "{{ n.x | tojson | length }}", "{{ n.x == n.x }}", ""];
    let bombs: Vec<String> = bombs.iter().map(|end| format!("{doubled}{end}")).collect();
    all_refused(&bombs.iter().map(String::as_str).collect::<Vec<_>>());
    all_refused(&[
        "{% set n = namespace(x=[]) %}{% for i in range(100000) %}{% set n.x = [n.x] %}{% endfor %}",
        "{% set n = namespace(x={}) %}{% for i in range(100000) %}{% set n.x = {'k': n.x} %}{% endfor %}",
        "{% set n = namespace(x=[1, 2]) %}{% set n.x = [[1] * 2000] * 2000 %}{{ n.x | tojson(indent=64) | length }}",
        // A value that contains itself would never be freed.
        "{% set n = namespace() %}{% set n.me = n %}",
        "{% set n = namespace() %}{% set n.me = [n] %}",
        "{% set n = namespace() %}{% for m in [n] %}{% set m.me = loop %}{% endfor %}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(0) }}",
    ]);
    // A chain of slices is not nested: each slice is evaluated.
    let chain =
        "{% set n = namespace(x=[1, 2]) %}{% for i in range(50000) %}{% set n.x = n.x[0:] %}{% endfor %}{{ n.x }}";
    assert_eq!(render(chain).unwrap(), "[1, 2]");
    assert_eq!(render("{{ 'abc'.count('') }}").unwrap(), "4");
}

#[test]
fn limit_a_rendering_ends_after_so_long() {
    let slow = "{% set a = 'a' * 1000000 %}{% set b = 'a' * 1000000 %}{% for i in range(100000) %}\
                {% for j in range(100000) %}{% if a in b %}{% endif %}{% endfor %}{% endfor %}";
    all_refused(&[slow]);
}

#[test]
fn limit_how_a_template_is_written() {
    let chain = |terms: usize| format!("{{{{ 1{} }}}}", "+1".repeat(terms));
    assert_eq!(render(&chain(900)).unwrap(), "901");
    assert_eq!(render(&format!("{{{{ true{} }}}}", " and true".repeat(900))).unwrap(), "True");
    let mut elifs = String::from("{% if false %}");
    for _ in 0..190 {
        elifs.push_str("{% elif false %}");
    }
    assert_eq!(render(&format!("{elifs}{{% endif %}}x")).unwrap(), "x");
    for (bomb, why) in [
        (chain(50_000), "one of its tags has more than 2000 tokens"),
        (format!("{{{{ messages{} }}}}", "|list".repeat(50_000)), "one of its tags has more than 2000 tokens"),
        (format!("{}{{% endif %}}", elifs.repeat(20)), "elif"),
        ("x".repeat((256 << 10) + 1), "262144 are allowed"),
        ("{% include 'chat_template' %}".into(), "includes another template"),
        (format!("{{{{ {}1{} }}}}", "(".repeat(900), ")".repeat(900)), "recursion"),
        (format!("{}{}", "{% if true %}".repeat(5000), "{% endif %}".repeat(5000)), "recursion"),
    ] {
        let refused = render(&bomb).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn limit_what_a_template_prints_grows_with_what_it_is_given() {
    let template = ChatTemplate::new("{% for m in messages %}{{ m.content }}{% endfor %}", BTreeMap::new()).unwrap();
    let twice = ChatTemplate::new(
        "{% for i in range(4) %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfor %}",
        BTreeMap::new(),
    )
    .unwrap();
    let text = "word ".repeat(200_000);
    let turns = [Turn::new("user", &text)];
    assert_eq!(template.render(&turns, false, AT).unwrap(), text);
    let refused = twice.render(&turns, false, AT).unwrap_err().to_string();
    assert!(refused.contains("prints more than"), "{refused}");
}

#[test]
fn the_line_of_an_error_is_the_authors() {
    let refused =
        render("{# a comment\nof two lines #}\n{% if true %}\n  x\n{{ messages | nothing }}{% endif %}").unwrap_err();
    assert!(refused.ends_with("(line 5 of the template)"), "{refused}");
}

#[test]
fn attack_a08_a_chat_of_many_long_answers_is_refused_before_it_costs_much() {
    let chat = |messages: usize, bytes: usize| Row::Chat {
        messages: (0..messages).map(|i| Message::new(if i % 2 == 0 { U } else { A }, "x".repeat(bytes))).collect(),
        tools: None,
        parallel_tool_calls: None,
    };
    let begun = Instant::now();
    let refused = chatml().encode_row(&chat(2046, 500), Learnt::Answers, DAY).unwrap_err();
    assert!(matches!(refused, EncodeError::TooMuchWork { messages: 2046, .. }), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // The answers need not be located if everything is trained.
    assert!(chatml().encode_row(&chat(2046, 500), Learnt::All, DAY).is_ok());
    assert!(chatml().encode_row(&chat(2046, 2), Learnt::Answers, DAY).is_ok());
}

#[test]
fn limit_a_chat_has_so_many_messages() {
    let (model, turns) = (chatml(), vec![Turn::new("user", "a"); 2049]);
    assert!(model.encode_chat(&turns[1..], AT).is_ok());
    assert_eq!(model.encode_chat(&turns, AT).unwrap_err(), EncodeError::TooManyMessages(2049));
}

#[test]
fn case_14_a_template_knows_the_moment_that_it_is_given_and_no_other() {
    let mut source = String::from("{{ strftime_now('%d %B %Y, %H:%M:%S') }}|");
    write!(source, "{CHATML}").unwrap();
    let template = ChatTemplate::new(&source, BTreeMap::new()).unwrap();
    let turns = [Turn::new("user", "Hi")];
    let at = |now| template.render(&turns, true, RenderSettings::at(now)).unwrap();
    assert!(at(DAY).starts_with("29 November 2024, 00:00:00|"), "{}", at(DAY));
    assert_eq!(at(DAY), at(DAY));
    assert_ne!(at(DAY), at(DAY + 1));
}

#[test]
fn limit_what_a_tokenizer_requires() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut file = byte_level();
        change(&mut file);
        Tokenizer::from_json(file.to_string().as_bytes()).map(drop).map_err(|e| e.to_string())
    };
    let replace =
        |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let ten = replace("a", "aaaaaaaaaa");
    let chain = |steps: usize, key: &str| json!({"type": "Sequence", key: vec![ten.clone(); steps]});
    assert_eq!(refused(&|file| file["normalizer"] = replace(" ", "▁")), Ok(()));
    assert_eq!(refused(&|file| file["normalizer"] = chain(1, "normalizers")), Ok(()));
    for (change, why) in [
        (
            &(|file: &mut Value| file["normalizer"] = chain(9, "normalizers")) as &dyn Fn(&mut Value),
            "1000000000 times longer",
        ),
        (&|file: &mut Value| file["decoder"] = chain(2, "decoders"), "its decoder makes a text up to 100 times longer"),
        (
            &|file: &mut Value| {
                file["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "x".repeat(1000)})
            },
            "1001 times",
        ),
        (&|file: &mut Value| file["model"]["max_input_chars_per_word"] = json!(1_000_000), "1000 is allowed"),
    ] {
        let refused = refused(change).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let large = vec![b' '; (48 << 20) + 1];
    assert!(Tokenizer::from_json(&large).unwrap_err().to_string().contains("are allowed"));
}
