//! What a model thinks before it answers, apart from the answer: the text between `<think>` and `</think>`.
//!
//! Some templates open the thought in the prompt (R1), others leave that to the model (Qwen3). White space around a
//! thought is nobody's. Nothing is given out that may turn out to be part of a tag.

use ocelli_processors::{Processor, Prompt};

use crate::generate::overlap;
use crate::request::{Event, Input};

/// Takes the text of an answer apart while it comes.
#[derive(Clone, Debug)]
pub(crate) struct Reasoning {
    place: Place,
    /// Text that is not given out yet.
    held: String,
    /// Tokens whose text is not given out yet.
    waiting: Vec<u32>,
    thought: String,
    text: String,
}

/// Where in the answer the next character stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Where a thought may begin.
    Start,
    Thought,
    /// Behind the thought, before the answer.
    Between,
    Text,
}

impl Reasoning {
    /// For the answer to a prompt. Text that is continued as it is stays as it comes.
    pub(crate) fn new(input: &Input, processor: &Processor, prompt: &Prompt) -> Self {
        let place = match input {
            Input::Chat { .. } if prompt.text.trim_end().ends_with(OPEN) => Place::Thought,
            Input::Chat { .. } if processor.thinks() => Place::Start,
            _ => Place::Text,
        };
        Self::at(place)
    }

    fn at(place: Place) -> Self {
        Self { place, held: String::new(), waiting: Vec::new(), thought: String::new(), text: String::new() }
    }

    /// Takes the next piece; gives what has become certain.
    pub(crate) fn push(&mut self, piece: &str, token_ids: Vec<u32>) -> Vec<Event> {
        self.held += piece;
        self.waiting.extend(token_ids);
        let mut events = Vec::new();
        while self.advance(&mut events) {}
        events
    }

    /// The rest, at the end of the answer.
    pub(crate) fn finish(&mut self) -> Vec<Event> {
        let rest = std::mem::take(&mut self.held);
        let mut events = Vec::new();
        match self.place {
            Place::Thought => self.think(rest.trim_end(), &mut events),
            Place::Start | Place::Text => self.say(rest, &mut events),
            Place::Between => {}
        }
        self.give_out_tokens(&mut events);
        events
    }

    /// The thought, if there was one, and the answer.
    pub(crate) fn into_parts(self) -> (Option<String>, String) {
        ((!self.thought.is_empty()).then_some(self.thought), self.text)
    }

