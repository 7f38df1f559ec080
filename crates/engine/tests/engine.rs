//! Requests to an engine: streaming, stopping, cancelling, limits, and what goes wrong.

use std::path::Path;
use std::sync::OnceLock;

use ocelli_engine::{
    Answer, Engine, EngineOptions, Error, Event, FinishDetail, FinishReason, GenerateOptions, Input, ModelInfo, Request,
};
use ocelli_formats::ModelFiles;
use ocelli_processors::{Detail, Image};
use proptest::prelude::*;

fn files(family: &str) -> ModelFiles {
    ModelFiles::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family)).expect("a fixture")
}

fn engine(family: &str) -> Engine {
    Engine::load(&files(family), &EngineOptions::new()).expect("a fixture loads")
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::greedy() }
}

fn ask(max_tokens: usize) -> Request {
    Request::raw("<|im_start|>user\nhow many dogs are there?<|im_end|>\n", vec![], greedy(max_tokens))
}

fn tokens(ids: &[u32], max_tokens: usize) -> Request {
    Request { input: Input::Tokens { ids: ids.to_vec() }, options: greedy(max_tokens) }
}

/// The same but for what the clock says.
fn content(answer: Answer) -> Answer {
    Answer { timings: Default::default(), ..answer }
}

#[test]
fn events_add_up_to_the_answer() {
    let engine = engine("qwen2");
    let mut text = String::new();
    let mut ids = Vec::new();
    let mut events = engine.submit(ask(12));
    let Some(Ok(Event::Started { prompt_tokens, vision_tokens, images })) = events.next() else { panic!("no start") };
    assert_eq!((vision_tokens, images.len()), (0, 0));
    let mut answer = None;
    for event in &mut events {
        match event.unwrap() {
            Event::Text { piece, token_ids } => {
                text += &piece;
                ids.extend(token_ids);
            }
            Event::Done(done) => answer = Some(done),
            Event::Started { .. } | Event::Reasoning { .. } => panic!("unexpected"),
        }
    }
    assert!(events.next().is_none());
    let answer = answer.unwrap();
    assert_eq!((&answer.text, &answer.token_ids), (&text, &ids));
    assert_eq!((answer.prompt_tokens, answer.completion_tokens), (prompt_tokens, 12));
    assert_eq!((answer.finish_reason, answer.finish_detail), (FinishReason::Length, FinishDetail::MaxTokens));
    let timings = answer.timings;
    assert!(timings.load_ms > 0.0 && timings.ttft_ms >= timings.preprocess_ms + timings.prefill_ms, "{timings:?}");
    assert!(timings.tokens_per_second > 0.0, "{timings:?}");
}

#[test]
fn a_stop_string_ends_the_answer_and_is_never_given_out() {
    let engine = engine("qwen2");
    let whole = engine.answer(ask(12)).unwrap();
    let characters: Vec<(usize, char)> = whole.text.char_indices().collect();
    // From the middle of the text, long enough to span tokens.
    let (start, end) = (characters[characters.len() / 3].0, characters[characters.len() / 3 + 4].0);
    let stop = whole.text[start..end].to_owned();
    let mut request = ask(12);
    request.options.stop = vec!["never to be seen".to_owned(), stop.clone()];
    let mut given_out = String::new();
    let mut answer = None;
    for event in engine.submit(request.clone()) {
        match event.unwrap() {
            Event::Text { piece, .. } => given_out += &piece,
            Event::Done(done) => answer = Some(done),
            Event::Started { .. } | Event::Reasoning { .. } => {}
        }
    }
    let answer = answer.unwrap();
    assert_eq!(answer.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert_eq!(given_out, answer.text);
    assert_eq!((answer.finish_reason, answer.finish_detail), (FinishReason::Stop, FinishDetail::StopString));
    assert_eq!(answer.stop_string, Some(stop));
    assert!(whole.token_ids.starts_with(&answer.token_ids) && answer.token_ids.len() < whole.token_ids.len());

    request.options.num_beams = 2;
    let beams = engine.answer(request).unwrap();
    assert!(!beams.text.contains(answer.stop_string.as_ref().unwrap()));
}

#[test]
fn an_answer_that_begins_with_its_stop_string_says_so() {
    let engine = engine("qwen2");
    let whole = engine.answer(ask(4)).unwrap();
    let mut request = ask(4);
    request.options.stop = vec![whole.text.chars().next().unwrap().to_string()];
    let answer = engine.answer(request).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish_reason), ("", FinishReason::Stop));
    assert_eq!(answer.notice.as_deref(), Some("the answer began with a stop string"));
}

