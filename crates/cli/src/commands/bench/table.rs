//! A report as text: for a terminal, as Markdown, as comma-separated values.

use ocelli_engine::bench::{FIGURES, Load, Machine, Report, Spread};

use crate::terminal::bytes;

/// Everything, for people.
pub(super) fn report(report: &Report) -> String {
    let lines = [head(report), vec![String::new()], runs(report), vec![String::new()], tail(report)].concat();
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What was measured.
fn head(report: &Report) -> Vec<String> {
    let Report { vision_tokens, prompt_tokens, completion_tokens, n_tiles, .. } = report;
    let picture = match report.image_size {
        Some([width, height]) => format!("{width}x{height}, {n_tiles} tile(s), {vision_tokens} vision tokens"),
        None => "none".to_owned(),
    };
    let load = match report.second_load_ms {
        Some(second) => format!("{:.1} ms, again {second:.1} ms", report.load_ms),
        None => format!("{:.1} ms to build", report.load_ms),
    };
    vec![
        row("model", &format!("{} ({}, {}, {})", report.model, report.model_type, report.dtype, report.weights_in)),
        row("processor", &format!("{} threads, {}", report.threads, report.isa)),
        row("picture", &picture),
        row("tokens", &format!("{prompt_tokens} of the prompt, {completion_tokens} of the answer")),
        row("load", &load),
    ]
}

/// One line per run, then the statistics.
fn runs(report: &Report) -> Vec<String> {
    let head: Vec<String> = FIGURES.iter().map(|figure| column(title(figure.name))).collect();
    let mut lines = vec![row("", &head.concat())];
    for (idx, run) in report.runs.iter().enumerate() {
        let values: Vec<String> = FIGURES.iter().map(|figure| column(&number((figure.of)(run)))).collect();
        lines.push(row(&format!("run {}", idx + 1), &values.concat()));
    }
    for (name, of) in STATISTICS {
        let values: Vec<String> = FIGURES
            .iter()
            .map(|figure| {
                report.summary.get(figure.name).map_or_else(String::new, |spread| statistic(name, of(spread)))
            })
            .map(|value| column(&value))
            .collect();
        lines.push(row(name, &values.concat()));
    }
    lines
}

/// Memory, work per second, and whether it can be trusted.
fn tail(report: &Report) -> Vec<String> {
    let memory = &report.memory;
    let peak = memory.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), bytes);
    let parts = format!("weights {}, keys and values {}", bytes(memory.weight_bytes), bytes(memory.kv_bytes));
    let rest = memory.rest_bytes.map(|rest| format!(", rest {}", bytes(rest))).unwrap_or_default();
    let work = &report.utilisation;
    let share = |share: Option<f64>, of: &str| share.map(|share| format!(" ({:.0} % of {of})", 100.0 * share));
    let prompt = format!("{:.1} GFLOP/s", work.prompt_flops / 1e9);
    let decode = format!("{:.2} GB/s of weights", work.decode_bytes_per_second / 1e9);
    vec![
        row("peak memory", &format!("{peak}: {parts}{rest}")),
        row("prompt", &(prompt + &share(work.prompt_share, "the multiply-add peak").unwrap_or_default())),
        row("decode", &(decode + &share(work.decode_share, "the read bandwidth").unwrap_or_default())),
        row("output", &format!("{} (the same in all runs)", report.output_hash)),
    ]
}

/// The machine's limits, for people.
pub(super) fn machine(machine: &Machine) -> String {
    let [peak, read] = limits(machine);
    let lines = [
        row("machine", &format!("{} threads, {}", machine.threads, machine.isa)),
        row("f32 peak", &format!("{peak} GFLOP/s (multiply-add)")),
        row("read", &format!("{read} GB/s from memory")),
    ];
    lines.map(|line| line + "\n").concat()
}

pub(super) fn machine_markdown(machine: &Machine) -> String {
    let [peak, read] = limits(machine);
    let (threads, isa) = (machine.threads, machine.isa);
    let head = "| threads | isa | f32 peak, GFLOP/s | read, GB/s |\n|---|---|---|---|\n";
    format!("{head}| {threads} | {isa} | {peak} | {read} |\n")
}

