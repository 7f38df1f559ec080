//! Does a model keep the promises that need no reference? What is computed in one piece, in pieces, in company or from
//! a shared past must be the same, and another picture must not be.
//!
//! These facts hold for every family and every set of weights, so they are checked for each by one runner.

use std::fmt;

use ocelli_backend::{Cancel, SequenceId};
use ocelli_models::ImageInput;
use ocelli_processors::{Detail, Image, LogMel, PreparedImage, Video, Visuals};
use serde::Serialize;

use crate::compare::Difference;
use crate::error::Result;
use crate::loaded::LoadedModel;
use crate::session::{ImageFeatures, LogitRows, Prefill, Session};

/// Largest relative difference of what must be equal. Not zero: a product of one row and one of many rows may add
/// their terms in another order.
pub const TOLERANCE: f64 = 1e-4;

/// What was found out about one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetamorphicReport {
    /// The model.
    pub label: String,
    /// One row per promise.
    pub facts: Vec<Fact>,
}

/// One promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    /// What should hold.
    pub name: &'static str,
    /// Largest difference of the logits over the largest logit.
    pub worst_relative: f64,
    /// Whether it holds.
    pub pass: bool,
}

/// Checks every promise with one prompt and, if it has pictures (looked at as closely as `detail` says), videos or a
/// recording (samples at the model's rate), others.
///
/// # Errors
/// Whatever keeps the model from running the prompt; broken promises are facts of the report instead.
pub fn check(
    model: &mut LoadedModel,
    text: &str,
    visuals: Visuals<'_>,
    detail: Detail,
    recording: Option<&[f32]>,
) -> Result<MetamorphicReport> {
    let Visuals { images, videos } = visuals;
    let prompt = model.processor.raw_prompt_with(text, visuals, detail)?;
    let mel = |samples: &[f32]| model.processor.mel_extractor().map(|extractor| extractor.one_window(samples));
    let heard = recording.and_then(mel);
    let shown = Shown { images: &prompt.images, mel: heard.as_ref() };
    let chunk = model.session.prefill_chunk();
    let mut run = Run::new(model.session.as_mut(), &prompt.ids, shown)?;
    let mut facts = vec![
        run.token_by_token(chunk)?,
        run.batch_equals_alone()?,
        run.continued_prefix_equals_fresh()?,
        run.fork_leaves_its_origin_alone()?,
        run.truncated_equals_fresh()?,
        run.nothing_is_left_behind(),
    ];
    if !images.is_empty() || !videos.is_empty() || heard.is_some() {
        let negatives: Vec<Image> = images.iter().map(negative).collect();
        let films: Vec<Video> =
            videos.iter().map(|video| with_frames(video, video.frames.iter().map(negative))).collect();
        let negatives = Visuals { images: &negatives, videos: &films };
        let negatives = model.processor.raw_prompt_with(text, negatives, detail)?.images;
        let backwards: Vec<f32> = recording.unwrap_or_default().iter().rev().copied().collect();
        let backwards = heard.as_ref().and(mel(&backwards));
        facts.extend(run.pictures_decide(Shown { images: &negatives, mel: backwards.as_ref() }, shown)?);
    }
    if images.len() > 1 {
        let reversed: Vec<Image> = images.iter().rev().cloned().collect();
        let reversed = model.processor.raw_prompt_with(text, Visuals { images: &reversed, videos }, detail)?;
        let name = "the order of pictures matters";
        facts.push(run.order_decides(name, &reversed.ids, Shown { images: &reversed.images, mel: None })?);
    }
    if !videos.is_empty() {
        let backwards = |video: &Video| with_frames(video, video.frames.iter().rev().cloned());
        let backwards: Vec<Video> = videos.iter().map(backwards).collect();
        let backwards = model.processor.raw_prompt_with(text, Visuals { images, videos: &backwards }, detail)?;
        let name = "the order of frames matters";
        facts.push(run.order_decides(name, &backwards.ids, Shown { images: &backwards.images, mel: None })?);
    }
    Ok(MetamorphicReport { label: model.info.label.clone(), facts })
}

impl MetamorphicReport {
    /// Whether every promise is kept.
    pub fn passed(&self) -> bool {
        self.facts.iter().all(|fact| fact.pass)
    }
}

