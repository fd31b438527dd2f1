//! Regular expressions, Lark grammars and choices as the format of an answer, and hostile ones.

use std::time::{Duration, Instant};

use attune_domain::serve::{FinishReason, Form, GenerateEvent, GenerateRequest, Sampling, ToolChoice};

use crate::{
    door::{app, ask, calls, chat, events, reason, said, text, tools},
    world::World,
};

/// A check of an answer's text.
type Matches<'a> = &'a dyn Fn(&str) -> bool;

fn regex(pattern: &str) -> Form {
    Form::Regex { pattern: pattern.into() }
}

fn lark(definition: &str) -> Form {
    Form::Lark { definition: definition.into() }
}

/// Returns a request whose answer a model with random weights would not give on its own.
fn random(form: Form, seed: u64) -> GenerateRequest {
    let sampling = Sampling { temperature: 1.5, seed, max_tokens: Some(60), ..Sampling::default() };
    GenerateRequest { form, sampling, ..ask(text("when?")) }
}

#[tokio::test]
async fn an_answer_matches_its_expression_its_grammar_or_its_choice() {
    let world = World::new().await;
    let app = app(&world);
    let sums = "start: NUMBER (\" + \" NUMBER)~1..2\nNUMBER: /[1-9][0-9]{0,2}/";
    let is_number = |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_date = |text: &str| text.split_once('/').is_some_and(|(a, b)| is_number(a) && is_number(b));
    let is_sum = |text: &str| (2..=3).contains(&text.split(" + ").count()) && text.split(" + ").all(is_number);
    let texts = vec!["yes".to_owned(), "yes, \"of course\"".to_owned(), "nö\u{7f}".to_owned()];
    for seed in 0..4 {
        let is_text = |text: &str| texts.iter().any(|known| known == text);
        let cases: [(Form, Matches<'_>); 3] = [
            (regex("^[0-9]{2}/[0-9]{2}$"), &is_date),
            (lark(sums), &is_sum),
            (Form::Choice { texts: texts.clone() }, &is_text),
        ];
        for (form, matches) in cases {
            let told = events(&app, &random(form.clone(), seed)).await;
            assert_eq!(reason(&told), FinishReason::Stop, "{form:?}: {told:?}");
            assert!(matches(&said(&told)), "{form:?}: {}", said(&told));
        }
    }
}

#[tokio::test]
async fn an_answer_of_a_grammar_or_a_call_is_possible_with_tools() {
    let world = World::new().await;
    let app = app(&world);
    for seed in 0..6 {
        let form = lark("start: \"it is \" SIDE\nSIDE: \"left\" | \"right\"");
        let mut request = GenerateRequest { prompt: chat("which?"), ..random(form, seed) };
        request.sampling.max_tokens = None;
        request.tools = Some(tools(ToolChoice::Auto, false));
        let told = events(&app, &request).await;
        let (text, called) = (said(&told), calls(&told).len());
        assert!(["it is left", "it is right"].contains(&text.as_str()) != (called == 1), "{told:?}");
    }
}

#[tokio::test]
async fn a_definition_that_is_wrong_is_refused_with_its_place() {
    let world = World::new().await;
    let app = app(&world);
    for (form, place) in [
        (lark("start: word\n"), "word"),
        (lark("start: \"a\"\nstart: \"b\""), "2("),
        (lark("begin: \"a\""), "start"),
        (lark("start: <|im_end|>"), "special tokens"),
        (lark("start: A\nA: B\nB: A"), "circular"),
        (regex("(a"), "unclosed"),
        (regex("(a)\\1"), "backreferences"),
        (regex("a\\"), "backslash"),
    ] {
        match events(&app, &random(form.clone(), 1)).await.as_slice() {
            [GenerateEvent::Failed { code, param, message }] => {
                assert_eq!((code.as_str(), param.as_deref()), ("invalid_request", Some("response_format")));
                assert!(message.contains(place), "{form:?}: {message}");
            }
            other => panic!("{form:?}: {other:?}"),
        }
    }
}

/// Returns definitions that are made to be expensive.
fn hostile() -> Vec<Form> {
    let nested = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    let chain = |count: usize, body: &dyn Fn(usize) -> String| {
        let rules: String = (0..count - 1).map(|at| format!("r{at}: {}\n", body(at + 1))).collect();
        format!("start: r0\n{rules}r{}: \"x\"\n", count - 1)
    };
    let groups = |inner: usize| format!("{}r{inner}{}", "(".repeat(15), ")".repeat(15));
    let wide = (0..255).map(|at| format!("T{at}: /\\w{{1,500}}x{at}/\n")).collect::<String>();
    let any = (0..255).map(|at| format!("T{at}")).collect::<Vec<_>>().join(" | ");
    vec![
        regex("(a*)*(a*)*b"),
        regex("((([a-z]{1,900}){1,900}){1,900}){1,900}"),
        regex("(.*a){40}"),
        regex("[ab]*a[ab]{40}c"),
        regex("(\\p{L}{1,1000}){1,1000}"),
        regex(&nested(200)),
        regex(&nested(8000)),
        lark("start: start \"a\" | \"a\""),
        lark("start: start start | \"a\" | \"b\" | \"\""),
        lark("start: a\na: b\nb: a"),
        lark("start: a~30..60\na: b~30..60\nb: c~30..60\nc: d~30..60\nd: /x/"),
        lark(&chain(254, &groups)),
        lark(&chain(254, &|at| format!("r{at} r{at}"))),
        lark(&chain(254, &|at| format!("r{at}? r{at}* | r{at}"))),
        lark("start: X\nX: ~/(.*a.{60})/"),
        lark("start: X\nX: /(.*a.{30})/ & /(.*b.{30})/ & ~/(.*c.{30})/"),
        lark(&format!("start: {any}\n{wide}")),
    ]
}

/// Each is answered, or refused with a reason; other requests are answered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn limit_of_grammars_cuts_hostile_expressions_and_grammars() {
    let world = World::new().await;
    let app = app(&world);
    let others = tokio::spawn({
        let app = app.clone();
        async move {
            let mut slowest = Duration::ZERO;
            for _ in 0..20 {
                let began = Instant::now();
                let told = events(&app, &GenerateRequest { project: "other".into(), ..ask(text("a")) }).await;
                assert!(matches!(told.last(), Some(GenerateEvent::Done { .. })), "{told:?}");
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            slowest
        }
    });
    for form in hostile() {
        let began = Instant::now();
        let mut request = random(form.clone(), 1);
        request.sampling.max_tokens = Some(4);
        let told = events(&app, &request).await;
        let shown = format!("{form:?}").chars().take(100).collect::<String>();
        match told.last() {
            Some(GenerateEvent::Done { .. }) => {}
            Some(GenerateEvent::Failed { code, .. }) => assert_eq!(code, "invalid_request", "{shown}: {told:?}"),
            other => panic!("{shown}: {other:?}"),
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{shown}: {:?}", began.elapsed());
    }
    let slowest = others.await.unwrap();
    assert!(slowest < Duration::from_secs(30), "another project's request took {slowest:?}");
}