    /// Looks at what is held; whether to look again.
    fn advance(&mut self, events: &mut Vec<Event>) -> bool {
        match self.place {
            Place::Start => {
                let begun = self.held.trim_start();
                if let Some(rest) = begun.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.place = Place::Thought;
                    return true;
                }
                let may_follow = OPEN.starts_with(begun);
                if !may_follow {
                    self.place = Place::Text;
                }
                !may_follow
            }
            Place::Thought => self.advance_thought(events),
            Place::Between => {
                self.held = self.held.trim_start().to_owned();
                let begins = !self.held.is_empty();
                if begins {
                    self.place = Place::Text;
                }
                begins
            }
            Place::Text => {
                let text = std::mem::take(&mut self.held);
                self.say(text, events);
                false
            }
        }
    }

    fn advance_thought(&mut self, events: &mut Vec<Event>) -> bool {
        if self.thought.is_empty() {
            self.held = self.held.trim_start().to_owned();
        }
        if let Some((thought, rest)) = self.held.split_once(CLOSE) {
            let (thought, rest) = (thought.trim_end().to_owned(), rest.to_owned());
            self.held = rest;
            self.think(&thought, events);
            self.place = Place::Between;
            return true;
        }
        let certain = &self.held[..self.held.len() - overlap(&self.held, CLOSE)];
        let rest = self.held.split_off(certain.trim_end().len());
        let thought = std::mem::replace(&mut self.held, rest);
        self.think(&thought, events);
        false
    }

    fn think(&mut self, piece: &str, events: &mut Vec<Event>) {
        if !piece.is_empty() {
            self.thought += piece;
            events.push(Event::Reasoning { piece: piece.to_owned(), token_ids: std::mem::take(&mut self.waiting) });
        }
    }

    fn say(&mut self, piece: String, events: &mut Vec<Event>) {
        if !piece.is_empty() {
            self.text += &piece;
            events.push(Event::Text { piece, token_ids: std::mem::take(&mut self.waiting) });
        }
    }

    /// Tokens that have no text, or none that anybody sees.
    fn give_out_tokens(&mut self, events: &mut Vec<Event>) {
        if !self.waiting.is_empty() {
            events.push(Event::Text { piece: String::new(), token_ids: std::mem::take(&mut self.waiting) });
        }
    }
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Thought and text of an answer that comes in pieces, and the same put together from the events.
    fn run(place: Place, pieces: &[&str]) -> (Option<String>, String) {
        let mut reasoning = Reasoning::at(place);
        let (mut events, mut ids) = (Vec::new(), 0..);
        for piece in pieces {
            events.extend(reasoning.push(piece, ids.next().into_iter().collect()));
        }
        events.extend(reasoning.finish());
        let (mut thought, mut text, mut tokens) = (String::new(), String::new(), Vec::new());
        for event in events {
            match event {
                Event::Reasoning { piece, token_ids } => {
                    assert!(!piece.is_empty() && text.is_empty());
                    thought += &piece;
                    tokens.extend(token_ids);
                }
                Event::Text { piece, token_ids } => {
                    text += &piece;
                    tokens.extend(token_ids);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(tokens, (0..pieces.len() as u32).collect::<Vec<_>>(), "every token once, in order");
        let parts = reasoning.into_parts();
        assert_eq!((parts.0.clone().unwrap_or_default(), &parts.1), (thought, &text));
        parts
    }

    fn thought_and_text(thought: &str, text: &str) -> (Option<String>, String) {
        (Some(thought.to_owned()), text.to_owned())
    }

    #[test]
    fn a_thought_is_taken_out_of_the_answer() {
        assert_eq!(run(Place::Start, &["\n<think>\nhm", "m\n</think>\n\nyes "]), thought_and_text("hmm", "yes "));
        assert_eq!(run(Place::Thought, &["\nhm", "m</th", "ink>yes"]), thought_and_text("hmm", "yes"));
        assert_eq!(run(Place::Thought, &["a < b </ c"]), thought_and_text("a < b </ c", ""));
        assert_eq!(run(Place::Start, &["<think>", "\n\n", "</think>\n\n", "yes"]), (None, "yes".to_owned()));
    }

    #[test]
    fn an_answer_without_a_thought_stays_as_it_is() {
        for answer in [" yes", "<thin ice", "\n\n", "yes <think>no</think>", ""] {
            assert_eq!(run(Place::Start, &[answer]), (None, answer.to_owned()));
            assert_eq!(run(Place::Text, &[answer]), (None, answer.to_owned()));
        }
        assert_eq!(run(Place::Text, &["<think>a</think>"]), (None, "<think>a</think>".to_owned()));
    }

    #[test]
    fn a_thought_that_is_cut_off_is_no_answer() {
        assert_eq!(run(Place::Start, &["<think>", "because \n"]), thought_and_text("because", ""));
        assert_eq!(run(Place::Thought, &["so</thi"]), thought_and_text("so</thi", ""));
    }

    proptest! {
        #[test]
        fn how_it_is_cut_into_pieces_does_not_matter(
            answer in r"[ \n]{0,2}(<think>)?[a<\n /]{0,6}(</think>)?[ \n]{0,2}[ab<> ]{0,6}",
            cuts in proptest::collection::vec(0usize..30, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| at < answer.len()).chain([0, answer.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).filter(|p| !p.is_empty()).collect();
            for place in [Place::Start, Place::Thought, Place::Text] {
                prop_assert_eq!(run(place, &pieces), run(place, &[&answer]));
            }
        }
    }
}
