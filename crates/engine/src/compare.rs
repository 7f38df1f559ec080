//! How far apart two tensors are: one definition for all comparisons of this crate.

/// The difference of two tensors a and b, over all their elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Difference {
    /// `max |a - b|`; infinite where one of them is not a number.
    pub(crate) absolute: f64,
    /// `max |a - b| / max |b|`: one number for the whole tensor, so that values near zero do not decide.
    pub(crate) relative: f64,
}

impl Difference {
    /// Of the elements that both have; lengths are the caller's to compare.
    pub(crate) fn between(a: &[f32], b: &[f32]) -> Self {
        // A NaN must not be lost in a maximum.
        let worst = |worst: f64, next: f64| if next.is_nan() { f64::INFINITY } else { worst.max(next) };
        let absolute = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, worst);
        let largest = b.iter().map(|value| f64::from(value.abs())).fold(0.0, worst);
        let relative = match absolute {
            0.0 => 0.0,
            _ if absolute.is_finite() => absolute / largest,
            _ => f64::INFINITY,
        };
        Self { absolute, relative }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_to_the_largest_value() {
        assert_eq!(Difference::between(&[1.0, 4.5], &[1.0, -4.0]).absolute, 8.5);
        assert_eq!(Difference::between(&[1.5, 4.0], &[1.0, 4.0]).relative, 0.125);
        assert_eq!(Difference::between(&[], &[]).relative, 0.0);
        assert_eq!(Difference::between(&[f32::NAN], &[1.0]).relative, f64::INFINITY);
        assert_eq!(Difference::between(&[1.0], &[f32::INFINITY]).relative, f64::INFINITY);
        assert_eq!(Difference::between(&[1.0], &[0.0]).relative, f64::INFINITY);
    }
}
