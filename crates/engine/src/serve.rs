//! The worker's side of the engine: takes commands, serves requests one by one, measures.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use ocelli_backend::Cancel;
use ocelli_models::ImageInput;
use ocelli_processors::{PreparedImage, Processor, Prompt};

use crate::answer::{Answer, ImageUse, Timings};
use crate::engine::panicked;
use crate::error::{Error, Result};
use crate::generate::{Outcome, Random, Task, generate};
use crate::info::ModelInfo;
use crate::locate::{LocateJob, LocateRequest, Located};
use crate::memory::MemoryBudget;
use crate::options::GenerateOptions;
use crate::reasoning::Reasoning;
use crate::request::{Event, Request};
use crate::session::{ImageFeatures, LogitRows, Looked, Prefill, Session};
use crate::speech::{Speech, SpeechTokens, TranscribeEvent, TranscribeJob, Transcript};
use crate::vision_cache::VisionCache;

/// Everything the worker can be told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer a request.
    Generate(Box<Job>),
    /// Transcribe a recording.
    Transcribe(Box<TranscribeJob>),
    /// Find something in a picture.
    Locate(Box<LocateJob>),
    /// End the thread; jobs still queued are dropped, which their callers see as [`Error::Stopped`].
    Stop,
}

/// A request and where its events go.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) cancel: Cancel,
    pub(crate) events: Sender<Result<Event>>,
}

/// What the worker thread owns.
pub(crate) struct Server {
    session: Box<dyn Session>,
    processor: Arc<Processor>,
    end_ids: Vec<u32>,
    speech: Option<SpeechTokens>,
    model_type: String,
    budget: MemoryBudget,
    vision_cache: VisionCache,
    /// Most tokens that the cache has held: its memory is kept and used again.
    most_cached: usize,
    load_ms: f64,
}

impl Server {
    pub(crate) fn new(
        session: Box<dyn Session>,
        processor: Arc<Processor>,
        info: &ModelInfo,
        (end_ids, speech): (Vec<u32>, Option<SpeechTokens>),
        load_ms: f64,
        memory_limit: Option<u64>,
    ) -> Self {
        let budget = MemoryBudget::new(memory_limit, info.weight_bytes);
        let model_type = info.model_type.clone();
        Self {
            session,
            processor,
            end_ids,
            speech,
            model_type,
            budget,
            vision_cache: VisionCache::new(),
            most_cached: 0,
            load_ms,
        }
    }

    /// Serves until told to stop or until nobody can send any more.
    pub(crate) fn run(&mut self, queue: &Receiver<Command>) {
        while let Ok(command) = queue.recv() {
            // Nobody listens any more: then nobody misses it.
            let _ = match command {
                Command::Generate(job) => {
                    let result = self.guarded(|server| server.answer(&job));
                    job.events.send(result.map(Event::Done)).is_ok()
                }
                Command::Transcribe(job) => {
                    let result = self.guarded(|server| server.transcribe(&job));
                    job.events.send(result.map(TranscribeEvent::Done)).is_ok()
                }
                Command::Locate(job) => {
                    let result = self.guarded(|server| server.locate(&job));
                    job.result.send(result).is_ok()
                }
                Command::Stop => return,
            };
        }
    }

    fn guarded<T>(&mut self, serve: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        // What a panic leaves half-done is the cache alone, and that is made anew.
        let result = catch_unwind(AssertUnwindSafe(|| serve(self)));
        let result = result.unwrap_or_else(|payload| Err(panicked(payload.as_ref())));
        if let Err(error) = &result {
            tracing::warn!(%error, "request failed");
            if !self.session.is_empty() || matches!(error, Error::Panicked { .. }) {
                self.session.reset();
                self.most_cached = 0;
            }
        }
        result
    }

    fn transcribe(&mut self, job: &TranscribeJob) -> Result<Transcript> {
        job.options.validate()?;
        let no_hearing = Error::NoHearing { model_type: self.model_type.clone() };
        let processor = Arc::clone(&self.processor);
        let Some(extractor) = processor.mel_extractor() else { return Err(no_hearing) };
        // Half of the context is for what was said before, the other for each beam's answer; two frames are one state.
        let half = self.session.context_length() / 2;
        self.check_cache(half * (1 + job.options.num_beams), extractor.window_frames() / 2)?;
        let Some(tokens) = self.speech.as_ref() else { return Err(no_hearing) };
        Speech { session: self.session.as_mut(), processor: &processor, extractor, tokens }.transcribe(job)
    }

