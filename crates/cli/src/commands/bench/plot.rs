//! `--plot`: the stages of every run as bars, or of the medians next to earlier ones, as an SVG picture.

use std::fmt::Write;

use ocelli_engine::bench::{FIGURES, Report};

use super::compare::Earlier;
use super::table::{number, precision};

/// A bar: its name and the milliseconds of every stage of [`STAGES`].
struct Bar {
    name: String,
    stages: [f64; 4],
}

/// The whole picture.
pub(super) fn svg(report: &Report, earlier: Option<&Earlier>) -> String {
    let bars = bars(report, earlier);
    let longest = bars.iter().map(Bar::total).fold(f64::MIN_POSITIVE, f64::max);
    let step = step(longest);
    let scale = BAR_WIDTH / ((longest / step).ceil() * step);
    let bottom = TOP + bars.len() as f64 * (BAR_HEIGHT + GAP);
    let height = bottom + 62.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    title(&mut text, report);
    axis(&mut text, step, scale, bottom);
    for (idx, bar) in bars.iter().enumerate() {
        draw(&mut text, bar, TOP + idx as f64 * (BAR_HEIGHT + GAP), scale);
    }
    legend(&mut text, bottom + 48.0);
    text.push_str("</svg>\n");
    text
}

fn bars(report: &Report, earlier: Option<&Earlier>) -> Vec<Bar> {
    let median = |name: &str| report.summary.get(name).map(|spread| spread.median);
    let Some(earlier) = earlier else {
        let value = |idx: usize, name: &str| {
            let figure = FIGURES.iter().find(|figure| figure.name == name);
            figure.and_then(|figure| (figure.of)(&report.runs[idx])).unwrap_or(0.0)
        };
        let bar = |idx| Bar { name: format!("run {}", idx + 1), stages: STAGES.map(|(name, _)| value(idx, name)) };
        return (0..report.runs.len()).map(bar).collect();
    };
    let before = STAGES.map(|(name, _)| earlier.median(name).unwrap_or(0.0));
    let now = STAGES.map(|(name, _)| median(name).unwrap_or(0.0));
    vec![Bar { name: "before".to_owned(), stages: before }, Bar { name: "now".to_owned(), stages: now }]
}

impl Bar {
    fn total(&self) -> f64 {
        self.stages.iter().sum()
    }
}

fn title(text: &mut String, report: &Report) {
    let Report { model, threads, isa, prompt_tokens, completion_tokens, .. } = report;
    let what = format!("{model}, {}, {threads} threads, {isa}", precision(report));
    label(text, (LEFT, 24.0), "font-size=\"16\"", &what);
    label(
        text,
        (LEFT, 44.0),
        GREY,
        &format!("milliseconds; {prompt_tokens} prompt tokens, {completion_tokens} answered"),
    );
}

fn axis(text: &mut String, step: f64, scale: f64, bottom: f64) {
    let ticks = (BAR_WIDTH / scale / step).round() as usize;
    for tick in 0..=ticks {
        let value = tick as f64 * step;
        let x = LEFT + value * scale;
        line(text, x, TOP - 6.0, bottom);
        label(text, (x, bottom + 16.0), "text-anchor=\"middle\" fill=\"#666\"", &short(value));
    }
}

fn draw(text: &mut String, bar: &Bar, y: f64, scale: f64) {
    let middle = y + BAR_HEIGHT / 2.0 + 4.5;
    label(text, (LEFT - 8.0, middle), "text-anchor=\"end\"", &bar.name);
    let mut x = LEFT;
    for (milliseconds, (_, colour)) in bar.stages.iter().zip(STAGES) {
        let width = milliseconds * scale;
        _ = writeln!(
            text,
            "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>"
        );
        // A number needs some room.
        if width > 44.0 {
            label(text, (x + width / 2.0, middle), "text-anchor=\"middle\"", &number(*milliseconds));
        }
        x += width;
    }
    label(text, (LEFT + BAR_WIDTH + 10.0, middle), "", &format!("{} ms", number(bar.total())));
}

fn legend(text: &mut String, y: f64) {
    for (idx, (name, colour)) in STAGES.into_iter().enumerate() {
        let x = LEFT + idx as f64 * 150.0;
        _ = writeln!(text, "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>", y - 12.0);
        label(text, (x + 20.0, y), "", name.trim_end_matches("_ms"));
    }
}

fn line(text: &mut String, x: f64, from: f64, to: f64) {
    _ = writeln!(text, "<line x1=\"{x:.2}\" y1=\"{from}\" x2=\"{x:.2}\" y2=\"{to}\" stroke=\"#ddd\"/>");
}

fn label(text: &mut String, (x, y): (f64, f64), style: &str, words: &str) {
    // A model's name may be a path with anything in it.
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let words: String = words.chars().filter(|character| !character.is_control()).collect();
    _ = writeln!(text, "<text x=\"{x:.2}\" y=\"{y:.2}\" {style}>{words}</text>");
}

/// 1, 2 or 5 times a power of ten: four to ten of them make the longest bar.
fn step(longest: f64) -> f64 {
    let power = 10f64.powf((longest / 4.0).log10().floor());
    let fits = [5.0, 2.0, 1.0].into_iter().find(|factor| longest / (factor * power) >= 4.0);
    fits.unwrap_or(1.0) * power
}

/// A round number without trailing zeros.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Figures that follow each other, in colours that most colour-blind people tell apart.
const STAGES: [(&str, &str); 4] =
    [("preprocess_ms", "#e69f00"), ("vision_ms", "#56b4e9"), ("prefill_ms", "#2fb58c"), ("decode_ms", "#d9a0bf")];
const GREY: &str = "fill=\"#666\"";
const WIDTH: f64 = 900.0;
const LEFT: f64 = 76.0;
const BAR_WIDTH: f64 = 700.0;
const TOP: f64 = 66.0;
const BAR_HEIGHT: f64 = 26.0;
const GAP: f64 = 8.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        for (longest, expected) in [(7.0, 1.0), (8.0, 2.0), (900.0, 200.0), (2400.0, 500.0), (0.5, 0.1)] {
            assert!((step(longest) - expected).abs() < 1e-9 * expected, "{longest}: {}", step(longest));
        }
        assert_eq!([short(0.0), short(200.0), short(0.25)], ["0", "200", "0.25"]);
    }

    #[test]
    fn a_bar_is_as_long_as_its_stages() {
        let mut text = String::new();
        draw(&mut text, &Bar { name: "a<b".into(), stages: [1.0, 2.0, 0.0, 100.0] }, 10.0, 5.0);
        for part in [
            "x=\"76.00\" y=\"10\" width=\"5.00\"",
            "x=\"81.00\" y=\"10\" width=\"10.00\"",
            "width=\"500.00\"",
            "a&lt;b",
            "103.0 ms",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(text.matches("<rect").count(), 4);
    }
}
