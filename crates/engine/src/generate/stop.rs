//! Stop strings in a stream of text: nothing is given out that may turn out to be part of one.

/// Watches a stream for the first stop string to be completed.
#[derive(Clone, Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text that is not given out yet: it may be the beginning of a stop string.
    held: String,
}

/// What may be given out after some text came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// This much; the stream goes on.
    No(String),
    /// This much and no more: a stop string follows it.
    Yes {
        /// Text before the stop string.
        text: String,
        /// The stop string.
        stop: String,
    },
}

impl StopMatcher {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new() }
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, piece: &str) -> Stopped {
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_stop() {
            let stop = stop.to_owned();
            self.held.truncate(start);
            return Stopped::Yes { text: std::mem::take(&mut self.held), stop };
        }
        let hold = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        Stopped::No(std::mem::replace(&mut self.held, rest))
    }

    /// Whether `text` holds a stop string; takes nothing in.
    pub(crate) fn completes(&self, text: &str) -> bool {
        self.stops.iter().any(|stop| text.contains(stop.as_str()))
    }

    /// The text still held back, at the end of the stream.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that is completed first; of several, the longest: the result must not depend on how the
    /// stream was cut into pieces.
    fn first_stop(&self) -> Option<(usize, &str)> {
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.as_str())));
        found.min_by_key(|&(start, stop)| (start + stop.len(), start))
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`, but not all of it.
pub(crate) fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    let fits = |&len: &usize| stop.is_char_boundary(len) && text.as_bytes().ends_with(&stop.as_bytes()[..len]);
    (1..=longest).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Stopped::No(text) => out += &text,
                Stopped::Yes { text, stop } => return (out + &text, Some(stop)),
            }
        }
        (out + &matcher.finish(), None)
    }

    #[test]
    fn a_stop_string_may_span_pieces() {
        assert_eq!(run(&["END"], &["it is E", "N", "D of it"]), ("it is ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["EN", "EN", "D"]), ("EN".into(), Some("END".into())));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n", "\nc"]), ("a\nb".into(), Some("\n\n".into())));
        assert_eq!(run(&["END"], &["the EN"]), ("the EN".into(), None));
        assert_eq!(run(&["äö"], &["xä", "ö"]), ("x".into(), Some("äö".into())));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[ab]{0,40}",
            stops in prop::collection::vec("[ab]{1,5}", 1..3),
            cuts in prop::collection::vec(1usize..6, 0..40),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = run(&stops, &[&text]);
            let mut rest = text.as_str();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            pieces.push(rest);
            prop_assert_eq!(&whole, &run(&stops, &pieces));
            prop_assert!(!stops.iter().any(|stop| whole.0.contains(stop)));
            prop_assert!(text.starts_with(&whole.0));
        }
    }
}