#[test]
fn requests_in_the_queue_do_not_touch_each_other() {
    let engine = engine("qwen2");
    let requests = [ask(12), tokens(&[5, 6, 7], 12), ask(12)];
    let alone: Vec<Answer> = requests.iter().map(|request| content(engine.answer(request.clone()).unwrap())).collect();
    let queued: Vec<_> = requests.iter().map(|request| engine.submit(request.clone())).collect();
    let queued: Vec<Answer> = queued.into_iter().map(|generation| content(generation.wait().unwrap())).collect();
    assert_eq!(alone, queued);
    assert_eq!(alone[0], alone[2]);
}

#[test]
fn a_request_ends_where_it_is_cancelled() {
    let engine = engine("qwen2");
    let mut generation = engine.submit(ask(400));
    let mut answer = None;
    while let Some(event) = generation.next() {
        match event.unwrap() {
            Event::Text { .. } => generation.cancel(),
            Event::Done(done) => answer = Some(done),
            Event::Started { .. } | Event::Reasoning { .. } => {}
        }
    }
    let answer = answer.unwrap();
    assert_eq!((answer.finish_reason, answer.finish_detail), (FinishReason::Cancelled, FinishDetail::Cancelled));
    assert!(answer.completion_tokens < 400 && !answer.text.is_empty());

    // Dropped while it runs: the next one has its turn. Cancelled in the queue: it says so and did nothing.
    drop(engine.submit(ask(400)));
    let waiting = engine.submit(ask(400));
    waiting.cancel_handle().cancel();
    let answer = waiting.wait().unwrap();
    assert_eq!((answer.finish_detail, answer.completion_tokens), (FinishDetail::Cancelled, 0));
    assert!(engine.answer(ask(2)).is_ok());
}

#[test]
fn an_answer_outlives_the_last_engine_handle() {
    let engine = engine("qwen2");
    let generation = engine.submit(ask(6));
    drop(engine);
    assert_eq!(generation.wait().unwrap().completion_tokens, 6);
}

#[test]
fn a_full_context_is_told_from_enough_tokens() {
    let engine = engine("qwen2");
    let context_length = engine.info().context_length;
    let prompt = vec![5; context_length - 3];
    let mut request = tokens(&prompt, 50);
    request.options.min_tokens = 50;
    let answer = engine.answer(request.clone()).unwrap();
    assert_eq!((answer.finish_reason, answer.finish_detail), (FinishReason::Length, FinishDetail::ContextFull));
    assert_eq!(answer.completion_tokens, 3);
    request.options.num_beams = 3;
    assert_eq!(engine.answer(request).unwrap().finish_detail, FinishDetail::ContextFull);
}

#[test]
fn sampling_repeats_with_its_seed() {
    let engine = engine("qwen2");
    let mut request = ask(16);
    request.options = GenerateOptions { temperature: Some(1.5), top_p: Some(0.95), ..request.options };
    let first = engine.answer(request.clone()).unwrap();
    request.options.seed = first.seed;
    let second = engine.answer(request.clone()).unwrap();
    assert_eq!(content(first.clone()), content(second));
    request.options.seed = Some(first.seed.unwrap() ^ 1);
    assert_ne!(engine.answer(request).unwrap().token_ids, first.token_ids);
}