impl fmt::Display for MetamorphicReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.label)?;
        for Fact { name, worst_relative, pass } in &self.facts {
            let verdict = if *pass { "ok  " } else { "FAIL" };
            write!(formatter, "\n{verdict} {name:<48} difference {worst_relative:.2e}")?;
        }
        Ok(())
    }
}

/// What a prompt is about.
#[derive(Clone, Copy)]
struct Shown<'a> {
    images: &'a [PreparedImage],
    mel: Option<&'a LogMel>,
}

/// One prompt on one session.
struct Run<'a> {
    session: &'a mut dyn Session,
    prompt: &'a [u32],
    /// The tokens of a whole sequence. Where a prompt is more than tokens of the decoder, it begins the sequence, and its
    /// ids once more, as any others would do, continue it.
    ids: Vec<u32>,
    /// How many of them come at once, with the pictures.
    begin: usize,
    features: Vec<ImageFeatures>,
    /// Logits of every row, computed in one piece.
    whole: Vec<f32>,
    cancel: Cancel,
}

impl<'a> Run<'a> {
    fn new(session: &'a mut dyn Session, prompt: &'a [u32], shown: Shown<'_>) -> Result<Self> {
        let features = encode(session, shown)?;
        let mut ids = session.decoder_ids(prompt);
        let begin = ids.len();
        if session.image_input() == ImageInput::Context {
            ids.extend(prompt);
        }
        let mut run = Self { session, prompt, ids, begin, features, whole: Vec::new(), cancel: Cancel::new() };
        run.whole = run.alone()?;
        Ok(run)
    }

    fn token_by_token(&mut self, chunk: usize) -> Result<Fact> {
        self.session.set_prefill_chunk(1);
        let single = self.alone();
        self.session.set_prefill_chunk(chunk);
        Ok(same("prefill equals token by token", &single?, &self.whole))
    }

    /// Three sequences of different lengths decode together; each is compared with itself alone.
    fn batch_equals_alone(&mut self) -> Result<Fact> {
        let next = self.ids[self.ids.len() - 1];
        let split = self.split();
        let tails = [self.ids.len(), self.ids.len() - 1, split];
        let mut sequences = Vec::new();
        for &len in &tails {
            sequences.push(self.prefilled(len)?);
        }
        let together = self.session.decode(&sequences.iter().map(|&sequence| (sequence, next)).collect::<Vec<_>>());
        let mut alone = Vec::new();
        for (sequence, len) in sequences.into_iter().zip(tails) {
            self.session.end(sequence);
            let sequence = self.prefilled(len)?;
            alone.extend(self.session.decode(&[(sequence, next)]));
            self.session.end(sequence);
        }
        Ok(same("a batch equals each sequence alone", &together, &alone))
    }

    fn continued_prefix_equals_fresh(&mut self) -> Result<Fact> {
        let split = self.split();
        let prefix = self.prefilled(split)?;
        let continued = self.session.fork(prefix);
        let rest = self.extend(continued, self.ids.len());
        self.session.end(continued);
        self.session.end(prefix);
        let fresh = &self.whole[split * self.session.vocab_size()..];
        Ok(same("a continued prefix equals a fresh prompt", &rest?, fresh))
    }

    /// Two sequences grow from one past, one token each in turn, and never see each other's tokens.
    fn fork_leaves_its_origin_alone(&mut self) -> Result<Fact> {
        let split = self.split();
        let origin = self.prefilled(split)?;
        let fork = self.session.fork(origin);
        let mut from_origin = Vec::new();
        for &id in &self.ids[split..] {
            from_origin.extend(self.session.decode(&[(origin, id)]));
            self.session.decode(&[(fork, self.ids[0])]);
        }
        self.session.end(fork);
        self.session.end(origin);
        let fresh = &self.whole[split * self.session.vocab_size()..];
        Ok(same("a fork leaves its origin alone", &from_origin, fresh))
    }

    fn truncated_equals_fresh(&mut self) -> Result<Fact> {
        let split = self.split();
        let sequence = self.prefilled(self.ids.len())?;
        self.session.truncate(sequence, split);
        let rest = self.extend(sequence, self.ids.len());
        self.session.end(sequence);
        let fresh = &self.whole[split * self.session.vocab_size()..];
        Ok(same("a truncated sequence equals a fresh prompt", &rest?, fresh))
    }

