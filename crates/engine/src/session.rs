//! [`Session`]: a loaded model with its key/value cache, as an object. The backend's type ends here.
//!
//! Invariant: a session knows token ids, features and logits, nothing of text, sampling or requests.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use ocelli_backend::{Backend, Cancel, KvCache, SequenceId, Tensor};
use ocelli_models::{Alignment, Extent, ImageInput, Model, PixelValues};
use ocelli_processors::{LogMel, PreparedImage};

use crate::error::{Error, Result};
use crate::generate::argmax;
use crate::locate::Region;

/// A loaded model with its cache. Several sequences may be alive at once; none depends on the others.
pub trait Session: Send {
    /// V: logits per row.
    fn vocab_size(&self) -> usize;

    /// Longest sequence in tokens.
    fn context_length(&self) -> usize;

    /// Bytes of keys and values per token.
    fn kv_bytes_per_token(&self) -> usize;

    /// Bytes that activations took when they took most, so far.
    fn most_activation_bytes(&self) -> usize;

    /// How pictures come in.
    fn image_input(&self) -> ImageInput;

    /// The tokens of a sequence that begins with this prompt: the prompt's own, unless its model gives them to another
    /// part than the decoder.
    fn decoder_ids(&self, ids: &[u32]) -> Vec<u32>;

    /// Most rows of a prompt that are computed at once.
    fn prefill_chunk(&self) -> usize;

    /// Changes [`Session::prefill_chunk`]; the results stay the same. At least 1.
    fn set_prefill_chunk(&mut self, rows: usize);

    /// Runs the vision tower and projector over one picture.
    ///
    /// # Errors
    /// [`Error::NoVision`] for a text model; [`Error::Cancelled`].
    fn encode_image(&self, image: &PreparedImage, cancel: &Cancel) -> Result<ImageFeatures>;

    /// Runs the encoder over the spectrogram of a recording; the features are given to a prompt as those of pictures.
    ///
    /// # Errors
    /// [`Error::NoHearing`] for a model that takes no recordings; [`Error::Cancelled`].
    fn encode_audio(&self, mel: &LogMel, cancel: &Cancel) -> Result<ImageFeatures>;

    /// The values of image features, `[vision tokens, hidden]`.
    fn read_features(&self, features: &ImageFeatures) -> Vec<f32>;

    /// Starts an empty sequence.
    fn start(&mut self) -> SequenceId;

    /// A second sequence that shares everything so far.
    fn fork(&mut self, sequence: SequenceId) -> SequenceId;

    /// Ends a sequence and frees what only it held.
    fn end(&mut self, sequence: SequenceId);

    /// Tokens of a sequence.
    fn len(&self, sequence: SequenceId) -> usize;

    /// Whether no sequence holds anything.
    fn is_empty(&self) -> bool;

    /// Forgets all but the first `len` tokens of a sequence.
    fn truncate(&mut self, sequence: SequenceId, len: usize);

    /// Appends a part of a prompt to a sequence, in chunks; returns logits, `[rows, V]`. For a model that looks at its
    /// pictures by cross-attention ([`ImageInput::Context`]) the first part is the whole prompt with its pictures, and
    /// the sequence then holds [`Session::decoder_ids`]; further parts are continuations.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TokenOutOfRange`], [`Error::VisionTokenMismatch`], [`Error::NothingToLookAt`],
    /// [`Error::PromptTooLong`] before anything is computed; [`Error::Cancelled`] between two layers. The sequence is
    /// then to be ended.
    fn prefill(&mut self, sequence: SequenceId, prompt: Prefill<'_>) -> Result<Vec<f32>>;

    /// Appends one token to each of some sequences, all in one pass; returns logits `[sequences, V]`.
    ///
    /// # Panics
    /// If a token is beyond the vocabulary, or a sequence has ended or is longer than the context.
    fn decode(&mut self, next: &[(SequenceId, u32)]) -> Vec<f32>;

    /// Runs a whole text over a recording's features in a sequence of its own: where every token looks in the
    /// recording, and the logits of all rows.
    ///
    /// # Errors
    /// [`Error::NoHearing`]; those of [`Session::prefill`].
    fn align(&mut self, text: Align<'_>) -> Result<(Alignment, Vec<f32>)>;

    /// Where the model sees what a prompt asks for: appends the prompt to a sequence, and then every number that the
    /// model gives.
    ///
    /// # Errors
    /// [`Error::NoRegions`], [`Error::NotFinite`]; those of [`Session::prefill`].
    fn locate(&mut self, sequence: SequenceId, looked: Looked<'_>) -> Result<Vec<Region>>;

    /// Forgets every sequence and frees the cache, also after a panic half-way through a step.
    fn reset(&mut self);
}

/// What [`Session::prefill`] appends.
#[derive(Clone, Copy)]
pub struct Prefill<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Features of the pictures that the image tokens among `ids` stand for, in order.
    pub images: &'a [ImageFeatures],
    /// Which logits are wanted.
    pub rows: LogitRows,
    /// Looked at between two layers.
    pub cancel: &'a Cancel,
}

/// What [`Session::locate`] looks for.
#[derive(Clone, Copy)]
pub struct Looked<'a> {
    /// The question.
    pub prompt: Prefill<'a>,
    /// Whether things have sizes.
    pub boxes: bool,
    /// Most that are found.
    pub max_regions: usize,
    /// Tokens that say that there is no more.
    pub end_ids: &'a [u32],
}

/// What [`Session::align`] aligns.
#[derive(Clone, Copy)]
pub struct Align<'a> {
    /// Token ids, from the first of the decoder's.
    pub ids: &'a [u32],
    /// Features of the recording.
    pub audio: &'a ImageFeatures,
    /// Layers and heads that are asked.
    pub heads: &'a [[usize; 2]],
    /// Moments of the recording that count.
    pub columns: usize,
    /// Looked at between two layers.
    pub cancel: &'a Cancel,
}

