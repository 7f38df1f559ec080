//! [`Mask`]: which tokens a token sees.

use std::ops::Range;

/// Which tokens of its sequence a token sees, itself always included; whatever the mask, they are a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask<'a> {
    /// All tokens.
    All,
    /// The tokens up to itself.
    Causal,
    /// The last so many tokens up to itself.
    Window(usize),
    /// As [`Self::Causal`], but the first so many tokens see each other.
    Prefix(usize),
    /// The tokens of its own segment. Segments lie one after another; each begins at one of these ascending places, the
    /// first of which is 0.
    Segments(&'a [usize]),
}

impl Mask<'_> {
    /// Tokens that the token at a place sees, of so many.
    #[inline]
    pub(super) fn visible(&self, place: usize, tokens: usize) -> Range<usize> {
        match *self {
            Self::All => 0..tokens,
            Self::Causal => 0..place + 1,
            Self::Window(window) => (place + 1).saturating_sub(window.max(1))..place + 1,
            Self::Prefix(prefix) => 0..if place < prefix { prefix.min(tokens) } else { place + 1 },
            Self::Segments(starts) => {
                let next = starts.partition_point(|&start| start <= place);
                let end = starts.get(next).map_or(tokens, |&end| end.min(tokens));
                starts[..next].last().copied().unwrap_or(0)..end
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mask;

    #[test]
    fn every_mask_is_what_it_says() {
        let seen = |mask: Mask<'_>| (0..5).map(|place| mask.visible(place, 5)).collect::<Vec<_>>();
        assert_eq!(seen(Mask::All), [0..5, 0..5, 0..5, 0..5, 0..5]);
        assert_eq!(seen(Mask::Causal), [0..1, 0..2, 0..3, 0..4, 0..5]);
        assert_eq!(seen(Mask::Window(2)), [0..1, 0..2, 1..3, 2..4, 3..5]);
        assert_eq!(seen(Mask::Prefix(3)), [0..3, 0..3, 0..3, 0..4, 0..5]);
        assert_eq!(seen(Mask::Prefix(9)), [0..5, 0..5, 0..5, 0..5, 0..5]);
        assert_eq!(seen(Mask::Segments(&[0, 2])), [0..2, 0..2, 2..5, 2..5, 2..5]);
    }
}