    fn locate(&mut self, job: &LocateJob) -> Result<Located> {
        let start = Instant::now();
        let LocateRequest { image, thing, boxes, max_regions } = &job.request;
        let Some(prompt) = self.processor.locating_prompt(thing, image, *boxes)? else {
            return Err(Error::NoRegions { model_type: self.model_type.clone() });
        };
        let most = GenerateOptions { max_tokens: Some(3 * max_regions + 1), ..GenerateOptions::greedy() };
        self.check_room(&prompt, &most)?;
        let features = self.encode_images(&prompt.images, &job.cancel)?;
        if job.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let ids = &prompt.ids;
        let prefill = Prefill { ids, images: &features, rows: LogitRows::Last, cancel: &job.cancel };
        let looked = Looked { prompt: prefill, boxes: *boxes, max_regions: *max_regions, end_ids: &self.end_ids };
        let sequence = self.session.start();
        let regions = self.session.locate(sequence, looked);
        self.session.end(sequence);
        let image = prompt.images.first().map(image_use).ok_or(Error::EmptyPrompt)?;
        let total_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(Located { regions: regions?, image, prompt_tokens: ids.len(), total_ms })
    }

    fn answer(&mut self, job: &Job) -> Result<Answer> {
        let start = Instant::now();
        let options = &job.request.options;
        options.validate()?;
        let mut prompt = job.request.input.prepare(&self.processor)?;
        self.check_room(&prompt, options)?;
        let preprocess = start.elapsed();
        let images: Vec<ImageUse> = prompt.images.iter().map(image_use).collect();
        let vision_tokens = images.iter().map(|image| image.vision_tokens).sum();
        let prompt_tokens = prompt.ids.len();
        let started = Event::Started { prompt_tokens, vision_tokens, images: images.clone() };
        let _ = job.events.send(Ok(started));

        let vision_start = Instant::now();
        let features = self.encode_images(&prompt.images, &job.cancel)?;
        let vision = vision_start.elapsed();
        // The pixels of a large picture take more memory than the cache that is filled next.
        prompt.images.clear();
        let seed = options.is_sampling().then(|| options.seed.unwrap_or_else(Random::fresh_seed));
        let mut reasoning = Reasoning::new(&job.request.input, &self.processor, &prompt);
        let outcome = self.generate(job, &prompt, &features, seed.unwrap_or_default(), &mut reasoning)?;
        let (reasoning, text) = reasoning.into_parts();

        let completion_tokens = outcome.token_ids.len();
        let notice = Answer::notice(&text, reasoning.is_some(), outcome.detail, &options.without_effect());
        let timings = self.timings(start, [preprocess, vision], &outcome);
        Ok(Answer {
            text,
            reasoning,
            token_ids: outcome.token_ids,
            finish_reason: outcome.detail.reason(),
            finish_detail: outcome.detail,
            stop_string: outcome.stop_string,
            notice,
            images,
            vision_tokens,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens,
            score: outcome.score,
            seed,
            timings,
        })
    }

    /// Everything that a prompt's length decides, before the vision tower runs.
    fn check_room(&mut self, prompt: &Prompt, options: &GenerateOptions) -> Result<()> {
        let (prompt_tokens, context_length) = (prompt.ids.len(), self.session.context_length());
        if prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let held_tokens = self.session.decoder_ids(&prompt.ids).len();
        if prompt_tokens.max(held_tokens) >= context_length {
            return Err(Error::PromptTooLong { prompt_tokens, context_length });
        }
        let answer_tokens = options.max_tokens_after(held_tokens).min(context_length - held_tokens);
        // What is looked at by cross-attention has keys and values of its own, once for all beams.
        let looked_at = match self.session.image_input() {
            ImageInput::Context => prompt.images.iter().map(|image| image.vision_tokens).sum(),
            ImageInput::None | ImageInput::Tokens(_) | ImageInput::TokensByKind { .. } => 0,
        };
        self.check_cache(held_tokens + answer_tokens * options.num_beams, looked_at)
    }