/// Which rows of logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// Those of the last token: all that generation needs.
    Last,
    /// Those of every token, for comparisons.
    All,
}

/// Image features on the device; cloning shares them.
#[derive(Clone)]
pub struct ImageFeatures {
    tokens: usize,
    extent: Extent,
    tensor: Arc<dyn Any + Send + Sync>,
}

impl ImageFeatures {
    /// `tensor` is whatever the session that made it will understand.
    pub(crate) fn new(tokens: usize, extent: Extent, tensor: impl Any + Send + Sync) -> Self {
        Self { tokens, extent, tensor: Arc::new(tensor) }
    }

    /// Tokens of the prompt that they take.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// A model on one backend.
pub(crate) struct ModelSession<B: Backend> {
    backend: B,
    model: Box<dyn Model<B>>,
    model_type: String,
    cache: KvCache<B>,
    chunk: usize,
}

impl<B: Backend> ModelSession<B> {
    /// `chunk` is the most rows that are computed at once.
    pub(crate) fn new(backend: B, model: Box<dyn Model<B>>, model_type: &str, chunk: usize) -> Self {
        let cache = KvCache::new(&backend, model.kv_shape());
        Self { backend, model, model_type: model_type.to_owned(), cache, chunk: chunk.max(1) }
    }

    /// Everything that could go wrong, before anything is computed.
    fn check(&self, sequence: SequenceId, prompt: Prefill<'_>) -> Result<()> {
        let vocab_size = self.vocab_size();
        if prompt.ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        // What stands for a picture need not be a token of the vocabulary.
        let input = self.model.image_input();
        let is_unknown = |id: u32| id as usize >= vocab_size && !input.is_feature(id);
        if let Some(&id) = prompt.ids.iter().find(|&&id| is_unknown(id)) {
            return Err(Error::TokenOutOfRange { id, vocab_size });
        }
        let begins = self.cache.len(sequence) == 0;
        if self.model.image_input() == ImageInput::Context {
            if begins && prompt.images.is_empty() {
                return Err(Error::NothingToLookAt { model_type: self.model_type.clone() });
            }
        } else {
            let placeholders = self.image_rows(prompt.ids).len();
            let features = prompt.images.iter().map(ImageFeatures::tokens).sum();
            if placeholders != features {
                return Err(Error::VisionTokenMismatch { placeholders, features });
            }
        }
        let decoder_tokens = if begins { self.model.decoder_ids(prompt.ids).len() } else { 0 };
        let prompt_tokens = self.cache.len(sequence) + prompt.ids.len().max(decoder_tokens);
        if prompt_tokens > self.context_length() {
            return Err(Error::PromptTooLong { prompt_tokens, context_length: self.context_length() });
        }
        Ok(())
    }

    /// Where among `ids` image features belong.
    fn image_rows(&self, ids: &[u32]) -> Vec<usize> {
        let input = self.model.image_input();
        ids.iter().enumerate().filter(|&(_, &id)| input.is_feature(id)).map(|(row, _)| row).collect()
    }