pub(super) fn machine_csv(machine: &Machine) -> String {
    let Machine { threads, isa, f32_flops, read_bytes_per_second } = machine;
    format!("threads,isa,f32_flops,read_bytes_per_second\n{threads},{isa},{f32_flops:.0},{read_bytes_per_second:.0}\n")
}

fn limits(machine: &Machine) -> [String; 2] {
    [machine.f32_flops, machine.read_bytes_per_second].map(|value| format!("{:.1}", value / 1e9))
}

/// A table of the statistics under a line that says of what.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = report.machine.as_ref().map(|machine| machine_markdown(machine) + "\n").unwrap_or_default();
    text.push_str(&format!(
        "{}, {}, {} threads, {}: {} + {} tokens, {} runs\n\n",
        report.model,
        report.dtype,
        report.threads,
        report.isa,
        report.prompt_tokens,
        report.completion_tokens,
        report.runs.len()
    ));
    text.push_str("| figure | unit | median | mean | min | max | variation |\n|---|---|---|---|---|---|---|\n");
    for figure in FIGURES {
        let Some(Spread { mean, median, min, max, cv }) = report.summary.get(figure.name) else { continue };
        let values = [median, mean, min, max].map(|value| number(*value)).join(" | ");
        text.push_str(&format!("| {} | {} | {values} | {:.1} % |\n", figure.name, figure.unit, 100.0 * cv));
    }
    text
}

/// One row per figure, with a header.
pub(super) fn csv(report: &Report) -> String {
    let mut text = "model,dtype,isa,threads,vision_tokens,prompt_tokens,completion_tokens,runs,\
        figure,unit,median,mean,min,max,cv\n"
        .to_owned();
    // A model's name may be a path with anything in it.
    let model = report.model.replace('"', "\"\"");
    for figure in FIGURES {
        let Some(Spread { mean, median, min, max, cv }) = report.summary.get(figure.name) else { continue };
        let Report { dtype, isa, threads, vision_tokens, prompt_tokens, completion_tokens, .. } = report;
        text.push_str(&format!(
            "\"{model}\",{dtype},{isa},{threads},{vision_tokens},{prompt_tokens},{completion_tokens},{},{},{},\
             {median:.3},{mean:.3},{min:.3},{max:.3},{cv:.4}\n",
            report.runs.len(),
            figure.name,
            figure.unit
        ));
    }
    text
}

/// Why the figures may not be the model's alone.
pub(super) fn busy(load: &Load) -> Option<String> {
    if !load.was_busy {
        return None;
    }
    let mut reasons = Vec::new();
    reasons.extend(load.load_average.map(|load| format!("load average {load:.2} before it began")));
    reasons.extend(load.waiting_share.map(|share| format!("threads waited {:.1} % of the time", 100.0 * share)));
    reasons.extend(load.cpu_share.map(|share| format!("{:.0} % of the processors' time used", 100.0 * share)));
    Some(format!("the machine was busy with other work ({}): expect slower and uneven figures", reasons.join(", ")))
}

/// A statistic's name and how it is read.
type Statistic = (&'static str, fn(&Spread) -> f64);

const STATISTICS: [Statistic; 5] = [
    ("mean", |spread| spread.mean),
    ("median", |spread| spread.median),
    ("min", |spread| spread.min),
    ("max", |spread| spread.max),
    (VARIATION, |spread| spread.cv),
];
const VARIATION: &str = "variation";

fn statistic(name: &str, value: f64) -> String {
    if name == VARIATION { format!("{:.1} %", 100.0 * value) } else { number(value) }
}

/// A figure's name with its unit, short enough for a column.
fn title(name: &str) -> &str {
    match name {
        "preprocess_ms" => "preprocess ms",
        "vision_ms" => "vision ms",
        "prefill_ms" => "prefill ms",
        "prefill_tokens_per_second" => "prefill tok/s",
        "ttft_ms" => "first token ms",
        "tokens_per_second" => "decode tok/s",
        other => other,
    }
}

fn row(name: &str, text: &str) -> String {
    format!("{name:<12} {text}")
}

fn column(text: &str) -> String {
    format!("{text:>15}")
}

/// Three to four digits that count.
pub(super) fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.1}") } else { format!("{value:.2}") }
}