    /// Checks that there is memory for the keys and values of `tokens`, which stay with the cache, and of `looked_at`
    /// others, which go with the request.
    fn check_cache(&mut self, tokens: usize, looked_at: usize) -> Result<()> {
        let bytes = |tokens: usize| tokens as u64 * self.session.kv_bytes_per_token() as u64;
        let further = tokens.saturating_sub(self.most_cached) + looked_at;
        self.budget.check_cache(tokens + looked_at, bytes(further), bytes(self.most_cached))?;
        self.most_cached = self.most_cached.max(tokens);
        Ok(())
    }

    /// Stops early, with fewer features than pictures, when cancelled: the prefill then does not start.
    fn encode_images(&mut self, images: &[PreparedImage], cancel: &Cancel) -> Result<Vec<ImageFeatures>> {
        let mut all = Vec::with_capacity(images.len());
        for image in images {
            let session = self.session.as_ref();
            let known = self.vision_cache.features(image, || session.encode_image(image, cancel));
            match known {
                Err(Error::Cancelled) => break,
                features => all.push(features?),
            }
        }
        Ok(all)
    }

    fn generate(
        &mut self,
        job: &Job,
        prompt: &Prompt,
        features: &[ImageFeatures],
        seed: u64,
        reasoning: &mut Reasoning,
    ) -> Result<Outcome> {
        if job.cancel.is_cancelled() {
            return Ok(Outcome::cancelled(Duration::ZERO));
        }
        let task = Task {
            ids: &prompt.ids,
            images: features,
            options: &job.request.options,
            seed,
            end_ids: &self.end_ids,
            tokenizer: self.processor.tokenizer(),
            cancel: &job.cancel,
        };
        let send = |events: Vec<Event>| {
            if events.into_iter().any(|event| job.events.send(Ok(event)).is_err()) {
                job.cancel.cancel();
            }
        };
        let mut emit = |piece: String, token_ids| send(reasoning.push(&piece, token_ids));
        let outcome = generate(self.session.as_mut(), &task, &mut emit)?;
        send(reasoning.finish());
        Ok(outcome)
    }

    fn timings(&self, start: Instant, [preprocess, vision]: [Duration; 2], outcome: &Outcome) -> Timings {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let after_first = outcome.token_ids.len().saturating_sub(1) as f64;
        let seconds = outcome.decode.as_secs_f64();
        Timings {
            load_ms: self.load_ms,
            preprocess_ms: milliseconds(preprocess),
            vision_ms: milliseconds(vision),
            prefill_ms: milliseconds(outcome.prefill),
            decode_ms: milliseconds(outcome.decode),
            ttft_ms: outcome.first_token.map_or(0.0, |at| milliseconds(at - start)),
            tokens_per_second: if after_first > 0.0 && seconds > 0.0 { after_first / seconds } else { 0.0 },
        }
    }
}