    /// Embeddings of a chunk, image features in place; `range` says which features these are.
    fn embed(&self, ids: &[u32], rows: &[usize], features: Option<&Tensor<B>>, range: Range<usize>) -> Tensor<B> {
        let embedded = self.model.embed(ids);
        match features {
            Some(features) if !rows.is_empty() => {
                let features = features.gather_rows(&range.collect::<Vec<_>>());
                self.model.join(&embedded, rows, &features)
            }
            _ => embedded,
        }
    }

    /// Computes the tokens of a checked prompt, in chunks.
    /// Returns the logits that are wanted, and the last token's hidden state.
    fn append(&mut self, sequence: SequenceId, prompt: Prefill<'_>) -> Result<(Vec<f32>, Tensor<B>)> {
        let features = self.concatenated(prompt.images);
        let extents: Vec<Extent> = prompt.images.iter().map(|features| features.extent).collect();
        let places = self.model.places(prompt.ids, &extents, self.cache.next_place(sequence));
        let mut logits = Vec::new();
        let (mut done, mut used) = (0, 0);
        loop {
            let prefix = self.prefix(sequence, prompt.ids, done);
            let end = (done + self.chunk.max(prefix)).min(prompt.ids.len());
            let ids = &prompt.ids[done..end];
            let rows = self.image_rows(ids);
            let x = self.embed(ids, &rows, features.as_ref(), used..used + rows.len());
            used += rows.len();
            let step = match &places {
                Some(places) => self.cache.step_at(sequence, &places[done..end]),
                None => self.cache.step(&[(sequence, ids.len())]),
            };
            let step = step.with_prefix(prefix).cancelled_by(prompt.cancel);
            let hidden = self.model.forward(&x, &step, &mut self.cache);
            if step.is_cancelled() {
                return Err(Error::Cancelled);
            }
            done = end;
            if prompt.rows == LogitRows::All {
                logits.extend(self.model.logits(&hidden).to_vec());
            }
            if done == prompt.ids.len() {
                let last = hidden.gather_rows(&[ids.len() - 1]);
                if prompt.rows == LogitRows::Last {
                    logits = self.model.logits(&last).to_vec();
                }
                return Ok((logits, last));
            }
        }
    }

    /// Appends one embedding to a sequence; returns its hidden state.
    fn advance(&mut self, sequence: SequenceId, embedding: &Tensor<B>) -> Tensor<B> {
        let step = self.cache.step(&[(sequence, 1)]);
        self.model.forward(embedding, &step, &mut self.cache)
    }

    /// Reads one thing's numbers, from the hidden state that announced it; returns the next hidden state, too.
    fn region(&mut self, sequence: SequenceId, hidden: &Tensor<B>, boxes: bool) -> Option<(Region, Tensor<B>)> {
        let x = self.model.locator()?.read_place(hidden);
        let hidden = self.advance(sequence, &self.model.locator()?.embed_place(x));
        let y = self.model.locator()?.read_place(&hidden);
        let hidden = self.advance(sequence, &self.model.locator()?.embed_place(y));
        if !boxes {
            return Some((Region { x, y, size: None }, hidden));
        }
        let size = self.model.locator()?.read_size(&hidden);
        let hidden = self.advance(sequence, &self.model.locator()?.embed_size(size));
        Some((Region { x, y, size: Some(size) }, hidden))
    }

    /// Tokens that see each other at the beginning of the chunk that begins with token `start` of a prompt.
    fn prefix(&self, sequence: SequenceId, ids: &[u32], start: usize) -> usize {
        let is_first = start == 0 && self.cache.len(sequence) == 0;
        if is_first { self.model.prefix(ids) } else { 0 }
    }

    fn encode(&self, pixel_values: PixelValues<'_>, frame_seconds: f32, cancel: &Cancel) -> Result<ImageFeatures> {
        let _step = self.backend.begin_step();
        let features = self.model.encode_image(pixel_values, cancel);
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(ImageFeatures::new(features.rows(), Extent { grid: pixel_values.grid, frame_seconds }, features))
    }

    fn tensor<'a>(&self, features: &'a ImageFeatures) -> &'a Tensor<B> {
        features.tensor.downcast_ref().expect("image features stay with the backend that made them")
    }

    /// All features of a prompt as one tensor.
    fn concatenated(&self, images: &[ImageFeatures]) -> Option<Tensor<B>> {
        let tensors: Vec<&Tensor<B>> = images.iter().map(|features| self.tensor(features)).collect();
        if tensors.is_empty() { None } else { Some(Tensor::concat_rows(&tensors)) }
    }
}