#[test]
fn options_that_change_nothing_are_told() {
    let mut request = tokens(&[5, 6, 7], 4);
    request.options = GenerateOptions { top_p: Some(0.5), top_k: Some(3), min_p: Some(0.0), ..request.options };
    let notice = engine("qwen2").answer(request).unwrap().notice;
    assert_eq!(notice.as_deref(), Some("no effect without a temperature above 0: top_k, top_p"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is asked of it, an answer keeps its own rules.
    #[test]
    fn answers_are_consistent(
        ids in prop::collection::vec(3u32..400, 1..40),
        temperature in prop::option::of(0.0f32..3.0),
        num_beams in 1usize..4,
        (max_tokens, min_tokens) in (1usize..24, 0usize..4),
        (top_k, top_p) in (prop::option::of(0usize..50), prop::option::of(0.01f32..1.0)),
        (presence_penalty, repetition_penalty) in (prop::option::of(-2.0f32..2.0), prop::option::of(0.5f32..2.0)),
        no_repeat_ngram_size in prop::option::of(0usize..4),
        stop in prop::collection::vec("[a-e ]{1,2}", 0..3),
    ) {
        let options = GenerateOptions {
            max_tokens: Some(max_tokens),
            min_tokens: min_tokens.min(max_tokens),
            temperature: temperature.filter(|_| num_beams == 1),
            top_k,
            top_p,
            presence_penalty,
            repetition_penalty,
            no_repeat_ngram_size,
            seed: Some(5),
            stop: stop.clone(),
            num_beams,
            ..GenerateOptions::greedy()
        };
        let engine = shared_engine();
        let request = Request { input: Input::Tokens { ids: ids.clone() }, options };
        let answer = engine.answer(request.clone()).unwrap();
        prop_assert_eq!(answer.completion_tokens, answer.token_ids.len());
        prop_assert!(answer.completion_tokens <= max_tokens && answer.completion_tokens > 0);
        prop_assert!(!stop.iter().any(|stop| answer.text.contains(stop)), "{:?}", answer);
        prop_assert_eq!(answer.finish_detail == FinishDetail::StopString, answer.stop_string.is_some());
        if answer.finish_detail == FinishDetail::MaxTokens {
            prop_assert_eq!(answer.completion_tokens, max_tokens);
        }
        prop_assert_eq!(answer.score.is_some(), num_beams > 1);
        prop_assert_eq!(answer.prompt_tokens, ids.len());
        prop_assert_eq!(content(engine.answer(request).unwrap()), content(answer));
    }
}

/// One engine for all cases.
fn shared_engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| engine("qwen2"))
}

#[test]
fn pictures_are_accounted_for_and_decide_the_answer() {
    let engine = engine("smolvlm");
    let gradient = |scale: usize| {
        let pixels = (0..100 * 60 * 3).map(|idx| (idx * scale % 251) as u8).collect();
        Image::new(100, 60, pixels)
    };
    let ask = |image: Image| engine.answer(Request::raw("User:<image>what?", vec![image], greedy(8))).unwrap();
    let (first, other, again) = (ask(gradient(1)), ask(gradient(7)), ask(gradient(1)));
    assert_eq!(content(first.clone()), content(again));
    assert_ne!(first.token_ids, other.token_ids);
    assert_eq!((first.images.len(), first.images[0].image_size), (1, [100, 60]));
    assert_eq!(first.images[0].vision_tokens, first.vision_tokens);
    assert!(first.vision_tokens > 0 && first.prompt_tokens > first.vision_tokens);
    assert!(first.timings.vision_ms > 0.0);
}

#[test]
fn a_picture_seen_before_gives_the_same_answer_and_never_another_ones() {
    let picture = |shade: u8| Image::new(90, 60, (0..90 * 60 * 3).map(|at| (at % 251) as u8 ^ shade).collect());
    let ask = |shade| Request::raw("<image>what is in the picture?", vec![picture(shade)], greedy(8));
    let used = engine("smolvlm");
    for shade in [0, 200, 0, 200, 13] {
        let (again, fresh) = (used.answer(ask(shade)).unwrap(), engine("smolvlm").answer(ask(shade)).unwrap());
        assert_eq!(content(again), content(fresh), "picture {shade}");
    }
    assert_ne!(used.answer(ask(0)).unwrap().token_ids, used.answer(ask(200)).unwrap().token_ids);
}

/// The same picture in more or fewer tokens is other features, which the cache keeps apart.
#[test]
fn a_picture_in_fewer_tokens_is_another_one_to_the_cache() {
    let picture = Image::new(150, 90, (0..150 * 90 * 3).map(|at| (at % 251) as u8).collect());
    let ask = |detail| {
        let text = "<image>what is in the picture?".to_owned();
        let input = Input::Raw { text, images: vec![picture.clone()], videos: Vec::new(), detail };
        Request { input, options: greedy(8) }
    };
    let used = engine("smolvlm");
    let [auto, tile, small] = [(Detail::Auto, 20), (Detail::AtMost(4), 4), (Detail::AtMost(3), 1)];
    for (detail, tokens) in [auto, small, tile, small, auto, tile, (Detail::AtMost(1), 1), (Detail::Low, 4)] {
        let (again, fresh) = (used.answer(ask(detail)).unwrap(), engine("smolvlm").answer(ask(detail)).unwrap());
        assert_eq!(again.vision_tokens, tokens, "{detail:?}");
        assert_eq!(content(again), content(fresh), "{detail:?}");
    }
    let ids = |detail| used.answer(ask(detail)).unwrap().token_ids;
    assert_ne!(ids(auto.0), ids(small.0));
    let error = used.answer(ask(Detail::AtMost(0))).unwrap_err();
    assert!(error.hint().unwrap().contains("--image-tokens 1 or more"), "{error}");
}