fn image_use(image: &PreparedImage) -> ImageUse {
    ImageUse {
        image_size: image.image_size.into(),
        resized_to: image.resized_to.into(),
        frames: image.frames,
        vision_tokens: image.vision_tokens,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ocelli_backend::SequenceId;
    use ocelli_formats::ModelFiles;
    use ocelli_models::ImageInput;

    use super::*;
    use crate::answer::FinishDetail;
    use crate::{Engine, EngineOptions, Input, LoadedModel};

    /// What happens to the logits of each decoding step.
    type Tamper = Box<dyn FnMut(&mut Vec<f32>) + Send>;

    /// A session that does as it should until a test interferes.
    struct Tampered {
        inner: Box<dyn Session>,
        tamper: Tamper,
    }

    impl Session for Tampered {
        fn vocab_size(&self) -> usize {
            self.inner.vocab_size()
        }
        fn context_length(&self) -> usize {
            self.inner.context_length()
        }
        fn kv_bytes_per_token(&self) -> usize {
            self.inner.kv_bytes_per_token()
        }
        fn most_activation_bytes(&self) -> usize {
            self.inner.most_activation_bytes()
        }
        fn image_input(&self) -> ImageInput {
            self.inner.image_input()
        }
        fn decoder_ids(&self, ids: &[u32]) -> Vec<u32> {
            self.inner.decoder_ids(ids)
        }
        fn prefill_chunk(&self) -> usize {
            self.inner.prefill_chunk()
        }
        fn set_prefill_chunk(&mut self, rows: usize) {
            self.inner.set_prefill_chunk(rows);
        }
        fn encode_image(&self, image: &PreparedImage, cancel: &Cancel) -> Result<ImageFeatures> {
            self.inner.encode_image(image, cancel)
        }
        fn encode_audio(&self, mel: &ocelli_processors::LogMel, cancel: &Cancel) -> Result<ImageFeatures> {
            self.inner.encode_audio(mel, cancel)
        }
        fn align(&mut self, text: crate::session::Align<'_>) -> Result<(ocelli_models::Alignment, Vec<f32>)> {
            self.inner.align(text)
        }
        fn locate(&mut self, sequence: SequenceId, looked: Looked<'_>) -> Result<Vec<crate::Region>> {
            self.inner.locate(sequence, looked)
        }
        fn read_features(&self, features: &ImageFeatures) -> Vec<f32> {
            self.inner.read_features(features)
        }
        fn start(&mut self) -> SequenceId {
            self.inner.start()
        }
        fn fork(&mut self, sequence: SequenceId) -> SequenceId {
            self.inner.fork(sequence)
        }
        fn end(&mut self, sequence: SequenceId) {
            self.inner.end(sequence);
        }
        fn len(&self, sequence: SequenceId) -> usize {
            self.inner.len(sequence)
        }
        fn is_empty(&self) -> bool {
            self.inner.is_empty()
        }
        fn truncate(&mut self, sequence: SequenceId, len: usize) {
            self.inner.truncate(sequence, len);
        }
        fn prefill(&mut self, sequence: SequenceId, prompt: Prefill<'_>) -> Result<Vec<f32>> {
            assert!(self.inner.is_empty(), "an earlier request left something in the cache");
            let mut logits = self.inner.prefill(sequence, prompt)?;
            (self.tamper)(&mut logits);
            Ok(logits)
        }
        fn decode(&mut self, next: &[(SequenceId, u32)]) -> Vec<f32> {
            let mut logits = self.inner.decode(next);
            (self.tamper)(&mut logits);
            logits
        }
        fn reset(&mut self) {
            self.inner.reset();
        }
    }

    fn engine(tamper: Tamper) -> Engine {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/qwen2");
        let options = EngineOptions::new();
        let mut model = LoadedModel::load(&ModelFiles::open(folder).unwrap(), &options).unwrap();
        model.session = Box::new(Tampered { inner: model.session, tamper });
        Engine::start(model, &options)
    }

    /// Makes one token the likeliest, in every row.
    fn always(id: u32) -> Tamper {
        Box::new(move |logits| logits.chunks_exact_mut(VOCAB_SIZE).for_each(|row| row[id as usize] = 100.0))
    }

    fn request(num_beams: usize) -> Request {
        let options = GenerateOptions { max_tokens: Some(8), num_beams, ..GenerateOptions::greedy() };
        Request { input: Input::Tokens { ids: vec![7, 8, 9] }, options }
    }

    #[test]
    fn a_panic_ends_one_request_and_nothing_else() {
        for num_beams in [1, 3] {
            let mut steps = 0;
            let engine = engine(Box::new(move |_| {
                steps += 1;
                assert!(steps != 12, "injected");
            }));
            let first = engine.answer(request(num_beams)).unwrap();
            let error = engine.answer(request(num_beams)).unwrap_err();
            assert_eq!(error.to_string(), "the request failed inside the engine: injected");
            assert!(error.hint().unwrap().contains("report it"));
            let again = engine.answer(request(num_beams)).unwrap();
            assert_eq!(first.token_ids, again.token_ids);
        }
    }

    #[test]
    fn broken_logits_are_an_error() {
        for num_beams in [1, 3] {
            let mut steps = 0;
            let engine = engine(Box::new(move |logits| {
                steps += 1;
                if steps == 3 {
                    logits.fill(f32::NAN);
                }
            }));
            let error = engine.answer(request(num_beams)).unwrap_err();
            assert_eq!(error.to_string(), "the model's logits are not finite after 5 tokens");
            assert!(engine.answer(request(num_beams)).is_ok(), "the cache is free again");
        }
    }

    #[test]
    fn an_answer_without_text_says_why() {
        let engine = engine(always(END));
        for num_beams in [1, 2] {
            let answer = engine.answer(request(num_beams)).unwrap();
            assert_eq!((answer.text.as_str(), &answer.token_ids[..]), ("", &[END][..]));
            assert_eq!(answer.finish_detail, FinishDetail::EndOfText);
            assert_eq!(answer.notice.as_deref(), Some("the model ended its answer before saying anything"));
        }
    }

    /// What the model says when it is made to say `answer`, with a template that ends in `opening`.
    fn thinking(opening: &str, answer: &str) -> (Vec<Event>, Answer) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/qwen2");
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
        };
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(read).collect();
        let template = format!("{{{{ messages[-1].content.split('</think>')[-1] }}}}{opening}");
        files.push(("chat_template.jinja".to_owned(), template.into_bytes()));
        let options = EngineOptions::new();
        let mut model = LoadedModel::load(&ModelFiles::in_memory("thinker", files), &options).unwrap();
        let mut script = model.processor.tokenizer().encode(answer, false).unwrap();
        script.push(END);
        let mut script = script.into_iter();
        let tamper = Box::new(move |logits: &mut Vec<f32>| logits[script.next().unwrap() as usize] = 100.0);
        model.session = Box::new(Tampered { inner: model.session, tamper });
        let options = GenerateOptions { max_tokens: Some(100), ..GenerateOptions::greedy() };
        let engine = Engine::start(model, &EngineOptions::new());
        let mut events: Vec<Event> =
            engine.submit(Request::question("hm", Vec::new(), options)).collect::<Result<_>>().unwrap();
        let Some(Event::Done(answer)) = events.pop() else { panic!("no answer") };
        (events, answer)
    }

    #[test]
    fn a_thought_is_streamed_and_reported_apart() {
        for (opening, answer) in
            [("<think>", "red and blue </think>\nviolet"), ("", "<think>\nred and blue\n</think>\n\nviolet")]
        {
            let (events, answer) = thinking(opening, answer);
            assert_eq!((answer.reasoning.as_deref(), answer.text.as_str()), (Some("red and blue"), "violet"));
            assert_eq!(answer.notice, None);
            let pieces = |of: fn(&Event) -> Option<&str>| events.iter().filter_map(of).collect::<Vec<_>>();
            let thought = pieces(|event| match event {
                Event::Reasoning { piece, .. } => Some(piece.as_str()),
                _ => None,
            });
            assert!(thought.len() > 1 && thought.concat() == "red and blue", "{thought:?}");
            let text = pieces(|event| match event {
                Event::Text { piece, .. } => Some(piece.as_str()),
                _ => None,
            });
            assert_eq!(text.concat(), "violet");
        }
        let (_, answer) = thinking("<think>", "red and");
        assert_eq!((answer.reasoning.as_deref(), answer.text.as_str()), (Some("red and"), ""));
        assert_eq!(answer.notice.as_deref(), Some("the answer ended while the model was thinking"));
    }

    #[test]
    fn the_end_waits_for_min_tokens() {
        let engine = engine(always(END));
        for num_beams in [1, 2] {
            let mut request = request(num_beams);
            request.options.min_tokens = 3;
            let answer = engine.answer(request).unwrap();
            assert_eq!((answer.completion_tokens, answer.token_ids[3]), (4, END));
        }
    }

    #[test]
    fn a_special_token_can_be_a_stop_string() {
        let engine = engine(always(BEGIN));
        let token = engine.processor().tokenizer().id_to_token(BEGIN).unwrap();
        let mut request = request(1);
        request.options.stop = vec![token.clone()];
        let answer = engine.answer(request).unwrap();
        assert_eq!((answer.finish_detail, answer.stop_string), (FinishDetail::StopString, Some(token)));
    }

    #[test]
    fn a_worker_that_is_gone_is_an_error() {
        let (commands, _) = std::sync::mpsc::channel();
        let worker = Arc::new(crate::engine::Worker::gone(commands));
        let (generation, events) = crate::Generation::new(worker);
        drop(events);
        assert_eq!(generation.wait().unwrap_err().to_string(), "the engine has stopped");
    }

    const VOCAB_SIZE: usize = 427;
    /// The end token of the fixture, and another special token.
    const END: u32 = 422;
    const BEGIN: u32 = 421;
}
