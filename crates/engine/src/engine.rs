//! [`Engine`]: one model, one worker thread that owns it, and a queue of requests.
//!
//! The worker takes a closed set of commands and serves one request after the other. A panic inside a request becomes
//! that request's error; the cache is then made anew and the next request is served.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use ocelli_backend::Cancel;
use ocelli_formats::ModelFiles;
use ocelli_processors::Processor;

use crate::error::{Error, Result};
use crate::info::ModelInfo;
use crate::loaded::{LoadProgress, LoadedModel};
use crate::locate::{LocateJob, LocateRequest, Located};
use crate::options::EngineOptions;
use crate::request::{Generation, Request};
use crate::serve::{Command, Job, Server};
use crate::speech::{TranscribeJob, TranscribeOptions, Transcription};

/// A loaded model that answers requests; clones share it. The model goes when the last clone and the last
/// [`Generation`] have gone.
#[derive(Clone)]
pub struct Engine {
    worker: Arc<Worker>,
    info: Arc<ModelInfo>,
    processor: Arc<Processor>,
    load_ms: f64,
}

impl Engine {
    /// Loads a model and starts its worker.
    ///
    /// # Errors
    /// Whatever is missing, malformed, unsupported or too large, by file, key or tensor name.
    pub fn load(files: &ModelFiles, options: &EngineOptions) -> Result<Self> {
        Self::load_with_progress(files, options, &|_| {})
    }

    /// [`Engine::load`]; `progress` hears of every weight.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_with_progress(
        files: &ModelFiles,
        options: &EngineOptions,
        progress: &dyn Fn(LoadProgress),
    ) -> Result<Self> {
        Ok(Self::start(LoadedModel::load_with_progress(files, options, progress)?, options))
    }

    /// Starts the worker of a model that is already loaded.
    pub fn start(model: LoadedModel, options: &EngineOptions) -> Self {
        let (info, processor, load_ms) = (model.info.clone(), Arc::new(model.processor), model.load_ms);
        let (commands, queue) = channel();
        let mut server = Server::new(
            model.session,
            Arc::clone(&processor),
            &model.info,
            (model.end_ids, model.speech),
            load_ms,
            options.memory_limit,
        );
        let thread = std::thread::Builder::new().name("ocelli-engine".to_owned()).spawn(move || server.run(&queue));
        // Without a thread every request is answered with "the engine has stopped".
        let worker = Arc::new(Worker { commands, thread: thread.ok() });
        Self { worker, info: Arc::new(info), processor, load_ms }
    }

    /// Puts a request at the end of the queue. Whatever goes wrong with it comes out of the [`Generation`].
    pub fn submit(&self, request: Request) -> Generation {
        let (generation, events) = Generation::new(Arc::clone(&self.worker));
        let job = Job { request, cancel: generation.cancel_handle(), events };
        // A worker that is gone drops the job and with it the sender: the generation then ends with `Stopped`.
        let _ = self.worker.commands.send(Command::Generate(Box::new(job)));
        generation
    }

    /// Submits a request and waits for its answer.
    ///
    /// # Errors
    /// Whatever went wrong with it.
    pub fn answer(&self, request: Request) -> Result<crate::Answer> {
        self.submit(request).wait()
    }

    /// Puts a recording at the end of the queue: samples of one channel at the rate of the model's
    /// [`ocelli_processors::MelExtractor`]. Whatever goes wrong with it comes out of the [`Transcription`].
    pub fn transcribe(&self, samples: Vec<f32>, options: TranscribeOptions) -> Transcription {
        let (transcription, events) = Transcription::new(Arc::clone(&self.worker));
        let job = TranscribeJob { samples, options, cancel: transcription.cancel_handle(), events };
        // As in `submit`.
        let _ = self.worker.commands.send(Command::Transcribe(Box::new(job)));
        transcription
    }

    /// Finds something in a picture: waits for its turn and for the result.
    ///
    /// # Errors
    /// [`Error::NoRegions`], [`Error::Cancelled`], and whatever went wrong with it.
    pub fn locate(&self, request: LocateRequest, cancel: &Cancel) -> Result<Located> {
        let (result, received) = channel();
        let job = LocateJob { request, cancel: cancel.clone(), result };
        // As in `submit`.
        let _ = self.worker.commands.send(Command::Locate(Box::new(job)));
        received.recv().unwrap_or(Err(Error::Stopped))
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model's tokenizer, template and image processor: for counting tokens and decoding pictures.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Milliseconds it took to load the model.
    pub fn load_ms(&self) -> f64 {
        self.load_ms
    }
}

/// The worker thread's handle: it ends when this goes.
#[derive(Debug)]
pub(crate) struct Worker {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

#[cfg(test)]
impl Worker {
    /// One whose thread has ended.
    pub(crate) fn gone(commands: Sender<Command>) -> Self {
        Self { commands, thread: None }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Turns a panic's payload into an error.
pub(crate) fn panicked(payload: &(dyn std::any::Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    Error::Panicked { message: text.unwrap_or_else(|| "it gave no reason".to_owned()) }
}