impl<B: Backend> Session for ModelSession<B> {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.model.max_positions()
    }

    fn kv_bytes_per_token(&self) -> usize {
        self.model.kv_shape().bytes_per_token(&self.backend)
    }

    fn most_activation_bytes(&self) -> usize {
        self.backend.most_activation_bytes()
    }

    fn image_input(&self) -> ImageInput {
        self.model.image_input()
    }

    fn decoder_ids(&self, ids: &[u32]) -> Vec<u32> {
        self.model.decoder_ids(ids)
    }

    fn prefill_chunk(&self) -> usize {
        self.chunk
    }

    fn set_prefill_chunk(&mut self, rows: usize) {
        self.chunk = rows.max(1);
    }

    fn encode_image(&self, image: &PreparedImage, cancel: &Cancel) -> Result<ImageFeatures> {
        if self.model.image_input() == ImageInput::None || self.model.hears() {
            return Err(Error::NoVision { model_type: self.model_type.clone() });
        }
        let &PreparedImage { ref pixel_values, shape, grid, ref text_ids, frame_seconds, .. } = image;
        self.encode(PixelValues { values: pixel_values, shape, grid, text_ids }, frame_seconds, cancel)
    }

    fn encode_audio(&self, mel: &LogMel, cancel: &Cancel) -> Result<ImageFeatures> {
        if !self.model.hears() {
            return Err(Error::NoHearing { model_type: self.model_type.clone() });
        }
        let &LogMel { ref values, mels, frames } = mel;
        let pixel_values = PixelValues { values, shape: [1, 1, mels, frames], grid: [1, 1, frames], text_ids: &[] };
        self.encode(pixel_values, 0.0, cancel)
    }

    fn read_features(&self, features: &ImageFeatures) -> Vec<f32> {
        self.tensor(features).to_vec()
    }

    fn start(&mut self) -> SequenceId {
        self.cache.start()
    }

    fn fork(&mut self, sequence: SequenceId) -> SequenceId {
        self.cache.fork(sequence)
    }

    fn end(&mut self, sequence: SequenceId) {
        self.cache.end(sequence);
    }

    fn len(&self, sequence: SequenceId) -> usize {
        self.cache.len(sequence)
    }

    fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    fn truncate(&mut self, sequence: SequenceId, len: usize) {
        self.cache.truncate(sequence, len);
    }

    fn prefill(&mut self, sequence: SequenceId, prompt: Prefill<'_>) -> Result<Vec<f32>> {
        self.check(sequence, prompt)?;
        let _step = self.backend.begin_step();
        if self.model.image_input() != ImageInput::Context || self.cache.len(sequence) > 0 {
            return Ok(self.append(sequence, prompt)?.0);
        }
        let features: Vec<&Tensor<B>> = prompt.images.iter().map(|features| self.tensor(features)).collect();
        self.cache.set_context(sequence, self.model.context(prompt.ids, &features));
        let ids = self.model.decoder_ids(prompt.ids);
        Ok(self.append(sequence, Prefill { ids: &ids, images: &[], ..prompt })?.0)
    }

    fn locate(&mut self, sequence: SequenceId, looked: Looked<'_>) -> Result<Vec<Region>> {
        let Looked { prompt, boxes, max_regions, end_ids } = looked;
        if self.model.locator().is_none() {
            return Err(Error::NoRegions { model_type: self.model_type.clone() });
        }
        self.check(sequence, prompt)?;
        let _step = self.backend.begin_step();
        let (mut logits, mut hidden) = self.append(sequence, Prefill { rows: LogitRows::Last, ..prompt })?;
        let mut regions = Vec::new();
        while regions.len() < max_regions && self.cache.len(sequence) + 3 <= self.context_length() {
            let tokens = self.cache.len(sequence);
            let token = argmax(&logits).ok_or(Error::NotFinite { tokens })?;
            if end_ids.contains(&(token as u32)) {
                break;
            }
            if prompt.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let Some((region, next)) = self.region(sequence, &hidden, boxes) else { break };
            regions.push(region);
            logits = self.model.logits(&next).to_vec();
            hidden = next;
        }
        Ok(regions)
    }

    fn decode(&mut self, next: &[(SequenceId, u32)]) -> Vec<f32> {
        let ids: Vec<u32> = next.iter().map(|&(_, id)| id).collect();
        let growth: Vec<(SequenceId, usize)> = next.iter().map(|&(sequence, _)| (sequence, 1)).collect();
        let _step = self.backend.begin_step();
        let x = self.model.embed(&ids);
        let step = self.cache.step(&growth);
        let hidden = self.model.forward(&x, &step, &mut self.cache);
        self.model.logits(&hidden).to_vec()
    }

    fn align(&mut self, text: Align<'_>) -> Result<(Alignment, Vec<f32>)> {
        if !self.model.hears() {
            return Err(Error::NoHearing { model_type: self.model_type.clone() });
        }
        let Align { ids, audio, heads, columns, cancel } = text;
        let sequence = self.cache.start();
        let images = std::slice::from_ref(audio);
        let checked = self.check(sequence, Prefill { ids, images, rows: LogitRows::All, cancel });
        if let Err(error) = checked {
            self.cache.end(sequence);
            return Err(error);
        }
        let _step = self.backend.begin_step();
        let audio = self.tensor(audio).clone();
        self.cache.set_context(sequence, self.model.context(ids, &[&audio]));
        let ids = self.model.decoder_ids(ids);
        let step = self.cache.step(&[(sequence, ids.len())]);
        let x = self.model.embed(&ids);
        let (hidden, alignment) = self.model.align(&x, &step, &mut self.cache, (&audio, columns), heads);
        let logits = self.model.logits(&hidden).to_vec();
        self.cache.end(sequence);
        if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok((alignment, logits)) }
    }

    fn reset(&mut self) {
        self.cache = KvCache::new(&self.backend, self.model.kv_shape());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ocelli_formats::ModelFiles;

    use super::*;
    use crate::{EngineOptions, LoadedModel};

    fn session(family: &str) -> Box<dyn Session> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family);
        LoadedModel::load(&ModelFiles::open(folder).unwrap(), &EngineOptions::new()).unwrap().session
    }

    #[test]
    fn a_cancelled_prefill_is_an_error_and_leaves_a_sequence_to_end() {
        let mut session = session("llama3");
        let sequence = session.start();
        let cancel = Cancel::new();
        cancel.cancel();
        let prefill = Prefill { ids: &[5, 6, 7], images: &[], rows: LogitRows::Last, cancel: &cancel };
        assert!(matches!(session.prefill(sequence, prefill), Err(Error::Cancelled)));
        session.end(sequence);
        assert!(session.is_empty());
    }

    #[test]
    fn a_text_model_refuses_pictures() {
        let image = PreparedImage {
            pixel_values: vec![0.0; 3 * 4],
            shape: [1, 3, 2, 2],
            grid: [1, 0, 0],
            frames: 1,
            frame_seconds: 0.0,
            text_ids: Vec::new(),
            image_size: (2, 2),
            resized_to: (2, 2),
            vision_tokens: 1,
            content_hash: 0,
        };
        let error = session("llama3").encode_image(&image, &Cancel::new()).err().unwrap();
        assert_eq!(error.to_string(), "llama models do not take pictures");
        assert!(error.hint().unwrap().contains("vision-language"));
    }

    #[test]
    fn models_take_what_they_have_senses_for() {
        let mel = LogMel { values: vec![0.0; 80 * 20], mels: 80, frames: 20 };
        let error = session("llama3").encode_audio(&mel, &Cancel::new()).err().unwrap();
        assert_eq!(error.to_string(), "llama models do not take recordings");
        let mut whisper = session("whisper");
        assert_eq!(whisper.encode_audio(&mel, &Cancel::new()).unwrap().tokens(), 10);
        let sequence = whisper.start();
        let prefill = Prefill { ids: &[5], images: &[], rows: LogitRows::Last, cancel: &Cancel::new() };
        let error = whisper.prefill(sequence, prefill).unwrap_err();
        assert_eq!(error.to_string(), "whisper models answer only about a picture or a recording");
    }

    #[test]
    fn only_the_wanted_rows_have_logits() {
        let mut session = session("qwen2");
        let cancel = Cancel::new();
        let mut logits = Vec::new();
        for rows in [LogitRows::All, LogitRows::Last] {
            let sequence = session.start();
            let prefill = Prefill { ids: &[5, 6, 7], images: &[], rows, cancel: &cancel };
            logits.push(session.prefill(sequence, prefill).unwrap());
            session.reset();
        }
        let vocab_size = session.vocab_size();
        assert_eq!([logits[0].len(), logits[1].len()], [3 * vocab_size, vocab_size]);
        assert_eq!(logits[0][2 * vocab_size..], logits[1]);
    }
}