    fn nothing_is_left_behind(&self) -> Fact {
        Fact { name: "ended sequences leave nothing behind", worst_relative: 0.0, pass: self.session.is_empty() }
    }

    /// Other pictures (or recordings) give other logits, and the first ones afterwards the first logits again, to the last bit.
    fn pictures_decide(&mut self, others: Shown<'_>, originals: Shown<'_>) -> Result<[Fact; 2]> {
        self.features = encode(self.session, others)?;
        let other = self.alone()?;
        let difference = Difference::between(&other, &self.whole).relative;
        let name = "another picture gives other logits";
        let differs = Fact { name, worst_relative: difference, pass: difference > TOLERANCE };
        self.features = encode(self.session, originals)?;
        let again = self.alone()?;
        let difference = Difference::between(&again, &self.whole).relative;
        let name = "the first picture gives the first logits again";
        Ok([differs, Fact { name, worst_relative: difference, pass: again == self.whole }])
    }

    /// The same pictures (or frames) in another order give other logits at the end of the prompt.
    fn order_decides(&mut self, name: &'static str, ids: &[u32], reversed: Shown<'_>) -> Result<Fact> {
        let features = encode(self.session, reversed)?;
        let features = std::mem::replace(&mut self.features, features);
        let ids = std::mem::replace(&mut self.ids, ids.to_vec());
        let other = self.alone();
        (self.features, self.ids) = (features, ids);
        let last = |logits: &[f32]| logits[logits.len() - self.session.vocab_size()..].to_vec();
        let difference = Difference::between(&last(&other?), &last(&self.whole)).relative;
        Ok(Fact { name, worst_relative: difference, pass: difference > TOLERANCE })
    }

    /// Where a sequence may be cut: behind its last picture, and not at its ends.
    fn split(&self) -> usize {
        let input = self.session.image_input();
        let last_image = self.ids.iter().rposition(|&id| input.is_feature(id)).map_or(0, |at| at + 1);
        let looked_at = if input == ImageInput::Context { self.begin } else { last_image };
        looked_at.max(self.ids.len() / 2).min(self.ids.len() - 1)
    }

    /// Logits of every row of a sequence of its own.
    fn alone(&mut self) -> Result<Vec<f32>> {
        let sequence = self.session.start();
        let logits = self.extend(sequence, self.ids.len());
        self.session.end(sequence);
        logits
    }

    /// A sequence that holds the first `len` tokens.
    fn prefilled(&mut self, len: usize) -> Result<SequenceId> {
        let sequence = self.session.start();
        self.extend(sequence, len)?;
        Ok(sequence)
    }

    /// Makes a sequence `len` tokens long; returns the logits of the new ones.
    fn extend(&mut self, sequence: SequenceId, len: usize) -> Result<Vec<f32>> {
        let Self { session, prompt, ids, begin, features, cancel, .. } = self;
        let (held, looks) = (session.len(sequence), session.image_input() == ImageInput::Context);
        let mut append = |ids: &[u32], images: &[ImageFeatures]| {
            session.prefill(sequence, Prefill { ids, images, rows: LogitRows::All, cancel })
        };
        if held > 0 {
            return append(&ids[held..len], &[]);
        }
        if !looks {
            return append(&ids[..len], features);
        }
        let mut logits = append(prompt, features)?;
        if len > *begin {
            logits.extend(append(&ids[*begin..len], &[])?);
        }
        Ok(logits)
    }
}

fn encode(session: &dyn Session, shown: Shown<'_>) -> Result<Vec<ImageFeatures>> {
    let cancel = Cancel::new();
    let images = shown.images.iter().map(|image| session.encode_image(image, &cancel));
    images.chain(shown.mel.map(|mel| session.encode_audio(mel, &cancel))).collect()
}

fn same(name: &'static str, ours: &[f32], expected: &[f32]) -> Fact {
    let worst_relative = Difference::between(ours, expected).relative;
    Fact { name, worst_relative, pass: ours.len() == expected.len() && worst_relative <= TOLERANCE }
}

fn with_frames(video: &Video, frames: impl Iterator<Item = Image>) -> Video {
    Video { frames: frames.collect(), ..video.clone() }
}

fn negative(image: &Image) -> Image {
    Image::new(image.width, image.height, image.pixels.iter().map(|value| 255 - value).collect())
}