#[test]
fn what_cannot_be_answered_is_an_error_with_names() {
    let engine = engine("smolvlm");
    let context_length = engine.info().context_length;
    let vocab = 1 << 20;
    let cases = [
        (tokens(&[], 4), "the prompt is empty".to_owned()),
        (
            tokens(&vec![5; context_length], 4),
            format!("the prompt takes {context_length} tokens, but the model's context is {context_length}"),
        ),
        (tokens(&[vocab], 4), "token id 1048576 is beyond the model's vocabulary of 442".to_owned()),
        (tokens(&[5], 0), "max_tokens is 0, expected at least 1".to_owned()),
    ];
    for (request, message) in cases {
        assert_eq!(engine.answer(request).unwrap_err().to_string(), message);
    }
    let image_id = engine.processor().tokenizer().token_to_id("<image>").unwrap();
    let error = engine.answer(tokens(&[5, image_id, image_id], 4)).unwrap_err();
    assert_eq!(error.to_string(), "the prompt holds 2 image tokens, but the pictures give 0 features");
    assert!(error.hint().unwrap().contains("different models"));
    let picture = vec![Image::new(8, 8, vec![0; 8 * 8 * 3])];
    let error = self::engine("llama3").answer(Request::raw("<image>", picture, greedy(4))).unwrap_err();
    assert!(matches!(error, Error::Processors(_)), "{error}");
    assert!(engine.answer(tokens(&[5, 6], 4)).is_ok(), "an error ends only its own request");
}

#[test]
fn memory_is_counted_before_it_is_spent() {
    let info = ModelInfo::read(&files("qwen2")).unwrap();
    let limit = info.weight_bytes + 64 * info.kv_bytes_per_token as u64;
    let options = EngineOptions { memory_limit: Some(limit), ..EngineOptions::new() };
    let engine = Engine::load(&files("qwen2"), &options).unwrap();
    let error = engine.answer(tokens(&[5, 6, 7], 100)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().starts_with("keys and values of 103 tokens need"), "{error}");
    assert!(engine.answer(tokens(&[5, 6, 7], 10)).is_ok());
    let mut beams = tokens(&[5, 6, 7], 10);
    beams.options.num_beams = 12;
    assert!(matches!(engine.answer(beams).unwrap_err(), Error::OutOfMemory { .. }));

    let options = EngineOptions { memory_limit: Some(info.weight_bytes - 1), ..EngineOptions::new() };
    let error = Engine::load(&files("qwen2"), &options).err().unwrap();
    assert!(error.to_string().starts_with("the weights of"), "{error}");
}

#[test]
fn what_cannot_be_loaded_is_an_error_with_names() {
    let nowhere = Engine::load(&ModelFiles::embedded("nowhere", &[]), &EngineOptions::new()).err().unwrap();
    assert!(matches!(nowhere, Error::Formats(_)), "{nowhere}");
    const UNKNOWN: &[(&str, &[u8])] =
        &[("config.json", br#"{"model_type": "perceptron"}"#), ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")];
    let unknown = Engine::load(&ModelFiles::embedded("unknown", UNKNOWN), &EngineOptions::new()).err().unwrap();
    assert!(matches!(unknown, Error::Models(_)), "{unknown}");
    assert!(unknown.to_string().contains("perceptron"), "{unknown}");
    let options = EngineOptions { threads: Some(0), ..EngineOptions::new() };
    let idle = Engine::load(&files("qwen2"), &options).err().unwrap();
    assert!(matches!(idle, Error::Cpu(_)), "{idle}");
}

#[test]
fn a_model_is_described_alike_before_and_after_loading() {
    for family in ["idefics3", "smolvlm", "llama3", "qwen2"] {
        assert_eq!(&ModelInfo::read(&files(family)).unwrap(), engine(family).info());
    }
}

#[test]
fn the_json_of_an_answer_has_the_agreed_names() {
    let engine = engine("qwen2");
    let json = serde_json::to_value(engine.answer(ask(2)).unwrap()).unwrap();
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut found = names(&json);
    found.sort();
    let mut expected = vec![
        "text",
        "token_ids",
        "finish_reason",
        "finish_detail",
        "images",
        "vision_tokens",
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "timings",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    let mut found = names(&json["timings"]);
    found.sort();
    let mut expected =
        vec!["load_ms", "preprocess_ms", "vision_ms", "prefill_ms", "decode_ms", "ttft_ms", "tokens_per_second"];
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!((json["finish_reason"].as_str(), json["finish_detail"].as_str()), (Some("length"), Some("max_tokens")));
}
